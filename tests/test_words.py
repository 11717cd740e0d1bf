"""Numbers, times and the names of knobs as people read them."""

import pytest

from lora_gpt.config import TARGETS, RunConfig, all_knobs
from lora_gpt.words import (
    about_duration,
    duration,
    fraction,
    label_of,
    labelled,
    percent,
    percent_with_interval,
    run_label,
    size,
)


def test_a_share_below_one_is_never_all():
    assert percent(0.973) == "97.3%"
    assert percent(0.99999) == "over 99.9%"
    assert percent(0.00001, 2) == "under 0.01%"
    assert (percent(1.0), percent(0.0)) == ("100.0%", "0.0%")


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.0, "100%"), (0.01056, "1.06%"), (0.0000124, "0.0012%"), (0.9999, "99.99%"), (0.0, "0%")],
)
def test_a_small_fraction_keeps_two_digits(share, said):
    assert fraction(share) == said


def test_an_accuracy_stands_with_its_interval_and_its_counts():
    seen = {"accuracy": 2910 / 2990, "interval": [0.948, 0.986], "tn": 1400, "tp": 1510}
    said = "97.3% (95% interval 94.8 to 98.6, 2,910 of 2,990)"
    assert percent_with_interval(seen | {"size": 2990}) == said


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (6_152, "6.15 KB"),
        (999_600, "1 MB"),
        (5_310_000, "5.31 MB"),
        (1_991_061_536, "1.99 GB"),
        (2e12, "2,000 GB"),
    ],
)
def test_sizes_in_bytes(held, said):
    assert size(held) == said


def test_an_estimate_is_not_finer_than_it_can_be():
    assert [about_duration(s) for s in (41.3, 262, 7_800)] == ["41 s", "4 min", "2.2 h"]
    assert [size(held, 2) for held in (47.4e6, 313e6, 1.64e9)] == ["47 MB", "310 MB", "1.6 GB"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0.4 s"), (12.4, "12 s"), (59.7, "1 min"), (185, "3 min 5 s"), (7_800, "2 h 10 min")],
)
def test_durations(seconds, told):
    assert duration(seconds) == told


# --- knobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("spam_label: must be one of ham, spam", "Word for spam: must be one of ham, spam"),
        (
            "a.csv: holds x, y; set spam_label to the one, or label_column.",
            "a.csv: holds x, y; set “Word for spam” to the one, or “Label column”.",
        ),
        ("at least one of W_query, ff_in", "at least one of query, feed-forward in"),
        ("run: must be stopped", "Run: must be stopped"),
        ("the data of this rank: a model", "the data of this rank: a model"),
    ],
)
def test_a_refusal_names_a_field_as_the_page_does(refusal, told):
    assert labelled(refusal) == told


@pytest.mark.parametrize("own", ["'spam_label'", "'W_query: x'", '"it\'s max_steps"'])
def test_what_somebody_wrote_stays(own):
    """A column of theirs may be called like a knob of ours."""
    assert labelled(f"a.csv: the model's rule is max_steps; got {own}") == (
        f"a.csv: the model's rule is “Most steps”; got {own}"
    )


def test_no_knob_or_layer_keeps_the_name_that_the_command_line_gives_it():
    for name, about in all_knobs().items():
        assert label_of(name) == about.label
        assert labelled(f"{name}: must fit") == f"{about.label}: must fit"
    assert labelled(", ".join(TARGETS)) == ", ".join(TARGETS.values())


def test_a_run_is_told_by_what_is_not_the_default():
    """Model, method, messages and seed always; the rest where it tells runs apart."""
    assert run_label(RunConfig()) == "mini, LoRA r 8, bundled, seed 42"
    other = RunConfig().changed(epochs=1, alpha=32.0, targets=("W_query", "ff_in"), max_steps=60)
    told = "seed 42, alpha 32, on query + feed-forward in, 1 epoch, at most 60 steps"
    assert run_label(other) == f"mini, LoRA r 8, bundled, {told}"
    # A rank's alpha says nothing where nothing is injected; the method's own rate is no change.
    head = RunConfig().changed(method="head", alpha=32.0, learning_rate=1e-2)
    assert run_label(head) == "mini, head only, bundled, seed 42"
    assert run_label(head.changed(learning_rate=1e-3)).endswith("seed 42, rate 0.001")
    short = RunConfig().changed(max_tokens=1, validation_fraction=0.2)
    assert run_label(short).endswith("seed 42, validation part 0.2, longest message 1")
