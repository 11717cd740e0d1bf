"""The lab report: five answers with a run's own numbers, and no text in it that could act."""

import re
import shlex
from dataclasses import replace

import pytest

from lora_gpt.__main__ import build_parser, given
from lora_gpt.config import PRESETS, RunConfig, all_knobs, preset
from lora_gpt.core.structure import counts
from lora_gpt.events import Finished, Queued, Resumed, Started, Step, Stopped, Validation
from lora_gpt.report import beside_baseline, command, write_report

RUN = RunConfig().changed(model="gpt2", rank=8, alpha=16, epochs=2)
STARTED = Started(6, 3, 1195, 149, 299, 31, 44, 1_328_642, 125_768_450, "cpu", 2)
TEST = {
    "size": 299,
    "accuracy": 292 / 299,
    "interval": [0.9525, 0.9886],
    "tn": 148,
    "fp": 2,
    "fn": 5,
    "tp": 144,
    "misclassified": [{"text": "call me", "label": "ham", "p_spam": 0.98765}],
}
BASELINE = TEST | {"accuracy": 290 / 299, "tn": 147, "tp": 143, "misclassified": []}


def step(number, epoch, loss, accuracy=0.5):
    return Step(number, epoch, number % 3 + 1, loss, accuracy, 1e-3, 1.0, 9, 8, 0.1, 1.0, 1.0, 0.0)


STEPS = [
    Validation(0, 0.7, 0.5),
    step(0, 1, 0.9),
    step(1, 1, 0.6),
    step(2, 1, 0.3, 0.75),
    Validation(3, 0.4, 0.8125),
    step(3, 2, 0.25),
    step(4, 2, 0.15),
    step(5, 2, 0.2, 0.875),
    Validation(6, 0.1, 0.9375),
]


def finished(**test):
    return Finished(6, 12.34, 20.0, 0.9279, None, TEST | test, BASELINE, 512.0)


def report(*events, config=RUN):
    method = config.training.method
    return write_report("abc123", config, events, counts(config.model, config.lora, method))


def section(text, number):
    """What stands under the heading that begins with `number`."""
    (found,) = re.findall(rf"^## {number}.*?(?=^## |\Z)", text, re.M | re.S)
    return found


# --- the five answers ----------------------------------------------------------------------------


def test_what_injection_changes():
    """Six layers in each of twelve blocks, with rank and scale."""
    text = section(report(), 1)
    assert "72 linear layers, 6 in each of 12 blocks" in text
    assert "A (in × 8)" in text and "B (8 × out)" in text and "2 times the update" in text
    few = section(report(config=RUN.changed(targets=["W_query"], rank=4, alpha=2)), 1)
    assert "12 linear layers, 1 in each of 12 blocks (W_query)" in few and "0.5 times" in few


@pytest.mark.parametrize(("method", "words"), [("head", "head alone"), ("full", "every parameter")])
def test_nothing_is_injected_without_lora(method, words):
    text = report(config=RUN.changed(method=method))
    assert words in section(text, 1) and "LinearWithLoRA" not in text


def test_the_trainable_fractions():
    """The labs' numbers of GPT-2 124M, without and with the head."""
    rows = [line for line in section(report(), "2 and 3").splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        "| base | 163,037,184 | 163,037,184 | 100% |",
        "| lora | 1,327,104 | 164,364,288 | 0.81% |",
        "| classifier | 1,328,642 | 125,768,450 | 1.06% |",
    ]


def test_loss_and_accuracy_of_each_epoch():
    """First, mean and last loss; the running accuracy at its end; the validation then."""
    rows = section(report(STARTED, *STEPS), 4).splitlines()
    assert "| 1 | 3 | 0.9000 | 0.6000 | 0.3000 | 75.00% | 81.25% |" in rows
    assert "| 2 | 3 | 0.2500 | 0.2000 | 0.2000 | 87.50% | 93.75% |" in rows


def test_a_step_that_was_made_again_counts_once():
    """After a resume the later one is the one that led to the adapter."""
    events = [STARTED, step(0, 1, 0.9), step(1, 1, 9.0), Stopped(1), Resumed(1), step(1, 1, 0.7)]
    assert "| 1 | 2 | 0.9000 | 0.8000 | 0.7000 |" in section(report(*events), 4)


