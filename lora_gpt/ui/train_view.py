"""What the Train tab shows of a run, as HTML: pure functions of plain values.

Every text that a visitor or a file could have written is escaped here. Knows nothing of gradio.
"""

from html import escape
from urllib.parse import quote

from lora_gpt.config import RunConfig
from lora_gpt.events import epochs_of
from lora_gpt.service import Plan, RunSummary
from lora_gpt.ui.train_state import Course
from lora_gpt.words import MEBIBYTE, about_duration, duration, fraction, labelled, percent, size


def stat(name: str, value: str, note: str = "", kind: str = "") -> str:
    """One number in its card, all safe HTML; `kind` l is LoRA's colour, h the head's."""
    mark = f' class="{kind}"' if kind else ""
    under = f'<small class="under">{note}</small>' if note else ""
    return f'<div class="stat"><small>{name}</small><strong{mark}>{value}</strong>{under}</div>'


# --- before the start --------------------------------------------------------------------------


def plan_html(plan: Plan, config: RunConfig, runs: int = 1) -> str:
    """What a run would do and cost here; `runs` of the same size follow each other."""
    kind = "l" if config.training.method == "lora" else "h"
    share = fraction(plan.trainable / plan.total)
    epochs = plan.steps / plan.steps_per_epoch
    passes = f"{round(epochs, 2):g} epochs" if epochs != 1 else "1 epoch"
    each = " each" if runs > 1 else ""
    device = escape(plan.device + (", 16 bits" if plan.precision == "bfloat16" else ""))
    stats = [
        stat(f"steps{each}", f"{plan.steps:,}", f"{passes} of {plan.steps_per_epoch:,}"),
        stat("trained", f"{plan.trainable:,}", f"{share} of {plan.total:,}", kind),
        stat("time, about", about_duration(runs * plan.seconds), f"measured here, on {device}"),
        stat("memory, about", size(MEBIBYTE * plan.memory_mb, 2), "most of its process"),
    ]
    several = f"{runs} runs, one after the other: the time is that of all. " if runs > 1 else ""
    note = (
        f'<p class="sub small">{several}Loading the weights and the measurement at the end come on'
        " top.</p>"
    )
    return f'<div class="plan"><div class="stats">{"".join(stats)}</div>{note}</div>'


def refusal_html(sentence: str) -> str:
    """Why there is no plan; `sentence` is safe HTML already."""
    return f'<div class="card refusal" role="status"><b>Not yet possible.</b> {sentence}</div>'


def scale_html(config: RunConfig) -> str:
    """The scale of the update with its arithmetic."""
    lora = config.lora
    root = f"√{lora.rank}" if lora.rank_stabilised else f"{lora.rank}"
    return (
        f'<p class="scale">Scale alpha / {"√r" if lora.rank_stabilised else "r"}'
        f" <b>{lora.alpha:g} / {root} = {lora.scale:.4g}</b></p>"
    )


# --- under way -----------------------------------------------------------------------------------

STATUS_KIND = {"running": "l", "finished": "ham", "failed": "spam"}


def progress_html(course: Course) -> str:
    """Where the run stands: its status, a bar, and what can be done next."""
    if not course.run:
        return ""
    share, words = standing(course)
    kind = STATUS_KIND.get(course.status, "")
    percents = round(100 * share)
    return (
        f'<div class="card progress"><p class="sub small">{escape(course.label)}</p>'
        f'<p><span class="tag {kind}">{escape(course.status)}</span> {words}</p>'
        f'<div class="bar" role="progressbar" aria-label="Training" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{percents}">'
        f'<i class="l" style="width:{100 * share:.2f}%"></i></div>'
        f'<p class="sub small">{_sharing(course)}</p></div>'
    )


def _sharing(course: Course) -> str:
    address = f'<a href="?run={quote(course.run)}">'
    if course.mine:
        return f"Let others watch it: {address}link to this run</a>"
    if course.bundled:
        return f"This run comes with the app, trained beforehand. {address}Link to this run</a>"
    return (
        "This run was started elsewhere. You can watch it and take its files; only the browser that"
        f" started it can stop or delete it. {address}Link to this run</a>"
    )


