"""The lab report of a run, in Markdown: the labs' five questions, answered with its own numbers.

Pure text from plain values: a run's config, its events and the parameter counts of its model.
"""

import html
import re
import shlex
from collections.abc import Sequence
from typing import Any, Protocol

from lora_gpt.config import RunConfig, all_knobs, group_of
from lora_gpt.core.evaluation import paired
from lora_gpt.events import Event, Finished, Started, Step, Validation, epochs_of
from lora_gpt.words import fraction, percent, percent_with_interval


class Count(Protocol):
    """Parameters at one stage, as `core.structure.StageCount` gives them."""

    @property
    def stage(self) -> str: ...
    @property
    def trainable(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def fraction(self) -> float: ...


def write_report(
    run_id: str, config: RunConfig, events: Sequence[Event], stages: Sequence[Count]
) -> str:
    """The report of a run that may still be going on: what is not known yet is said to be so."""
    sections = [
        f"# LoRA on {config.label}: run {run_id}",
        _repeat(config),
        _injection(config),
        _fractions(config, stages),
        _training(events),
        _test(events, config.training.method),
        _settings(config),
    ]
    return "\n\n".join(sections) + "\n"


def command(config: RunConfig) -> str:
    """The command line that repeats a run: every knob that differs from its default and counts."""
    words = ["python", "-m", "lora_gpt", "train"]
    standard = RunConfig().flat()
    for name, value in config.flat().items():
        if value == standard[name] or (name == "weights" and config.init == "random"):
            continue  # a random start reads no weights
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, tuple):
            words += [flag, *value]
        else:
            # Every digit of a number, so that it is repeated; '=' lets a name begin with a dash.
            shown = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
            words += [f"{flag}={shown}"] if shown.startswith("-") else [flag, shown]
    return shlex.join(words)


def _repeat(config: RunConfig) -> str:
    words = command(config)
    fence = _fence(words, 3)
    return f"To repeat it:\n\n{fence}\n{words}\n{fence}"


def _injection(config: RunConfig) -> str:
    lora, cfg = config.lora, config.architecture
    if config.training.method != "lora":
        what = "Nothing was injected: this run trained " + (
            "the new head alone." if config.training.method == "head" else "every parameter."
        )
        return f"## 1. What injection changes\n\n{what}"
    return (
        "## 1. What injection changes\n\n"
        f"{cfg.n_layers * len(lora.targets)} linear layers, {len(lora.targets)} in each of"
        f" {cfg.n_layers} blocks ({', '.join(lora.targets)}), became `LinearWithLoRA`. Each keeps"
        f" its frozen weight W and gets A (in × {lora.rank}) and B ({lora.rank} × out) beside it:"
        f" the output is W x plus {lora.scale:g} times the update A B. B starts at 0, so before the"
        " first step the model says exactly what it said before."
    )


def _fractions(config: RunConfig, stages: Sequence[Count]) -> str:
    rows = [
        f"| {stage.stage} | {stage.trainable:,} | {stage.total:,} | {fraction(stage.fraction)} |"
        for stage in stages
    ]
    return "\n".join(
        [
            "## 2 and 3. The trainable fraction, without and with the classification head",
            "",
            "| stage | trainable | total | fraction |",
            "| --- | ---: | ---: | ---: |",
            *rows,
        ]
    )


