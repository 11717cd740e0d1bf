"""Values -> plotly figures as plain dicts {data, layout, description}.

Pure functions: no gradio, no plotly objects. Colours are CSS variables of the page, resolved in the
browser. Every chart looks the same: light grid, no frame, no legend box, lines labelled at their
ends, training solid and validation dashed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

Figure = dict[str, Any]

INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
FROZEN, LORA, FILL, HEAD = "var(--frozen)", "var(--lora)", "var(--fill)", "var(--head)"
SPAM, HAM, CARD = "var(--spam)", "var(--ham)", "var(--card)"


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis in the page's style; `more` are plotly's own settings and win."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"color": SOFT, "size": 12}},
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "tickfont": {"color": SOFT, "size": 12},
        "automargin": True,
    } | more


def layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The layout that all charts share; `more` are plotly's own settings and win."""
    return {
        "xaxis": {"showgrid": False} | x,
        "yaxis": y,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "hoverlabel": {"bgcolor": CARD, "bordercolor": LINE, "font": {"color": INK}},
        "showlegend": False,
    } | more


def line(x: Sequence[float], y: Sequence[float | None], color: str, **more: Any) -> dict[str, Any]:
    """A line; `dash=True` draws it dashed, `width` sets its width, the rest goes to plotly."""
    dash, width = more.pop("dash", False), more.pop("width", 2)
    style = {"color": color, "width": width, "dash": "6px,4px" if dash else "solid"}
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": style} | more