def standing(course: Course) -> tuple[float, str]:
    """How much is done, from 0 to 1, and the sentence beside it."""
    steps = course.started.steps if course.started else 0
    share = course.done / steps if steps else 0.0
    at = f"at step {course.done:,} of {steps:,}" if course.done else "before the first step"
    saved = f"goes on from step {course.saved:,}, the last that was saved"
    resume = f"Resume {saved if course.saved else 'starts it over'}." if course.mine else ""
    match course.status:
        case "queued":
            place = "next" if course.position < 2 else f"number {course.position:,} in the queue"
            return share, f"Waits for its turn: <b>{place}</b>. It starts by itself."
        case "running":
            return _running(course, share)
        case "finished":
            return 1.0, _finished(course)
        case "stopped":
            return share, f"Stopped {at}. {resume}"
        case "failed":
            reason = escape(labelled(course.fault)) or "The reason was not recorded."
            help = "Change the settings and start anew, or resume to try again."
            return share, f"Failed {at}. {reason} {help if course.mine else ''}"
        case "interrupted":
            return share, (
                f"Interrupted {at}: the server was restarted or ran out of memory. {resume}"
            )
    return share, ""


def _running(course: Course, share: float) -> tuple[float, str]:
    news = course.progress
    if news is not None:
        left = f", {duration(news.seconds_left)} left" if news.seconds_left else ""
        told = percent(news.done / news.total, 0) if news.total else ""
        # A measurement counts tokens, a download bytes: both have a share.
        stage = escape(news.stage[:1].upper() + news.stage[1:])
        words = f"{stage}{' ' + told if told and news.done else ''}{left}"
        within = news.done / news.total if news.total else 0.0
        return (share if course.steps else within), f"<b>{words}</b>"
    if not course.steps:
        return share, "Takes the first step." if course.started else "Getting ready."
    last = course.steps[-1]
    epochs = course.config.training.epochs if course.config else last.epoch
    steps = course.started.steps if course.started else last.step + 1
    return share, (
        f"<b>step {course.done:,} of {steps:,}</b>, epoch {last.epoch} of {epochs},"
        f" {duration(last.seconds_left)} left,"
        f" {last.tokens_per_second:,.0f} tokens/s, {last.messages_per_second:,.1f} messages/s"
    )


def _finished(course: Course) -> str:
    end = course.finished
    if end is None:
        return "Finished."
    return (
        f"Finished: {end.steps:,} steps in {duration(end.train_seconds)},"
        f" {duration(end.seconds)} with loading and measuring."
    )


# --- what was learnt, epoch by epoch ------------------------------------------------------------


def status_words(course: Course) -> str:
    """The run's status in a sentence that changes with it alone, for screen readers."""
    return f"{escape(course.label)}: {escape(course.status)}." if course.run else ""


def epochs_html(course: Course) -> str:
    """Loss and accuracy of every epoch as a table, with what the words mean. Empty before."""
    found = epochs_of(course.steps, course.looks)
    if not found:
        return ""
    rows = []
    for epoch in found:
        look = epoch.validation
        seen = (f"{look.loss:.3f}", percent(look.accuracy)) if look else ("none", "none")
        values = (f"{epoch.mean_loss:.3f}", percent(epoch.accuracy), *seen)
        cells = "".join(f'<td class="n">{value}</td>' for value in values)
        rows.append(f'<tr><th scope="row">{epoch.number}</th>{cells}</tr>')
    heads = "".join(
        f'<th scope="col"{" class=n" if name != "epoch" else ""}>{name}</th>'
        for name in (
            "epoch",
            "training loss",
            "training accuracy",
            "validation loss",
            "validation accuracy",
        )
    )
    end = course.finished
    after = f" The finished model calls {percent(end.train_accuracy)} of them right." if end else ""
    dotted = (
        " The dotted grey line is the other run, on its validation part." if course.twin else ""
    )
    return (
        '<h3>Epoch by epoch</h3><div class="scroll"><table class="plain"><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="sub small">Training loss is the mean over the epoch, training accuracy the share'
        " of its messages called right: each batch is judged before it is learnt from, so both lag"
        f" behind the model.{after} The charts show the loss of every batch and the accuracy of the"
        f" epoch so far.{dotted}</p>"
    )


# --- the list of runs ----------------------------------------------------------------------------


def run_choice(summary: RunSummary, status: str) -> str:
    """One line of the list: what it is, its status, and its test accuracy."""
    if summary.finished is not None:
        status += f", {percent(summary.finished.test['accuracy'])} in test"
    return f"{summary.label} ({status})"
