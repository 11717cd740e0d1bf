"""Looking at a run: from the service's answers to a `Course`, and from a `Course` to figures.

Knows nothing of gradio; asks the service only for what is new.
"""

from dataclasses import replace

from lora_gpt import plots
from lora_gpt.service import SAMPLE_RUNS, Service
from lora_gpt.ui.train_state import Course, accuracy_lines, epochs_begin, fold, loss_lines
from lora_gpt.ui.train_view import run_choice
from lora_gpt.words import run_label


def attach(service: Service, run_id: str, owner: str) -> Course:
    """All that `run_id` has said so far, and its twin. Raises an OSError for no such run."""
    twin = service.twin(run_id, owner)
    beside = advance(service, _unread(service, twin, owner)) if twin else None
    return advance(service, replace(_unread(service, run_id, owner), twin=beside))


def _unread(service: Service, run_id: str, owner: str) -> Course:
    run = service.find(run_id)
    return Course(
        run=run.id,
        label=run_label(run.told_config()),
        config=run.config,
        mine=service.owns(run_id, owner),
        bundled=run.id in SAMPLE_RUNS,
    )


def advance(service: Service, course: Course) -> Course:
    """`course` with what it and its twin said since; the same object where nothing is new."""
    if course.twin is not None and course.twin.under_way:
        twin = _twin_now(service, course.twin)
        if twin is not course.twin:
            course = replace(course, twin=twin)
    look = service.since(course.run, course.offset)
    now = (look.offset, look.status, look.position)
    if now == (course.offset, course.status, course.position):
        return course
    offset, status, position = now
    return replace(fold(course, look.events), offset=offset, status=status, position=position)


def _twin_now(service: Service, twin: Course) -> Course | None:
    """The twin with what it said since; None where its folder has been deleted meanwhile."""
    try:
        return advance(service, twin)
    except (ValueError, OSError):
        return None


def choices(service: Service, owner: str, course: Course) -> list[tuple[str, str]]:
    """The list of runs as (words, id): one's own newest first, the bundled ones, a shared one."""
    own = service.runs(owner) if owner else []
    listed = [
        (f"{len(own) - place}. {run_choice(run, run.status)}", run.id)
        for place, run in enumerate(own)
    ]
    listed += [(run_choice(run, "bundled"), run.id) for run in service.sample_runs()]
    if course.run and course.run not in {run_id for _, run_id in listed}:
        listed.append((f"{course.label} (shared with you)", course.run))
    return listed


def figures(course: Course, smoothed: bool) -> tuple[plots.Figure | None, plots.Figure | None]:
    """The loss and the accuracy chart; None before the first step."""
    if course.started is None or not (course.steps or course.looks):
        return None, None
    steps, epochs = course.started.steps, epochs_begin(course)
    training, calm, validation = ((each.x, each.y) for each in loss_lines(course, smoothed))
    beside = _curve_of(course.twin, 0)
    loss = plots.loss_curve(training, calm, validation, steps, epochs, beside)
    training, validation = ((each.x, each.y) for each in accuracy_lines(course))
    beside = _curve_of(course.twin, 1)
    test = None
    if course.finished is not None:
        measured = course.finished.test
        low, high = measured["interval"]
        test = (100 * measured["accuracy"], 100 * low, 100 * high)
    return loss, plots.accuracy_curve(training, validation, steps, epochs, test, beside)


def _curve_of(twin: Course | None, which: int) -> tuple[str, plots.Curve] | None:
    """Name and curve of the twin: its loss (0) or accuracy (1) on the validation part, smoothed
    or of the training where there is none."""
    if twin is None or twin.config is None or not (twin.steps or twin.looks):
        return None
    _, calm, validation = loss_lines(twin, smoothed=True)
    lines = (calm, validation) if which == 0 else accuracy_lines(twin)
    told = lines[1] if lines[1].x else lines[0]
    name = "random start" if twin.config.init == "random" else "pretrained"
    return name, (told.x, told.y)