def test_a_run_without_a_validation_part_says_so():
    assert "no validation part" in section(report(STARTED, step(0, 1, 0.9)), 4)


def test_the_test_accuracy():
    """With interval and counts, beside a linear model, and what leaked."""
    text = section(report(STARTED, *STEPS, finished()), 5)
    assert "**97.7% (95% interval 95.2 to 98.9, 292 of 299)**" in text
    assert "97.0% (95% interval 95.2 to 98.9, 290 of 299)" in text
    assert "training part 92.79%" in text
    assert "| is ham | 148 | 2 |" in text and "| is spam | 5 | 144 |" in text
    assert "Of 299 test messages 44 also stand in training: 31 letter for letter, 13 nearly" in text
    assert "12.3 s for 6 steps on cpu" in text
    assert "- ham, said with p(spam) 0.988: ` call me `" in text


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lora", "the frozen layers in"),
        ("head", "the frozen layers in"),
        ("full", "the products of the blocks in"),
    ],
)
def test_what_the_precision_was_that_of(method, words):
    """Nothing is frozen where all parameters are trained."""
    text = report(STARTED, *STEPS, finished(), config=RUN.changed(method=method))
    assert f"{words} float32." in text and ("frozen layers" in text) == (method != "full")


def test_no_mistake_is_said_in_words():
    assert "No test message was misclassified." in report(STARTED, finished(misclassified=[]))


@pytest.mark.parametrize("events", [[], [Queued()], [STARTED], [STARTED, *STEPS]], ids=len)
def test_a_run_that_goes_on_says_what_is_not_known(events):
    """The sections stand already; no number is made up."""
    text = report(*events)
    assert "Not known yet: the run has not finished." in section(text, 5)
    assert ("no step has been taken" in section(text, 4)) is (STEPS[1] not in events)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# LoRA on GPT-2 124M: run abc123",
        "## 1. What injection changes",
        "## 2 and 3. The trainable fraction, without and with the classification head",
        "## 4. Loss and accuracy in training",
        "## 5. Test accuracy",
        "## Settings",
    ]


def test_every_knob_stands_in_the_settings():
    """With its words and its value."""
    text = section(report(config=RUN.changed(alpha=3.5)), "Settings")
    for about in all_knobs().values():
        assert f"| {about.label} |" in text
    assert "| Alpha | 3.5 |" in text and "| Batch size | 8 messages |" in text
    assert "| Longest message | no limit |" in text and "| Most steps | no limit |" in text


@pytest.mark.parametrize(("method", "rate"), [("lora", "0.001"), ("head", "0.01")])
def test_the_settings_are_those_that_were_used(method, rate):
    """The method's own rate where none was given; nothing of LoRA where none was injected."""
    text = section(report(config=RUN.changed(method=method)), "Settings")
    assert f"| Learning rate | {rate} |" in text
    assert ("| Rank r |" in text) == (method == "lora") == ("| Targets |" in text)
    given = section(report(config=RUN.changed(learning_rate=0.005)), "Settings")
    assert "| Learning rate | 0.005 |" in given


# --- other people's text -------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script> & <b>bold</b>",
    "`</code>` ``` ~~~ `` <img src=x onerror=alert(1)>",
    "# Title\n\n- item\n| a | b |\n```\nnot code",
    "[click](javascript:alert(1)) ![x](http://evil/x.png) https://evil.example www.evil.example",
    '*it\'s* _"fine"_ $x$ \\ &amp; ~~no~~',
    "````` ",
    "`",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_cannot_act(text):
    """It stands on one line inside a code span, whose backticks do not stand in it: CommonMark
    6.1 then shows every sign as it is."""
    wrong = [{"text": text, "label": "spam", "p_spam": 0.1}, TEST["misclassified"][0]]
    lines = report(STARTED, finished(misclassified=wrong)).splitlines()
    (line,) = [line for line in lines if line.startswith("- spam, said with p(spam) 0.100: ")]
    assert "- ham, said with p(spam) 0.988: ` call me `" in lines
    span = line.removeprefix("- spam, said with p(spam) 0.100: ")
    found = re.fullmatch(r"(`+) (.*) \1", span)
    assert found is not None and found[2] == " ".join(text.split())
    assert len(found[1]) not in map(len, re.findall("`+", found[2]))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_setting_cannot_act(name):
    """Names of files and columns are typed by people too."""
    text = report(config=RUN.changed(data=name, text_column=name))
    settings = section(text, "Settings").splitlines()
    (row,) = [line for line in settings if line.startswith("| Messages |")]
    shown = row.removeprefix("| Messages | ").removesuffix(" |")
    assert not set(shown) & set("<>`*_[]\\$|~!") and "\n" not in shown
    fence, *rest = text.split("\n\n", 2)[2].splitlines()
    assert (
        set(fence) == {"`"}
        and rest.index(fence) == command(RUN.changed(data=name, text_column=name)).count("\n") + 1
    )