def end_label(x: float, y: float, text: str, color: str, **more: Any) -> dict[str, Any]:
    """An annotation to the right of a line's last point; on a log axis give log10 of the value."""
    return {
        "x": x,
        "y": y,
        "text": text,
        "xanchor": "left",
        "yanchor": "middle",
        "xshift": 6,
        "showarrow": False,
        "font": {"color": color, "size": 12},
    } | more


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions` moved apart as little as needed, so that neighbours are at least `gap` away."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = list(positions)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    if order:
        # Half of the shift goes back, so that labels stand around their lines and not above them.
        shift = sum(placed) - sum(positions)
        placed = [each - shift / len(placed) for each in placed]
    return placed


# --- training ------------------------------------------------------------------------------------

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of a line."""

LABEL_ROOM = 112
"""Pixels to the right of a chart for the labels at the ends of its lines."""


def loss_curve(
    training: Curve, calm: Curve, validation: Curve, steps: int, epochs: Sequence[int] = ()
) -> Figure:
    """Loss in nats over the steps of a run: training solid, smoothed as `calm`, validation dashed.

    With a smoothed line the bare one stays behind it, faint, so that no spike is hidden.
    """
    told = calm if calm[0] else training
    traces: list[dict[str, Any]] = [line(*training, f"{FILL} / 0.35", width=1)] if calm[0] else []
    traces += [line(*told, FILL), line(*validation, HEAD, dash=True)]
    ends = [("training", told, LORA, ".3f"), ("validation", validation, HEAD, ".3f")]
    highest = max((max(y) for _, y in (training, validation) if y), default=1.0)
    return _run_chart(traces, ends, (0.0, 1.05 * highest or 1.0), steps, epochs) | {
        "description": _described("Loss over steps", ends)
    }


def accuracy_curve(
    training: Curve,
    validation: Curve,
    steps: int,
    epochs: Sequence[int] = (),
    test: tuple[float, float, float] | None = None,
) -> Figure:
    """Accuracy in percent over the steps; `test` is the accuracy at the end and its interval."""
    traces = [line(*training, FILL), line(*validation, HEAD, dash=True)]
    ends = [("training", training, LORA, ".1f"), ("validation", validation, HEAD, ".1f")]
    seen = [value for _, y in (training, validation) for value in y]
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
    heights = spread([y for _, y, _, _ in known], 0.085 * (limits[1] - limits[0]))
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


# --- classification ------------------------------------------------------------------------------


def strength_curve(points: Sequence[tuple[float, float]], strength: float, p_spam: float) -> Figure:
    """p_spam of a message over the strength of the adapter, and where the slider stands."""
    curve = [(x, 100 * share) for x, share in points]
    trace = line([x for x, _ in curve], [y for _, y in curve], FILL)
    trace["hovertemplate"] = "strength %{x:g}: %{y:.1f}%<extra></extra>"
    color, said = (SPAM, "spam") if p_spam >= 0.5 else (HAM, "ham")
    here: Figure = {"type": "scatter", "mode": "markers", "x": [strength], "y": [100 * p_spam]}
    here |= {"marker": {"color": color, "size": 12, "line": {"color": CARD, "width": 2}}}
    here["hovertemplate"] = f"{said} at strength %{{x:g}}: %{{y:.1f}}%<extra></extra>"
    low, high = points[0][0], points[-1][0]
    half = {"type": "line", "x0": low, "x1": high, "y0": 50, "y1": 50}
    half["line"] = {"color": SOFT, "width": 1, "dash": "dot"}
    notes = [
        end_label(high, 50 + side, word, tone)
        for side, word, tone in ((7, "spam", SPAM), (-7, "ham", HAM))
    ]
    across = axis("strength of the adapter", range=[low - 0.04, high + 0.04], dtick=0.5)
    upright = axis(range=[-4, 104], ticksuffix="%", dtick=25)
    margin = {"l": 8, "r": 48, "t": 12, "b": 8}
    framed = layout(across, upright, annotations=notes, shapes=[half], margin=margin)
    return {
        "data": [trace, here],
        "layout": framed | {"hovermode": "closest"},
        "description": f"Probability of spam over the strength of the adapter: {curve[0][1]:.1f}%"
        f" at strength {low:g}, {100 * p_spam:.1f}% at {strength:g}, {curve[-1][1]:.1f}% at"
        f" {high:g}.",
    }


def update_sizes(layers: Sequence[tuple[str, float, Sequence[float]]]) -> Figure:
    """Size of each layer's update in percent of its W, block by block; its spectrum on hover.

    A layer is its path inside the blocks ('0.att.W_query'), its share and its singular values.
    """
    blocks = [path.split(".")[0] for path, _, _ in layers]
    gap, places = 1.5, [0.0]
    for before, after in pairwise(blocks):
        places.append(places[-1] + (1 if before == after else 1 + gap))
    told = [
        f"{path}<br>singular values {', '.join(f'{value:.2g}' for value in spectrum[:8])}"
        + (", …" if len(spectrum) > 8 else "")
        for path, _, spectrum in layers
    ]
    pattern = {"shape": "/", "fgcolor": f"{FILL}", "bgcolor": CARD, "solidity": 0.6, "size": 6}
    bars = {
        "type": "bar",
        "x": places[: len(layers)],
        "y": [100 * share for _, share, _ in layers],
        "width": 0.8,
        "customdata": told,
        "hovertemplate": "%{y:.3~g}% of the size of W<br>%{customdata}<extra></extra>",
        "marker": {"color": FILL, "line": {"color": FILL, "width": 1}, "pattern": pattern},
    }
    names = list(dict.fromkeys(blocks))
    middles = []
    for name in names:
        own = [place for place, block in zip(places, blocks, strict=False) if block == name]
        middles.append(sum(own) / len(own))
    # Of many blocks every other is named, or every fourth, so that names never touch.
    skip = next(each for each in (1, 2, 4, 8) if len(names) <= 12 * each or each == 8)
    ticks = {"tickvals": middles[::skip], "ticktext": names[::skip]}
    across = axis("block", **ticks)
    upright = axis("size of A·B to W", ticksuffix="%", rangemode="tozero", nticks=5)
    largest = max(layers, key=lambda each: each[1], default=("none", 0.0, ()))
    return {
        "data": [bars],
        "layout": layout(across, upright),
        "description": f"Size of the update of {len(layers)} layers; the largest is"
        f" {largest[0]}, {100 * largest[1]:.3g}% of its W.",
    }


# --- comparison ----------------------------------------------------------------------------------

METHOD_MARKS = {"lora": (FILL, "circle"), "head": (HEAD, "diamond"), "full": (FROZEN, "square")}
SHARE_TICKS: dict[str, Any] = {
    "tickvals": [0.001, 0.01, 0.1, 1, 10, 100],
    "ticktext": ["0.001%", "0.01%", "0.1%", "1%", "10%", "100%"],
}


def fraction_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], marked: str, rank: int, height: int = 320
) -> Figure:
    """Trained share (0 to 1) over the rank, a line for each model, both axes logarithmic.

    The line of the model `marked` stands out and carries a point at `rank`.
    """
    data, notes = [], []
    tops = [math.log10(100 * points[-1][1]) for points in curves.values()]
    low = min(math.log10(100 * points[0][1]) for points in curves.values()) - 0.2
    placed = spread(tops, 18 * (2.1 - low) / (height - 60))  # 18 pixels a label, 60 for the axis
    for (name, points), at in zip(curves.items(), placed, strict=True):
        color, width = (FILL, 3) if name == marked else (FROZEN, 1.5)
        trace = line([r for r, _ in points], [100 * f for _, f in points], color, width=width)
        trace["hovertemplate"] = f"{name}, rank %{{x}}: %{{y:.2f}}%<extra></extra>"
        data.append(trace)
        tone = LORA if name == marked else SOFT
        notes.append(end_label(math.log10(points[-1][0]), at, name, tone))
    here = dict(curves[marked])[rank]
    point: Figure = {"type": "scatter", "mode": "markers", "x": [rank], "y": [100 * here]}
    point["marker"] = {"color": FILL, "size": 12, "line": {"color": CARD, "width": 2}}
    point["hovertemplate"] = f"{marked}, rank %{{x}}: %{{y:.2f}}%<extra></extra>"
    ranks = [4**power for power in range(5)]
    across = axis("rank", type="log", tickvals=ranks, range=[0, math.log10(256)])
    upright = axis("trained share", type="log", range=[low, 2.1], **SHARE_TICKS)
    framed = layout(across, upright, annotations=notes, margin={"l": 8, "r": 110, "t": 12, "b": 8})
    return {
        "data": [*data, point],
        "layout": framed | {"hovermode": "closest"},
        "description": f"Trained share over the rank for {len(curves)} models; {marked} trains"
        f" {here:.2%} at rank {rank}.",
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
    data = []
    for method, (color, symbol) in METHOD_MARKS.items():
        own = [point for point in points if point.method == method]
        if own:
            data.append(_run_marks(own, color, symbol))
    least = min(point.low for point in points)
    bottom = max(0, 10 * math.floor(10 * least) - (0 if least < 0.9 else 5))
    shares = [math.log10(100 * point.fraction) for point in points]
    across = axis("trained share", type="log", **SHARE_TICKS)
    across["range"] = [min(-1.0, min(shares) - 0.4), max(1.0, max(shares) + 0.6)]
    upright = axis("test accuracy", ticksuffix="%", range=[bottom, 101])
    best = max(points, key=lambda point: point.accuracy)
    return {
        "data": data,
        "layout": layout(across, upright) | {"hovermode": "closest"},
        "description": f"Test accuracy of {len(points)} runs over their trained share; the highest"
        f" is {best.accuracy:.1%} of {best.label}.",
    }


def _run_marks(points: Sequence[RunPoint], color: str, symbol: str) -> dict[str, Any]:
    """The points of one method; names are shown only where few points leave room for them."""
    told = [
        f"{escape(point.label)}<br>{point.accuracy:.1%} (95% interval {100 * point.low:.1f} to"
        f" {100 * point.high:.1f})<br>{point.fraction:.2%} trained"
        for point in points
    ]
    return {
        "type": "scatter",
        "mode": "markers+text" if len(points) <= 6 else "markers",
        "x": [100 * point.fraction for point in points],
        "y": [100 * point.accuracy for point in points],
        "text": [escape(point.short) for point in points],
        "textposition": "middle right",
        "textfont": {"color": SOFT, "size": 12},
        "customdata": told,
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": color,
            "symbol": [symbol + ("-open" if point.random_start else "") for point in points],
            "size": 11,
            "line": {"width": 2},
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