def _training(events: Sequence[Event]) -> str:
    steps = [event for event in events if isinstance(event, Step)]
    looks = [event for event in events if isinstance(event, Validation)]
    lines = ["## 4. Loss and accuracy in training", ""]
    if not steps:
        return "\n".join([*lines, "Not known yet: no step has been taken."])
    lines += [
        "| epoch | steps | first loss | mean loss | last loss | accuracy | validation accuracy |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for epoch in epochs_of(steps, looks):
        seen = epoch.validation
        validation = percent(seen.accuracy, 2) if seen else "no validation part"
        lines.append(
            f"| {epoch.number} | {epoch.steps} | {epoch.first_loss:.4f} | {epoch.mean_loss:.4f}"
            f" | {epoch.last_loss:.4f} | {percent(epoch.accuracy, 2)} | {validation} |"
        )
    lines += ["", "Accuracy is the running share of right answers, each batch judged before it is"]
    lines[-1] += " learnt from."
    return "\n".join(lines)


def _test(events: Sequence[Event], method: str) -> str:
    ends = [event for event in events if isinstance(event, Finished)]
    starts = [event for event in events if isinstance(event, Started)]
    title = "## 5. Test accuracy\n\n"
    if not ends or not starts:
        return title + "Not known yet: the run has not finished."
    end, start, test = ends[-1], starts[-1], ends[-1].test
    halved = "the products of the blocks" if method == "full" else "the frozen layers"
    recorded = ", its steps played from recordings (CUDA graphs)" if start.recorded else ""
    return (
        title + f"**{percent_with_interval(test)}** on messages that were never trained on; on the"
        f" training part {percent(end.train_accuracy, 2)}. A linear model on the same split:"
        f" {percent_with_interval(end.baseline)}. {beside_baseline(end)}\n\n"
        "|  | said ham | said spam |\n| --- | ---: | ---: |\n"
        f"| is ham | {test['tn']} | {test['fp']} |\n| is spam | {test['fn']} | {test['tp']} |\n\n"
        f"Of {start.test_size} test messages {start.near_test_messages} also stand in training:"
        f" {start.leaked_test_messages} letter for letter,"
        f" {start.near_test_messages - start.leaked_test_messages} nearly so.\n\n"
        f"Training took {end.train_seconds:.1f} s for {end.steps} steps on {start.device},"
        f" {halved} in {start.precision}{recorded}.\n\n" + _misclassified(test)
    )


RARE = 0.05
"""Chance below which a difference is called one, as is usual."""


def beside_baseline(end: Finished) -> str:
    """Whether the test can tell the model from the linear baseline: message by message, for both
    were judged on the same ones."""
    apart = paired(end.test, end.baseline)
    if not apart.only_first and not apart.only_second:
        return "The model and the linear baseline are right on the same messages."
    often = percent(apart.chance, 0 if apart.chance >= 0.1 else 1)
    told = (
        f"The model alone is right on {apart.only_first:,} of the test messages, the linear"
        f" baseline alone on {apart.only_second:,}: two equally good ones would differ so much or"
        f" more in {often} of such tests (McNemar's exact test)"
    )
    if apart.chance >= RARE:
        return f"{told}, so which of the two is better may be chance."
    better = "model" if apart.only_first > apart.only_second else "linear baseline"
    return f"The {better} is better. {told}."


def _misclassified(test: dict[str, Any]) -> str:
    wrong = test["misclassified"]
    if not wrong:
        return "No test message was misclassified."
    # Other people's text is shown as code, so that no Markdown, HTML or address in it acts.
    lines = [
        f"- {each['label']}, said with p(spam) {each['p_spam']:.3f}: {_code(each['text'])}"
        for each in wrong
    ]
    return "Misclassified:\n\n" + "\n".join(lines)


def _code(text: str) -> str:
    """`text` on one line as a code span that it cannot close."""
    line = " ".join(text.split())
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def _fence(text: str, shortest: int) -> str:
    """Backticks, at least `shortest`, that do not stand in `text`."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(shortest, longest + 1)


def _plain(text: str) -> str:
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"&#{ord(sign)};" if sign in "`*_[]\\$|~#!" else sign for sign in escaped)


def _settings(config: RunConfig) -> str:
    training, rows = config.training, []
    for name, about in all_knobs().items():
        if group_of(name) == "lora" and training.method != "lora":
            continue  # nothing was injected
        value = config.flat()[name]
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        told = f"{_plain(shown) or 'own'} {about.unit}".rstrip()
        if name == "learning_rate":
            told = f"{training.effective_learning_rate:g}"
        elif name in ("max_tokens", "max_steps") and not value:
            told = "no limit"
        rows.append(f"| {about.label} | {told} |")
    return "\n".join(["## Settings", "", "| knob | value |", "| --- | --- |", *rows])
