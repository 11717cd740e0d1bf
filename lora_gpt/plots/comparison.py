"""Charts that compare ranks, models and finished runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lora_gpt.plots.style import (
    CARD,
    FILL,
    HEAD,
    INK,
    LEAD,
    LORA,
    SOFT,
    Figure,
    axis,
    layout,
    led_label,
    line,
    spread,
)
from lora_gpt.words import fraction, percent

METHOD_MARKS = {"lora": (FILL, "circle"), "head": (HEAD, "diamond"), "full": (INK, "square")}
"""Colour and shape of a run. Grey is what is frozen: where all is trained, nothing is."""
NAME_ROOM = 104
"""Pixels for the longest name of a model."""
SHARE_TICKS: dict[str, Any] = {
    "tickvals": [0.001, 0.01, 0.1, 1, 10, 100],
    "ticktext": ["0.001%", "0.01%", "0.1%", "1%", "10%", "100%"],
}


def fraction_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], marked: str, rank: int, height: int = 320
) -> Figure:
    """Trained share (0 to 1) over the rank, a line for each model, both axes logarithmic.

    The line of the model `marked` stands out and carries a point at `rank`. Lines end closer
    together than their names can stand, so a thin line leads from each end to its name.
    """
    data, notes = [], []
    tops = [math.log10(100 * points[-1][1]) for points in curves.values()]
    low = min(math.log10(100 * points[0][1]) for points in curves.values()) - 0.2
    placed = spread(tops, 18 * (2.1 - low) / (height - 60))  # 18 pixels a label, 60 for the axis
    for (name, points), at in zip(curves.items(), placed, strict=True):
        color, width = (FILL, 3) if name == marked else (SOFT, 1)
        trace = line([r for r, _ in points], [100 * f for _, f in points], color, width=width)
        trace["hovertemplate"] = f"{name}, rank %{{x}}: %{{y:.2f}}%<extra></extra>"
        data.append(trace)
        tone = LORA if name == marked else SOFT
        end = (math.log10(points[-1][0]), math.log10(100 * points[-1][1]))
        notes.append(led_label(*end, at, name, tone))
    here = dict(curves[marked])[rank]
    point: Figure = {"type": "scatter", "mode": "markers", "x": [rank], "y": [100 * here]}
    point["marker"] = {"color": FILL, "size": 12, "line": {"color": CARD, "width": 2}}
    point["hovertemplate"] = f"{marked}, rank %{{x}}: %{{y:.2f}}%<extra></extra>"
    ranks = [4**power for power in range(5)]
    across = axis("rank", type="log", tickvals=ranks, range=[0, math.log10(256)])
    upright = axis("trained share", type="log", range=[low, 2.1], **SHARE_TICKS)
    margin = {"l": 8, "r": NAME_ROOM + LEAD, "t": 12, "b": 8}
    framed = layout(across, upright, annotations=notes, margin=margin)
    return {
        "data": [*data, point],
        "layout": framed | {"hovermode": "closest"},
        "description": f"Trained share over the rank for {len(curves)} models; {marked} trains"
        f" {fraction(here)} at rank {rank}.",
    }


@dataclass(frozen=True)
class RunPoint:
    """A finished run in the chart. Shares are from 0 to 1."""

    label: str
    mark: str
    """Number or letter under which a table tells of it."""
    method: str
    fraction: float
    accuracy: float
    low: float
    high: float
    random_start: bool = False
    """Whether it began on weights that never saw a text; drawn hollow."""


def measured_runs(points: Sequence[RunPoint], height: int = 300) -> Figure | None:
    """Test accuracy over the trained share, with the 95% interval; None without a run.

    `height` is that of the whole chart, in pixels.
    """
    if not points:
        return None
    least = min(point.low for point in points)
    bottom = max(0, 10 * math.floor(10 * least) - (0 if least < 0.9 else 5))
    shares = [math.log10(100 * point.fraction) for point in points]
    across = axis("trained share", type="log", **SHARE_TICKS)
    left, right = min(-1.0, min(shares) - 0.4), max(1.0, max(shares) + 0.6)
    across["range"] = [left, right]
    upright = axis("test accuracy", ticksuffix="%", range=[bottom, 101])
    data = []
    for method, (color, symbol) in METHOD_MARKS.items():
        own = [point for point in points if point.method == method]
        if own:
            data.append(_run_marks(own, color, symbol))
    # 60 pixels for the axis, 15 for a line of text; a seventh of a phone for a mark and its lead.
    gap = 15 * (101 - bottom) / (height - 60)
    notes = [
        note
        for near in _neighbours(points, (right - left) / 7)
        for note in _marked(near, (right - left) / 35, gap, (bottom + gap / 2, 101 - gap / 2))
    ]
    best = max(points, key=lambda point: point.accuracy)
    return {
        "data": data,
        "layout": layout(across, upright, annotations=notes) | {"hovermode": "closest"},
        "description": f"Test accuracy of {len(points)} runs over their trained share; the highest"
        f" is {percent(best.accuracy)} of {best.label}.",
    }


def _neighbours(points: Sequence[RunPoint], reach: float) -> list[list[RunPoint]]:
    """The points in groups, across which no mark reaches: a step of `reach` decades lies between
    them."""
    groups: list[list[RunPoint]] = []
    for point in sorted(points, key=lambda point: point.fraction):
        if groups and math.log10(point.fraction / groups[-1][-1].fraction) < reach:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _marked(
    points: Sequence[RunPoint], lead: float, gap: float, limits: tuple[float, float]
) -> list[dict[str, Any]]:
    """The marks of points that stand near each other: `lead` decades right of all of them, each on
    a line of its own of the height `gap`, between `limits`. None where there is no room for all:
    pointing at a run tells of it."""
    low, high = limits
    beside = math.log10(100 * max(point.fraction for point in points)) + lead
    above = len(points) - 1
    if low + above * gap > high:
        return []
    points = sorted(points, key=lambda point: point.accuracy)
    placed = spread([100 * point.accuracy for point in points], gap)
    return [
        led_label(
            math.log10(100 * point.fraction),
            100 * point.accuracy,
            max(low + place * gap, min(at, high - (above - place) * gap)),
            escape(point.mark),
            SOFT,
        )
        | {"axref": "x", "ax": beside}
        for place, (point, at) in enumerate(zip(points, placed, strict=True))
    ]


def _run_marks(points: Sequence[RunPoint], color: str, symbol: str) -> dict[str, Any]:
    """The points of one method."""
    told = [
        f"{escape(point.mark)}. {escape(point.label)}<br>{percent(point.accuracy)} (95% interval"
        f" {100 * point.low:.1f} to {100 * point.high:.1f})<br>{fraction(point.fraction)} trained"
        for point in points
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * point.fraction for point in points],
        "y": [100 * point.accuracy for point in points],
        "customdata": told,
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": color,
            "symbol": [symbol + ("-open" if point.random_start else "") for point in points],
            "size": 11,
            "line": {"color": color, "width": 2},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [100 * (point.high - point.accuracy) for point in points],
            "arrayminus": [100 * (point.accuracy - point.low) for point in points],
            "color": color,
            "thickness": 1.5,
            "width": 5,
        },
    }
