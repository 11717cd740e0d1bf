"""Charts of a training: loss, accuracy, lengths of the messages."""

from collections.abc import Sequence
from typing import Any

from lora_gpt.plots.style import (
    CARD,
    FILL,
    HAM,
    HEAD,
    INK,
    LINE,
    LORA,
    SOFT,
    SPAM,
    Figure,
    axis,
    end_label,
    layout,
    line,
    spread,
)

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of a line."""

LABEL_ROOM = 124
"""Pixels to the right of a chart for the labels at the ends of its lines."""


def loss_curve(
    training: Curve,
    calm: Curve,
    validation: Curve,
    steps: int,
    epochs: Sequence[int] = (),
    beside: tuple[str, Curve] | None = None,
) -> Figure:
    """Loss in nats over the steps of a run: each batch's solid, smoothed as `calm`, validation
    dashed.

    With a smoothed line the bare one stays behind it, faint, so that no spike is hidden. `beside`
    is the name and the curve of another run, dotted and grey.
    """
    told = calm if calm[0] else training
    traces: list[dict[str, Any]] = [line(*training, f"{FILL} / 0.35", width=1)] if calm[0] else []
    traces += [line(*told, FILL), line(*validation, HEAD, dash=True)]
    now = "smoothed" if calm[0] else "last batch"
    ends = [(now, told, LORA, ".3f"), ("validation", validation, HEAD, ".3f")]
    if beside is not None:
        traces.append(_other(beside[1]))
        ends.append((*beside, SOFT, ".3f"))
    highest = max((max(y) for _, (_, y), _, _ in (*ends, ("", training, "", "")) if y), default=1.0)
    return _run_chart(traces, ends, (0.0, 1.05 * highest or 1.0), steps, epochs) | {
        "description": _described("Loss over steps", ends)
    }


def accuracy_curve(
    training: Curve,
    validation: Curve,
    steps: int,
    epochs: Sequence[int] = (),
    test: tuple[float, float, float] | None = None,
    beside: tuple[str, Curve] | None = None,
) -> Figure:
    """Accuracy in percent over the steps; `test` is the accuracy at the end and its interval,
    `beside` the name and the curve of another run."""
    traces = [line(*training, FILL), line(*validation, HEAD, dash=True)]
    ends = [("epoch so far", training, LORA, ".1f"), ("validation", validation, HEAD, ".1f")]
    if beside is not None:
        traces.append(_other(beside[1]))
        ends.append((*beside, SOFT, ".1f"))
    seen = [value for _, (_, y), _, _ in ends for value in y]
    if test is not None:
        share, low, high = test
        reach = {"type": "data", "array": [high - share], "arrayminus": [share - low]}
        marker = {"color": INK, "size": 9, "symbol": "diamond"}
        point: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": [steps], "y": [share]}
        point["cliponaxis"] = False
        traces.append(point | {"marker": marker, "error_y": reach | {"color": INK, "width": 5}})
        ends.append(("test", ([steps], [share]), INK, ".1f"))
        seen.append(low)
    lowest = 10 * (min(seen, default=50.0) // 10)
    return _run_chart(traces, ends, (lowest, 101.0), steps, epochs, "%") | {
        "description": _described("Accuracy in percent over steps", ends)
    }


def _other(curve: Curve) -> dict[str, Any]:
    """Another run's line, which may not be taken for this one's."""
    drawn = line(*curve, SOFT)
    drawn["line"]["dash"] = "2px,3px"
    return drawn


def _run_chart(
    traces: list[dict[str, Any]],
    ends: Sequence[tuple[str, Curve, str, str]],
    limits: tuple[float, float],
    steps: int,
    epochs: Sequence[int],
    unit: str = "",
) -> Figure:
    """Lines over the steps of a run in a frame that stays, each named at its end."""
    for trace in traces:
        trace.setdefault("hovertemplate", f"step %{{x:,}}: %{{y:.4~g}}{unit}<extra></extra>")
    known = [(name, y[-1], color, form) for name, (x, y), color, form in ends if x]
    low, high = limits
    # Plotly drops what stands outside the axes.
    heights = [
        min(max(height, low), high)
        for height in spread([y for _, y, _, _ in known], 0.085 * (high - low))
    ]
    # All labels stand right of the longest line, so that none lies on a line.
    reached = max((x[-1] for _, (x, _), _, _ in ends if x), default=0)
    notes = [
        end_label(reached, height, f"{name} {y:{form}}{unit}", color)
        for (name, y, color, form), height in zip(known, heights, strict=True)
    ]
    # A line where each epoch begins, named at its foot, where the curves seldom are.
    marks = [
        {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        | {"line": {"color": LINE, "width": 1, "dash": "dot"}}
        for x in epochs
    ]
    notes += [
        end_label(x, 0, f"epoch {number}", SOFT, yref="paper", yanchor="bottom", xshift=2)
        for number, x in enumerate(epochs, 2)
    ]
    across = axis("steps", range=[0, max(1, steps)], tickformat=",d", nticks=6)
    upright = axis(range=list(limits), ticksuffix=unit, nticks=6)
    margin = {"l": 8, "r": LABEL_ROOM, "t": 12, "b": 8}
    framed = layout(across, upright, annotations=notes, shapes=marks, margin=margin)
    return {"data": traces, "layout": framed | {"hovermode": "closest"}}


def _described(what: str, ends: Sequence[tuple[str, Curve, str, str]]) -> str:
    """The chart in a sentence for screen readers."""
    now = [f"{name} {y[-1]:{form}} after {x[-1]:,} steps" for name, (x, y), _, form in ends if x]
    return f"{what}: {', '.join(now)}." if now else f"{what}: nothing yet."


def lengths(spam: Sequence[int], ham: Sequence[int], limit: int, bars: int = 14) -> Figure:
    """How many messages of each class are how many tokens long; longer than `limit` count as it."""
    cut = {"spam": [min(n, limit) for n in spam], "ham": [min(n, limit) for n in ham]}
    longest = max((n for each in cut.values() for n in each), default=1)
    width = next(w for w in (1, 2, 5, 10, 20, 50, 100, 200) if w * bars >= longest or w == 200)
    begins = list(range(0, longest + 1, width))
    told = [f"{b:,} to {b + width - 1:,}" if width > 1 else f"{b:,}" for b in begins]
    middles = [begin + width / 2 for begin in begins]
    traces: list[dict[str, Any]] = []
    for name, color, pattern in (("spam", SPAM, "/"), ("ham", HAM, "")):
        counts = [0] * len(begins)
        for n in cut[name]:
            counts[n // width] += 1
        look: dict[str, Any] = {"color": color, "line": {"color": color, "width": 1}}
        if pattern:
            hatch = {"shape": pattern, "fgcolor": color, "bgcolor": CARD, "solidity": 0.6}
            look["pattern"] = hatch
        bar: dict[str, Any] = {
            "type": "bar",
            "x": middles,
            "y": counts,
            "customdata": told,
            "marker": look,
        }
        hover = f"%{{y:,}} {name} of %{{customdata}} tokens<extra></extra>"
        traces.append(bar | {"hovertemplate": hover})
    drawn = layout(axis("tokens a message", tickformat=",d"), axis("messages", tickformat=",d"))
    middle = {name: sorted(values)[len(values) // 2] for name, values in cut.items() if values}
    words = ", ".join(f"{name} {value:,}" for name, value in middle.items())
    return {
        "data": traces,
        "layout": drawn | {"barmode": "group", "bargap": 0.15},
        "description": f"Lengths of the messages in tokens; medians: {words}.",
    }
