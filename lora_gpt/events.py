"""What a training run says: plain frozen dataclasses, each one JSON line.

The run folder's `events.jsonl` is a sequence of these. Knows nothing of torch, files or pages; the
two events that carry tensors (`Checkpoint`, `Adapter`) can write them as `files`, which never
enter the JSON: whoever consumes the events decides where tensors go.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

Write = Callable[[Path], None]
"""Writes a file to a path that it is given; OSError where that cannot be. The tensors are those of
the training, not a copy: to be called before the next event is asked for."""


@dataclass(frozen=True)
class Progress:
    """Something long before or after the training: how far it is, how long it will still take."""

    stage: str
    """Plain words: 'downloading the weights', 'evaluating'."""
    done: float
    total: float
    """Same unit as `done`; 0 where it is not known."""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Started:
    """Everything that is known before the first step."""

    steps: int
    steps_per_epoch: int
    train_size: int
    validation_size: int
    test_size: int
    leaked_test_messages: int
    """Test messages that also stand in training, letter for letter."""
    near_test_messages: int
    """Test messages with a nearly equal one in training, the letter-for-letter ones included."""
    trainable: int
    total: int
    device: str
    threads: int
    first_step: int = 0
    """Where a resumed run goes on."""
    precision: str = "float32"
    """Of the frozen layers' products."""
    recorded: bool = False
    """Whether the steps are played from recordings, as CUDA graphs."""


@dataclass(frozen=True)
class Step:
    """One step of the optimizer. Losses in nats a message, before the step's update."""

    step: int
    """Counted from 0."""
    epoch: int
    """Counted from 1."""
    batch: int
    """Within its epoch, counted from 1."""
    loss: float
    accuracy: float
    """Running share of right answers in this epoch, each batch judged before its update."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Real tokens in the batch, pads not counted."""
    messages: int
    seconds: float
    """Training time so far, validation left out."""
    tokens_per_second: float
    """Over the last ten steps."""
    messages_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Validation:
    """A look at the validation part after `step` steps."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One epoch in figures. Losses in nats a message."""

    number: int
    """Counted from 1."""
    steps: int
    first_loss: float
    mean_loss: float
    last_loss: float
    accuracy: float
    """Share of right answers, each batch judged before its update."""
    validation: Validation | None
    """The last look at the validation part until its end."""


def epochs_of(steps: Iterable[Step], looks: Iterable[Validation]) -> list[Epoch]:
    """The epochs that `steps` belong to, the one under way included.

    Where a run was stopped and resumed, the later word on a step counts.
    """
    by_step = {each.step: each for each in steps}
    seen = sorted({each.step: each for each in looks}.items())
    by_epoch: dict[int, list[Step]] = {}
    for _, step in sorted(by_step.items()):
        by_epoch.setdefault(step.epoch, []).append(step)
    return [
        Epoch(
            number=number,
            steps=len(own),
            first_loss=own[0].loss,
            mean_loss=sum(step.loss for step in own) / len(own),
            last_loss=own[-1].loss,
            accuracy=own[-1].accuracy,
            validation=next((look for at, look in reversed(seen) if at <= own[-1].step + 1), None),
        )
        for number, own in by_epoch.items()
    ]


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to go on after `step` steps, as one safetensors file."""

    step: int
    files: dict[str, Write] = field(default_factory=dict, compare=False, repr=False)
    """By file name."""


@dataclass(frozen=True)
class Adapter:
    """What was trained, in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""

    step: int
    files: dict[str, Write] = field(default_factory=dict, compare=False, repr=False)
    """By file name."""


@dataclass(frozen=True)
class Finished:
    """The end: metrics of every part as `core.evaluation.Metrics` writes them, and the costs."""

    steps: int
    train_seconds: float
    """Training steps alone."""
    seconds: float
    """From the first line of `train` to its last, loading and evaluation included."""
    train_accuracy: float
    """Accuracy of the finished model on the training part."""
    validation: dict[str, Any] | None
    test: dict[str, Any]
    baseline: dict[str, Any]
    """The linear model on the same split."""
    peak_memory_mb: float | None
    """Peak resident memory of the process (CPU) or of the device's allocator (CUDA); None where the
    system does not tell."""


@dataclass(frozen=True)
class Queued:
    """The run waits for a worker."""


@dataclass(frozen=True)
class Resumed:
    """The run goes on from its checkpoint."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """The run was stopped by its owner after `step` steps; it can be resumed."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The run ended in a fault. `message` is one sentence for people; details stand in the log."""

    message: str


Event = (
    Progress
    | Started
    | Step
    | Validation
    | Checkpoint
    | Adapter
    | Finished
    | Queued
    | Resumed
    | Stopped
    | Failed
)
KINDS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (
        Progress,
        Started,
        Step,
        Validation,
        Checkpoint,
        Adapter,
        Finished,
        Queued,
        Resumed,
        Stopped,
        Failed,
    )
}


def checked(value: object) -> Any:
    """A dataclass as it is. Raises TypeError where a field is of another type than declared."""
    accepts = _accepted(type(value))  # type: ignore[arg-type] # a class is hashable
    for name, accepted in accepts.items():
        if not isinstance(getattr(value, name), accepted):
            raise TypeError(f"{name}: must be {accepted}; got {getattr(value, name)!r}")
    return value


@cache
def _accepted(kind: type) -> dict[str, tuple[type, ...]]:
    """The types that each field takes: JSON may write a float without a point."""
    found = {}
    for each in fields(kind):
        parts = get_args(each.type) if isinstance(each.type, UnionType) else (each.type,)
        plain = tuple(get_origin(part) or part for part in parts)
        found[each.name] = (*plain, int) if float in plain else plain
    return found


def to_json(event: Event) -> str:
    """One line of JSON with the event's kind; `files` are left out."""
    values = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "files"}
    return json.dumps({"kind": type(event).__name__.lower()} | values, allow_nan=False)


def from_json(line: str) -> Event:
    """The inverse of `to_json`. Raises ValueError for a line that is not an event."""
    try:
        values = json.loads(line)
        kind = KINDS[values.pop("kind")]
        if "files" in values:
            raise KeyError("files")  # tensors never stand in a line
        return checked(kind(**values))
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"events: every line must be an event; got {line[:80]!r}") from error
