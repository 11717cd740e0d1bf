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
    short: str
    method: str
    fraction: float
    accuracy: float
    low: float
    high: float
    random_start: bool = False
    """Whether it began on weights that never saw a text; drawn hollow."""


def measured_runs(points: Sequence[RunPoint]) -> Figure | None:
    """Test accuracy over the trained share, with the 95% interval; None without a run."""
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
            data.append(_run_marks(own, color, symbol, 10 ** (0.4 * left + 0.6 * right)))
    best = max(points, key=lambda point: point.accuracy)
    return {
        "data": data,
        "layout": layout(across, upright) | {"hovermode": "closest"},
        "description": f"Test accuracy of {len(points)} runs over their trained share; the highest"
        f" is {percent(best.accuracy)} of {best.label}.",
    }


def _run_marks(points: Sequence[RunPoint], color: str, symbol: str, far: float) -> dict[str, Any]:
    """The points of one method; names are shown only where few points leave room for them.

    Right of `far`, in percent trained, a name stands before its point: the frame would cut it.
    """
    shares = [100 * point.fraction for point in points]
    told = [
        f"{escape(point.label)}<br>{percent(point.accuracy)} (95% interval {100 * point.low:.1f} to"
        f" {100 * point.high:.1f})<br>{fraction(point.fraction)} trained"
        for point in points
    ]
    return {
        "type": "scatter",
        "mode": "markers+text" if len(points) <= 6 else "markers",
        "x": shares,
        "y": [100 * point.accuracy for point in points],
        "text": [escape(point.short) for point in points],
        "textposition": ["middle left" if share > far else "middle right" for share in shares],
        "textfont": {"color": SOFT, "size": 12},
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
