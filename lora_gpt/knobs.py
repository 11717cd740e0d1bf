"""How a knob is declared: a dataclass field with label, help, unit, range and choices beside it.

Values are checked when the dataclass is built. Which knobs there are stands in `config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


class BadValue(ValueError):
    """A knob was given a value that its rule refuses. `field` names the knob."""

    def __init__(self, field: str, rule: str, value: object):
        super().__init__(f"{field}: {rule}; got {value!r}")
        self.field, self.rule, self.value = field, rule, value


@dataclass(frozen=True)
class Knob:
    """What people are told of a field, and which values it takes."""

    label: str
    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Mapping[str, str] = field(default_factory=dict)


def knob(default: Any, label: str, help: str, **about: Any) -> Any:
    """A dataclass field with its `Knob` beside it."""
    return field(default=default, metadata={"knob": Knob(label, help, **about)})


def knobs(group: type) -> dict[str, Knob]:
    """The knobs of a group by field name, in order of declaration."""
    return {f.name: f.metadata["knob"] for f in fields(group) if "knob" in f.metadata}


class Group:
    """A dataclass of knobs that refuses bad values when it is built."""

    def __post_init__(self) -> None:
        for name, about in knobs(type(self)).items():
            default = type(self).__dataclass_fields__[name].default  # type: ignore[attr-defined]
            value = _checked(name, about, getattr(self, name), default)
            object.__setattr__(self, name, value)


def _checked(name: str, about: Knob, value: Any, default: Any) -> Any:
    """`value` in the type of `default`, or `BadValue`."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise BadValue(name, "must be true or false", value)
        return value
    if isinstance(default, tuple):
        return _checked_choices(name, about, value)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise BadValue(name, "must be text", value)
        if about.choices and value not in about.choices:
            raise BadValue(name, f"must be one of {', '.join(about.choices)}", value)
        return value
    return _checked_number(name, about, value, whole=isinstance(default, int))


def _checked_choices(name: str, about: Knob, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise BadValue(name, "must be a list", value)
    given = list(value)
    unknown = [each for each in given if not isinstance(each, str) or each not in about.choices]
    if unknown:
        raise BadValue(name, f"must be taken from {', '.join(about.choices)}", unknown[0])
    if not given:
        raise BadValue(name, f"must name at least one of {', '.join(about.choices)}", value)
    return tuple(each for each in about.choices if each in given)


def _checked_number(name: str, about: Knob, value: Any, whole: bool) -> float | int:
    kind = "a whole number" if whole else "a number"
    rule = f"must be {kind}"
    if about.minimum is not None and about.maximum is not None:
        rule = f"must be {kind} from {_shown(about.minimum)} to {_shown(about.maximum)}"
    elif about.minimum is not None:
        rule = f"must be {kind} of at least {_shown(about.minimum)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValue(name, rule, value)
    if value != value or abs(value) == float("inf"):
        raise BadValue(name, rule, value)
    if whole and value != int(value):
        raise BadValue(name, rule, value)
    if about.minimum is not None and value < about.minimum:
        raise BadValue(name, rule, value)
    if about.maximum is not None and value > about.maximum:
        raise BadValue(name, rule, value)
    return int(value) if whole else float(value)


def _shown(limit: float) -> str:
    """A limit with all its digits where it is whole."""
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"
