import json
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest

from lora_gpt.events import (
    KINDS,
    Adapter,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Step,
    Stopped,
    Validation,
    from_json,
    to_json,
)

EVENTS = [
    Progress("downloading the weights", 0.5, 1.0),
    Progress("evaluating", 3, 4, 12.5),
    Started(298, 149, 1195, 0, 299, 38, 51, 1_328_642, 125_768_450, "cpu", 2),
    Started(298, 149, 1195, 0, 299, 38, 51, 1_328_642, 125_768_450, "cuda", 2, 100),
    Step(0, 1, 1, 0.7, 0.5, 1e-3, 2.0, 200, 8, 0.5, 400.0, 16.0, 74.0),
    Validation(0, 0.6, 0.5),
    Checkpoint(100),
    Adapter(298),
    Finished(298, 9.5, 12.0, 0.99, None, {"accuracy": 0.97}, {"accuracy": 0.96}, 512.0),
    Finished(298, 9.5, 12.0, 0.99, {"auc": None, "interval": [0.9, 1.0]}, {}, {}, 512.0),
    Queued(),
    Resumed(100),
    Stopped(130),
    Failed('A sentence with "quotes", a line\nbreak and an Ω.'),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_its_line(event):
    """One event is one line, and the line is the event."""
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event and from_json(line + "\n") == event


def test_every_kind_is_tried_here():
    """An event that is added must stand in the list above, in `KINDS` and in `Event`."""
    assert {type(event) for event in EVENTS} == set(KINDS.values()) == set(get_args(Event))
    assert all(is_dataclass(kind) and kind.__doc__ for kind in KINDS.values())


def test_events_are_frozen():
    """Nobody who is handed an event can change it for the others."""
    assert all(kind.__dataclass_params__.frozen for kind in KINDS.values())


@pytest.mark.parametrize("kind", [Checkpoint, Adapter])
def test_files_never_enter_the_line(kind):
    """Tensors travel beside the JSON; two events differ by what they say, not by their files."""
    event = kind(4, {"adapter_model.safetensors": b"\x00weights"})
    assert json.loads(to_json(event)) == {"kind": kind.__name__.lower(), "step": 4}
    assert from_json(to_json(event)).files == {} and from_json(to_json(event)) == event
    assert "weights" not in repr(event)


def test_only_those_two_carry_files():
    assert {kind for kind in KINDS.values() if "files" in [f.name for f in fields(kind)]} == {
        Checkpoint,
        Adapter,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_know_are_refused(value):
    """NaN would make a line that other readers of JSON refuse."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(Validation(0, value, 0.5))


def test_a_loss_of_zero_is_a_loss():
    assert from_json(to_json(Validation(0, 0.0, 0.0))) == Validation(0, 0.0, 0.0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "5",
        "null",
        "[]",
        "{}",
        '{"kind": "stopped"',
        '{"kind": "stopped"}',
        '{"kind": "unheard of", "step": 1}',
        '{"kind": ["stopped"], "step": 1}',
        '{"kind": "stopped", "step": 1, "more": 2}',
        '{"kind": "stopped", "step": "1"}',
        '{"kind": "validation", "step": 1, "loss": null, "accuracy": 0.5}',
        '{"step": 1}',
        '{"kind": "adapter", "step": 1, "files": {"a": "b"}}',
        "[" * 200_000,
    ],
    ids=lambda line: line[:40],
)
def test_foreign_lines_are_refused(line):
    """What is not an event, whole and known, is refused with the line itself."""
    with pytest.raises(ValueError, match="events: every line must be an event; got"):
        from_json(line)