def test_an_apostrophe_is_an_apostrophe():
    """What is made harmless must still be read."""
    text = report(config=RUN.changed(data='ann\'s "best" & more.csv'))
    assert '| Messages | ann\'s "best" &amp; more.csv |' in text


# --- the command ---------------------------------------------------------------------------------


def parsed(config):
    """The config that the command line of `config` stands for."""
    words = shlex.split(command(config))
    assert words[:4] == ["python", "-m", "lora_gpt", "train"]
    arguments = build_parser().parse_args(words[3:])
    return preset(arguments.preset).changed(**given(arguments))


CONFIGS = [
    *(preset(name) for name in PRESETS),
    RUN,
    RunConfig().changed(learning_rate=0.00123456789, alpha=0.30000000000000004, dropout=1 / 3),
    RunConfig().changed(targets=["ff_in", "W_key"], method="full", balance=False, seed=0),
    RunConfig().changed(data='my file\'s "data".csv', text_column="-x", spam_label="--yes"),
    RunConfig().changed(data="a\nb.csv", weights="~/some folder", rank_stabilised=True),
    RunConfig().changed(text_column="1.0", label_column="%s $HOME", schedule="constant"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_command_repeats_the_run(config):
    """Read back through the command line it is the same config, to the last digit."""
    assert parsed(config) == config


def test_weights_that_were_not_read_are_not_in_the_command():
    """As of the second run that starts at random beside one on given weights."""
    assert command(RunConfig(init="random", weights="a b")).endswith(" train --init random")


def test_every_knob_that_differs_is_in_the_command():
    """Flags that only turn something off included."""
    for name, about in all_knobs().items():
        value = RunConfig().flat()[name]
        if isinstance(value, bool):
            other = not value
        elif about.choices and isinstance(value, tuple):
            other = list(about.choices)[:1]
        elif about.choices:
            other = next(each for each in about.choices if each != value)
        elif name == "shape":
            other = "64x2x1x64"
        elif isinstance(value, str):
            other = "something"
        else:
            other = value + 1 if about.maximum is None or value + 1 <= about.maximum else 0.25
        needed = {"weights": "elsewhere"} if name == "shape" else {}
        config = RunConfig().changed(**{name: other}, **needed)
        assert parsed(config) == config != RunConfig(), name


def test_a_run_as_it_comes_needs_no_option():
    assert command(RunConfig()) == "python -m lora_gpt train"
    assert command(replace(RunConfig(), seed=7)) == "python -m lora_gpt train --seed 7"
    assert command(RunConfig().changed(alpha=32)).endswith(" --alpha 32")


def test_the_report_holds_the_command():
    text = report()
    assert f"```\n{command(RUN)}\n```" in text


@pytest.mark.parametrize(
    ("model", "other", "told"),
    [
        ("abc", "abc", "are right on the same messages"),
        ("a", "bcde", "may be chance"),
        ("abcd", "efghi", "in 100% of such tests"),
        ("", "abcdefgh", "in 0.8% of such tests"),
        ("a", "bcdefg", "in 12% of such tests"),
        ("", "bcdefgh", "The model is better. The model alone is right on 7"),
        ("", "abcdefghijklmn", "in under 0.1% of such tests"),
        ("abcdefgh", "z", "The linear baseline is better. The model alone is right on 1 of"),
    ],
)
def test_the_baseline_is_beaten_or_not_message_by_message(model, other, told):
    """Intervals that overlap do not say that two on the same messages are equal."""
    wrong, others = ([{"text": t, "label": "spam"} for t in texts] for texts in (model, other))
    end = finished(misclassified=wrong)
    end = replace(end, baseline=BASELINE | {"misclassified": others})
    assert told in beside_baseline(end)
