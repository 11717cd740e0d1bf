"""One run as a viewer knows it so far: its events folded into a small plain state.

A viewer who comes back asks for the events from the beginning and arrives at the same state. Knows
nothing of pages, files or training.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lora_gpt.config import RunConfig
from lora_gpt.events import (
    Adapter,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Progress,
    Resumed,
    Started,
    Step,
    Stopped,
    Validation,
)

MOST_POINTS = 400
"""Points of a drawn curve; more cannot be told apart on a screen."""
MOST_LINES = 120
"""Log lines that are sent to the page."""
LOG_EVERY = 10
"""Batches between two log lines, as in the labs."""


@dataclass(frozen=True)
class Course:
    """What has been seen of a run. Without a run, everything is empty."""

    run: str = ""
    label: str = ""
    config: RunConfig | None = None
    mine: bool = False
    """Whether the viewer started the run, and so may stop and resume it."""
    bundled: bool = False
    """Whether it is one of the runs that come with the app."""
    offset: int = 0
    """Where to ask for more events."""
    status: str = ""
    position: int = 0
    steps: tuple[Step, ...] = ()
    looks: tuple[Validation, ...] = ()
    started: Started | None = None
    progress: Progress | None = None
    """What is under way outside the steps; None within them."""
    finished: Finished | None = None
    fault: str = ""
    has_adapter: bool = False
    saved: int = 0
    """Steps that the last checkpoint stands for."""
    twin: "Course | None" = None
    """A run that differs in its starting weights alone, drawn beside this one."""

    @property
    def done(self) -> int:
        """Steps taken, or those of the checkpoint that a resumed run goes on from."""
        if self.steps:
            return self.steps[-1].step + 1
        return self.started.first_step if self.started else 0

    @property
    def settled(self) -> bool:
        """Whether nothing more will be said, of this run and of the one beside it."""
        ended = self.status == "finished" and self.finished is not None
        return ended and (self.twin is None or not self.twin.under_way)

    @property
    def under_way(self) -> bool:
        return self.status in ("queued", "running")

    @property
    def resumable(self) -> bool:
        return self.status in ("stopped", "interrupted", "failed")

    @property
    def deletable(self) -> bool:
        return self.resumable or self.status == "finished"


def fold(course: Course, events: Iterable[Event]) -> Course:
    """`course` after `events`. A run that goes on from a checkpoint forgets what came after it."""
    steps, looks = list(course.steps), list(course.looks)
    known: dict[str, object] = {}
    for event in events:
        match event:
            case Step():
                steps.append(event)
                known["progress"] = None
            case Validation():
                looks.append(event)
            case Started() | Resumed():
                first = event.first_step if isinstance(event, Started) else event.step
                steps = [step for step in steps if step.step < first]
                # The look at step 0 is taken anew, the one at a checkpoint is not.
                looks = [look for look in looks if look.step <= first and first]
                known |= {"progress": None, "fault": "", "finished": None}
                if isinstance(event, Started):
                    known["started"] = event
            case Progress():
                known["progress"] = event
            case Checkpoint():
                known["saved"] = event.step
            case Adapter():
                known["has_adapter"] = True
            case Finished():
                known |= {"finished": event, "progress": None}
            case Stopped():
                known["progress"] = None
            case Failed():
                known |= {"fault": event.message, "progress": None}
    return replace(course, steps=tuple(steps), looks=tuple(looks), **known)  # type: ignore[arg-type]


# --- curves ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A curve to draw: `y` over the number of steps `x` that came before."""

    x: tuple[int, ...] = ()
    y: tuple[float, ...] = ()


def thin(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Places of at most `most` values, first, last and every spike among them.

    Of each stretch the lowest and the highest stay. Stretches are powers of two long and begin at
    fixed places, so that a growing curve changes only at its end.
    """
    if len(values) <= most:
        return list(range(len(values)))
    width = 2
    while 2 * math.ceil(len(values) / width) > most - 2:
        width *= 2
    kept = {0, len(values) - 1}
    for begin in range(0, len(values), width):
        stretch = range(begin, min(begin + width, len(values)))
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Running mean in which older values fade by `weight` a step, without a pull towards 0."""
    smoothed, mean, share = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        share = weight * share + (1 - weight)
        smoothed.append(mean / share)
    return smoothed


def line(steps: Sequence[Step], values: Sequence[float]) -> Line:
    """The thinned curve of `values`, one for each of `steps`."""
    places = thin(values)
    # Four digits are more than a screen shows, and half of what would be sent.
    return Line(
        tuple(steps[i].step for i in places), tuple(float(f"{values[i]:.4g}") for i in places)
    )


def loss_lines(course: Course, smoothed: bool = False) -> tuple[Line, Line, Line]:
    """Loss in training, the same smoothed (empty unless asked for), and in validation."""
    losses = [step.loss for step in course.steps]
    calm = line(course.steps, smooth(losses)) if smoothed else Line()
    return line(course.steps, losses), calm, _looks(course, "loss")


def accuracy_lines(course: Course) -> tuple[Line, Line]:
    """Running accuracy of the epoch in training, and accuracy in validation, in percent."""
    training = line(course.steps, [100 * step.accuracy for step in course.steps])
    seen = _looks(course, "accuracy")
    return training, Line(seen.x, tuple(round(100 * value, 2) for value in seen.y))


def _looks(course: Course, name: str) -> Line:
    return Line(
        tuple(look.step for look in course.looks),
        tuple(float(f"{getattr(look, name):.4g}") for look in course.looks),
    )


def epochs_begin(course: Course, most: int = 12) -> list[int]:
    """Steps at which the second and later epochs begin; none where they would crowd the chart."""
    if course.started is None:
        return []
    begins = list(range(0, course.started.steps, course.started.steps_per_epoch))[1:]
    return begins if len(begins) < most else []


# --- the log -----------------------------------------------------------------------------------


def log_lines(course: Course) -> list[str]:
    """The last lines of the run's log: every tenth batch, and every look at the validation part."""
    lines: list[tuple[float, str]] = []
    for step in course.steps:
        if step.batch == 1 or step.batch % LOG_EVERY == 0:
            text = f"Epoch {step.epoch} | Batch {step.batch} | Loss: {step.loss:.4f}"
            lines.append((step.step + 0.5, text))
    per_epoch = course.started.steps_per_epoch if course.started else 0
    for look in course.looks:
        epoch = max(0, look.step - 1) // per_epoch + 1 if per_epoch else 1
        text = (
            f"Epoch {epoch} | Validation after {look.step:,} steps | Loss: {look.loss:.4f}"
            f" | Accuracy: {100 * look.accuracy:.2f}%"
        )
        lines.append((look.step, text))
    texts = [text for _, text in sorted(lines, key=lambda each: each[0])]
    if len(texts) > MOST_LINES:
        return [f"({len(texts) - MOST_LINES:,} earlier lines)", *texts[-MOST_LINES:]]
    return texts
