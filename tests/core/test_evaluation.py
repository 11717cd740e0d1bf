"""Measures: against hand-counted cases, at the edges, and over JSON."""

import json
import math

import pytest
from scipy.stats import binomtest

from lora_gpt.config import BadValue
from lora_gpt.core.data import Message
from lora_gpt.core.evaluation import Metrics, Paired, measure, paired, wilson

SPAM, HAM = Message("win", True), Message("hello", False)


def test_a_hand_counted_case():
    """3 spam found, 1 missed, 5 ham right, 1 called spam."""
    messages = [SPAM] * 4 + [HAM] * 6
    made = measure(messages, [0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1], loss=0.3)
    assert (made.tp, made.fn, made.fp, made.tn, made.size) == (3, 1, 1, 5, 10)
    assert made.accuracy == 0.8
    assert made.precision == made.recall == made.f1 == 0.75
    assert made.mcc == pytest.approx((3 * 5 - 1 * 1) / math.sqrt(4 * 4 * 6 * 6))
    # Of the 24 pairs of a spam and a ham only (0.2, 0.6) stands the wrong way round.
    assert made.auc == pytest.approx(23 / 24)
    assert made.loss == 0.3
    assert made.interval == wilson(8, 10)


def test_half_is_spam():
    """A message at 0.5 is called spam, just below it is not."""
    assert measure([SPAM, SPAM], [0.5, 0.4999]).tp == 1


def test_the_surest_mistakes_come_first():
    """Every message called wrongly is kept with its true label and its probability."""
    wrong = [Message("a", False), Message("b", True), Message("c", False)]
    made = measure([*wrong, SPAM], [0.6, 0.01, 0.7, 0.9])
    assert made.misclassified == (
        {"text": "b", "label": "spam", "p_spam": 0.01},
        {"text": "c", "label": "ham", "p_spam": 0.7},
        {"text": "a", "label": "ham", "p_spam": 0.6},
    )


@pytest.mark.parametrize("message", [SPAM, HAM])
@pytest.mark.parametrize("p", [0.1, 0.9])
def test_one_class_alone_is_measured(message, p):
    """There is no AUC, and the other measures are plain numbers."""
    made = measure([message] * 3, [p] * 3)
    assert made.auc is None
    values = (made.precision, made.recall, made.f1, made.mcc)
    assert all(math.isfinite(value) for value in values)
    assert made.accuracy == (1.0 if message.is_spam == (p > 0.5) else 0.0)


@pytest.mark.parametrize(
    ("p_spam", "field"),
    [([0.5], "p_spam"), ([0.5, 1.1], "p_spam"), ([0.5, math.nan], "p_spam")],
)
def test_what_is_no_probability_is_refused(p_spam, field):
    """Too few values, values above 1 and NaN name the field."""
    with pytest.raises(BadValue) as caught:
        measure([SPAM, HAM], p_spam)
    assert caught.value.field == field


def test_nothing_cannot_be_measured():
    """An empty part has no accuracy."""
    with pytest.raises(BadValue, match="messages: must hold at least one message"):
        measure([], [])


def test_metrics_survive_json():
    """to_json gives plain JSON, from_json gives the metrics back."""
    made = measure([SPAM, HAM, HAM], [0.2, 0.7, 0.1])
    assert Metrics.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


@pytest.mark.parametrize("values", [{}, {"size": 3}, {"interval": 1, "misclassified": []}])
def test_what_is_no_metrics_is_refused(values):
    """A damaged file gives a BadValue, not a KeyError."""
    with pytest.raises(BadValue, match="metrics: must be what"):
        Metrics.from_json(values)


@pytest.mark.parametrize(
    "change", [{"accuracy": "0.9"}, {"tp": None}, {"interval": ["a", "b"]}, {"misclassified": [{}]}]
)
def test_metrics_of_another_kind_are_refused(change):
    """Whoever shows them calculates with them."""
    with pytest.raises(BadValue, match="metrics: must be what"):
        Metrics.from_json(measure([SPAM, HAM], [0.2, 0.1]).to_json() | change)


def test_wilson_against_published_figures():
    """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_the_interval_stays_within_0_and_1():
    """All right and all wrong are mirror images, and neither is certain."""
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(1 - wilson(0, 20)[1])


@pytest.mark.parametrize(("right", "size"), [(1, 0), (3, 2), (-1, 2)])
def test_an_impossible_share_is_refused(right, size):
    """More right than there are is the caller's mistake."""
    with pytest.raises(BadValue):
        wilson(right, size)


def _judged(right):
    """Metrics of a classifier that is right where `right` says so; the messages are numbered."""
    messages = [Message(str(n), True) for n in range(len(right))]
    return measure(messages, [0.9 if each else 0.1 for each in right]).to_json()


def test_two_classifiers_are_compared_message_by_message():
    """Against SciPy's exact test, for every way in which six messages can tell two apart."""
    for only_first in range(7):
        for only_second in range(7 - only_first):
            both = [True] * 3 + [False] * 2
            first = _judged(both + [True] * only_first + [False] * only_second)
            second = _judged(both + [False] * only_first + [True] * only_second)
            found, differing = paired(first, second), only_first + only_second
            chance = binomtest(only_first, differing).pvalue if differing else 1.0
            assert found == Paired(only_first, only_second, pytest.approx(chance))


def test_a_message_that_stands_twice_counts_twice():
    """As in the labs' split, which keeps duplicates."""
    twice = [SPAM, SPAM, HAM]
    first, second = (measure(twice, p).to_json() for p in ([0.9, 0.9, 0.1], [0.1, 0.1, 0.1]))
    assert paired(first, second).only_first == 2
