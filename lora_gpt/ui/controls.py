"""Config fields <-> widgets: every label, help, range and choice comes from the knob itself.

Knows nothing of what a knob does.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import gradio as gr

from lora_gpt.config import GROUPS, Knob, RunConfig, all_knobs, group_of
from lora_gpt.ui.errors import complaint

__all__ = ["complaint", "config_from", "control", "default_of"]

MOST_SLIDER_STEPS = 1024


def _as_sent(self: gr.Slider, payload: Any) -> Any:
    """The value is judged by the knob's own rule: Gradio's answer to a box that was emptied
    for a moment is an exception, and its sentence for a bound names no field."""
    return payload


# Not a class of our own: Gradio writes a file beside each that it finds.
gr.Slider.preprocess = _as_sent  # type: ignore[method-assign]


def default_of(name: str) -> Any:
    """What the knob `name` is in a run that nobody changed. Raises BadValue for no such knob."""
    group: Any = GROUPS.get(group_of(name), RunConfig)
    return next(each.default for each in fields(group) if each.name == name)


def control(name: str, value: Any = None, **more: Any) -> Any:
    """The widget for the knob `name`; None starts at the default.

    `more` goes to the widget and may narrow `minimum`, `maximum` and `step`. Raises BadValue for no
    such knob.
    """
    default, about = default_of(name), all_knobs()[name]
    value = default if value is None else value
    unit = f" ({about.unit})" if about.unit else ""
    words: dict[str, Any] = {"label": about.label + unit, "info": about.help} | more
    choices = [(label, key) for key, label in about.choices.items()]
    if isinstance(default, bool):
        return gr.Checkbox(value=value, **words)
    if isinstance(default, tuple):
        return gr.CheckboxGroup(**({"choices": choices, "value": list(value)} | words))
    if isinstance(default, str):
        if not choices:
            return gr.Textbox(value=value, **words)
        return gr.Dropdown(**{"choices": choices, "value": value, "filterable": False} | words)
    return _number(about, value, words)


def _number(about: Knob, value: float, words: dict[str, Any]) -> Any:
    """A slider where the range is short and its steps start at a round value, else a number box,
    which rounds nothing: half a step is refused by the knob, not taken for none."""
    limits = {"minimum": about.minimum, "maximum": about.maximum, "step": about.step}
    limits = {name: words.pop(name, limit) for name, limit in limits.items()}
    low, high, step = limits.values()
    if low is None or high is None or not step or (high - low) / step > MOST_SLIDER_STEPS:
        return gr.Number(value=value, **words)
    # A browser counts a slider's steps from its minimum: 0.1, 1.1, 2.1 would help nobody.
    if abs(low / step - round(low / step)) > 1e-9:
        return gr.Number(value=value, **words)
    return gr.Slider(low, high, value, step=step, **words)


def config_from(names: Sequence[str], values: Sequence[Any], base: RunConfig) -> RunConfig:
    """`base` with the knobs `names` set to the widgets' `values`; raises BadValue."""
    return base.changed(**dict(zip(names, values, strict=True)))
