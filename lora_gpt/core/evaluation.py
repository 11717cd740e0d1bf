"""How good a classifier is on messages it has not seen: measures with their uncertainty.

Spam is the positive class; a message is called spam at a probability of 0.5 or more. Knows nothing
of how the probabilities were made.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from sklearn.metrics import (
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from lora_gpt.config import SPAM_FROM, BadValue
from lora_gpt.core.data import Message
from lora_gpt.events import checked


@dataclass(frozen=True)
class Metrics:
    """What a classifier did on one part of the messages. Shares are from 0 to 1."""

    size: int
    """Messages."""
    accuracy: float
    interval: tuple[float, float]
    """95% interval of the accuracy (Wilson)."""
    precision: float
    """Share of real spam in what was called spam; 0 where nothing was called spam."""
    recall: float
    """Share of the spam that was called spam; 0 where there was no spam."""
    f1: float
    mcc: float
    """Matthews' correlation: 0 is guessing, 1 is perfect, also where classes are uneven."""
    auc: float | None
    """Chance that a spam gets a higher probability than a ham; None where a class is missing."""
    loss: float | None
    """Mean cross-entropy in nats a message, where the classifier has one."""
    tn: int
    """Ham called ham."""
    fp: int
    """Ham called spam."""
    fn: int
    """Spam called ham."""
    tp: int
    """Spam called spam."""
    misclassified: tuple[dict[str, Any], ...]
    """{text, label, p_spam} of every message called wrongly, the surest mistakes first; `label` is
    the true one."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return values | {
            "interval": list(self.interval),
            "misclassified": list(values["misclassified"]),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises BadValue for anything that is not metrics."""
        try:
            low, high = map(float, values["interval"])
            wrong = tuple(
                {"text": str(e["text"]), "label": str(e["label"]), "p_spam": float(e["p_spam"])}
                for e in values["misclassified"]
            )
            return checked(cls(**{**values, "interval": (low, high), "misclassified": wrong}))
        except (KeyError, TypeError, ValueError) as error:
            raise BadValue("metrics", "must be what Metrics.to_json wrote", values) from error


def measure(
    messages: Sequence[Message], p_spam: Sequence[float], loss: float | None = None
) -> Metrics:
    """Compare the probabilities of spam `p_spam` (N,) with the labels of `messages` (N,).

    Raises BadValue without messages, for lists of unequal length, and for what is no probability.
    """
    probabilities = [float(p) for p in p_spam]
    if not messages:
        raise BadValue("messages", "must hold at least one message", 0)
    if len(probabilities) != len(messages):
        raise BadValue(
            "p_spam",
            f"must have one value for each of {len(messages)} messages",
            len(probabilities),
        )
    for p in probabilities:
        if not 0 <= p <= 1:
            raise BadValue("p_spam", "must be from 0 to 1", p)
    truth = [message.is_spam for message in messages]
    called = [p >= SPAM_FROM for p in probabilities]
    tn, fp, fn, tp = map(int, confusion_matrix(truth, called, labels=[False, True]).ravel())
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, called, average="binary", pos_label=True, zero_division=0
    )
    both = len(set(truth)) == 2
    return Metrics(
        size=len(truth),
        accuracy=(tn + tp) / len(truth),
        interval=wilson(tn + tp, len(truth)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        mcc=float(matthews_corrcoef(truth, called)) if len({*truth, *called}) == 2 else 0.0,
        auc=float(roc_auc_score(truth, probabilities)) if both else None,
        loss=loss,
        tn=tn,
        fp=fp,
        fn=fn,
        tp=tp,
        misclassified=_misclassified(messages, probabilities),
    )


def _misclassified(
    messages: Sequence[Message], p_spam: Sequence[float]
) -> tuple[dict[str, Any], ...]:
    wrong = [
        {"text": message.text, "label": "spam" if message.is_spam else "ham", "p_spam": p}
        for message, p in zip(messages, p_spam, strict=True)
        if message.is_spam != (p >= SPAM_FROM)
    ]
    return tuple(sorted(wrong, key=lambda each: -abs(each["p_spam"] - SPAM_FROM)))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same messages: what tells them apart is where only one is right."""

    only_first: int
    """Messages that the first alone called right."""
    only_second: int
    chance: float
    """How often two equally good ones would differ by as much or more, from 0 to 1."""


def paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> Paired:
    """Compare two `Metrics.to_json` of the same messages.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages", in its exact form: where only one is right, either is as likely.
    """
    wrong, other = (
        Counter((each["text"], each["label"]) for each in measured["misclassified"])
        for measured in (first, second)
    )
    only_first, only_second = (other - wrong).total(), (wrong - other).total()
    differing, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1))
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**differing))


def wilson(right: int, size: int) -> tuple[float, float]:
    """95% interval of a share of which `right` out of `size` was seen.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    Stays within 0 and 1, and is honest at 0 and 100%, where the usual +- is not.
    """
    if size < 1:
        raise BadValue("size", "must be at least 1", size)
    if not 0 <= right <= size:
        raise BadValue("right", f"must be from 0 to {size}", right)
    z = 1.959963984540054
    share = right / size
    middle = share + z * z / (2 * size)
    reach = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    scale = 1 + z * z / size
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
