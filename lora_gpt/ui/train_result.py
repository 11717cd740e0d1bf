"""What a finished training shows, as HTML: accuracy, the baseline beside it, mistakes.

Pure functions. Messages are text of strangers and are escaped. Knows nothing of gradio.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from lora_gpt.config import METHODS
from lora_gpt.events import Finished
from lora_gpt.report import beside_baseline
from lora_gpt.ui.train_state import Course
from lora_gpt.ui.train_view import stat
from lora_gpt.words import MEBIBYTE, fraction, percent, percent_with_interval, size

MOST_SHOWN = 40
"""Misclassified messages that are sent to the page; the report has them all."""


def result_html(course: Course) -> str:
    """What came out: accuracy, the baseline beside it, confusion and mistakes. Empty before."""
    end = course.finished
    if end is None:
        return ""
    return (
        f'<div class="result">{_headline(course, end)}<div class="two">'
        f'<div class="card"><h3>The test messages</h3>{confusion(end.test)}</div>'
        f'<div class="card"><h3>Beside the linear baseline</h3>{comparison(end)}</div></div>'
        f'<div class="card">{mistakes(end.test)}</div></div>'
    )


def _headline(course: Course, end: Finished) -> str:
    started = course.started
    trained, note = "", ""
    if started is not None:
        kind = "l" if course.config and course.config.training.method == "lora" else "h"
        share = fraction(started.trainable / started.total)
        method = METHODS[course.config.training.method] if course.config else "trained"
        note = f"{started.trainable:,} of {started.total:,}, {method}"
        trained = stat("trained share", share, note, kind)
    stats = [
        stat("test accuracy", percent(end.test["accuracy"]), _interval(end.test)),
        stat("linear baseline", percent(end.baseline["accuracy"]), _interval(end.baseline)),
        trained,
    ]
    words = " ".join([beside_baseline(end), *_beside(course)])
    return f'<div class="stats">{"".join(stats)}</div><p class="sub small">{words}</p>'


def _beside(course: Course) -> list[str]:
    """What the run with the other starting weights reached, once it is known."""
    twin = course.twin
    if twin is None or twin.finished is None or twin.config is None:
        return []
    start = "weights that never saw a text" if twin.config.init == "random" else "pretrained ones"
    return [f"The same training on {start}: {percent_with_interval(twin.finished.test)}."]


def _interval(measured: Mapping[str, Any]) -> str:
    return percent_with_interval(measured).partition("(")[2].removesuffix(")")


def confusion(measured: Mapping[str, Any]) -> str:
    """The four counts as a table; right ones in their class's colour, wrong ones named wrong."""

    def cell(key: str, kind: str, word: str) -> str:
        return f'<td class="cell {kind}"><b>{measured[key]:,}</b><small>{word}</small></td>'

    return (
        '<div class="scroll"><table class="plain confusion"><thead><tr><td></td>'
        '<th scope="col">called spam</th><th scope="col">called ham</th></tr></thead><tbody>'
        f'<tr><th scope="row">is spam</th>{cell("tp", "spam", "right")}'
        f"{cell('fn', 'wrong', 'missed')}</tr>"
        f'<tr><th scope="row">is ham</th>{cell("fp", "wrong", "false alarm")}'
        f"{cell('tn', 'ham', 'right')}</tr></tbody></table></div>"
    )


MEASURES = {
    "accuracy": ("Accuracy", "Share of the messages called right."),
    "precision": ("Precision", "Share of real spam in what was called spam."),
    "recall": ("Recall", "Share of the spam that was called spam."),
    "f1": ("F1", "Harmonic mean of precision and recall."),
    "mcc": ("MCC", "Matthews' correlation: 0 is guessing, 1 is perfect."),
    "auc": ("AUC", "Chance that a spam gets a higher probability than a ham."),
}


BASELINE = (
    "A model without a neural network, for comparison: how often words and pieces of words occur"
    " (TF-IDF), weighed by a linear support vector machine trained on the same messages."
)


def comparison(end: Finished) -> str:
    """The measures of the model and of the linear baseline, side by side."""

    def told(measured: Mapping[str, Any], name: str) -> str:
        value = measured[name]
        if value is None:
            return "not defined"
        return percent(value) if name in ("accuracy", "precision", "recall") else f"{value:.3f}"

    rows = [
        f'<tr><th scope="row">{label}</th>'
        f'<td class="n">{told(end.test, name)}</td>'
        f'<td class="n">{told(end.baseline, name)}</td></tr>'
        for name, (label, _) in MEASURES.items()
    ]
    extra = f"Training accuracy {percent(end.train_accuracy)}"
    if end.validation is not None:
        extra += f", validation accuracy {percent(end.validation['accuracy'])}"
    if end.peak_memory_mb is not None:
        extra += f", most memory of its process {size(MEBIBYTE * end.peak_memory_mb, 2)}"
    told_apart = "".join(
        f"<dt>{label}</dt><dd>{about}</dd>"
        for label, about in [*MEASURES.values(), ("Linear", BASELINE)]
    )
    return (
        '<div class="scroll"><table class="plain"><thead><tr><td></td>'
        '<th scope="col" class="n">this run</th>'
        '<th scope="col" class="n">linear</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<details><summary>What these words mean</summary><dl>{told_apart}</dl></details>"
        f'<p class="sub small">{extra}.</p>'
    )


def mistakes(measured: Mapping[str, Any]) -> str:
    """The messages called wrongly, the surest mistakes first, as text."""
    wrong = list(measured["misclassified"])
    if not wrong:
        return "<h3>Called wrongly</h3><p>None: every test message was called right.</p>"
    rows = [
        f'<tr><td><span class="tag {word}">{word}</span></td>'
        f'<td class="n">{percent(each["p_spam"])}</td><td>{escape(each["text"])}</td></tr>'
        for each in wrong[:MOST_SHOWN]
        for word in ("spam" if each["label"] == "spam" else "ham",)
    ]
    rest = len(wrong) - MOST_SHOWN
    more = f'<p class="sub small">{rest:,} more stand in the report.</p>' if rest > 0 else ""
    return (
        f"<h3>Called wrongly: {len(wrong):,} of {measured['size']:,}, the surest mistakes"
        " first</h3>"
        '<div class="scroll tall mistakes" tabindex="0" role="region"'
        ' aria-label="Messages called wrongly"><table class="plain"><thead><tr>'
        '<th scope="col">is</th><th scope="col" class="n">said spam</th>'
        '<th scope="col">message</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}"
    )
