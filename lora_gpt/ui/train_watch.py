"""Looking at a run: from the service's answers to a `Course`, and from a `Course` to figures.

Knows nothing of gradio; asks the service only for what is new.
"""

from dataclasses import replace

from lora_gpt import plots
from lora_gpt.service import Service, run_label
from lora_gpt.ui.train_state import Course, accuracy_lines, epochs_begin, fold, loss_lines
from lora_gpt.ui.train_view import run_choice


def attach(service: Service, run_id: str, owner: str) -> Course:
    """All that `run_id` has said so far. Raises an OSError for no such run."""
    run = service.find(run_id)
    mine = service.owns(run_id, owner)
    known = Course(run=run.id, label=run_label(run.config), config=run.config, mine=mine)
    return advance(service, known)


def advance(service: Service, course: Course) -> Course:
    """`course` with what was said since; the same object where nothing is new."""
    look = service.since(course.run, course.offset)
    now = (look.offset, look.status, look.position)
    if now == (course.offset, course.status, course.position):
        return course
    offset, status, position = now
    return replace(fold(course, look.events), offset=offset, status=status, position=position)


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
    loss = plots.loss_curve(training, calm, validation, steps, epochs)
    training, validation = ((each.x, each.y) for each in accuracy_lines(course))
    test = None
    if course.finished is not None:
        measured = course.finished.test
        low, high = measured["interval"]
        test = (100 * measured["accuracy"], 100 * low, 100 * high)
    return loss, plots.accuracy_curve(training, validation, steps, epochs, test)
