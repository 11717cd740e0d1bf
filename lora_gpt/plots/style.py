"""What all charts share: axes, lines, labels at their ends; colours are CSS variables."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

Figure = dict[str, Any]

INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
LORA, FILL, HEAD = "var(--lora)", "var(--fill)", "var(--head)"
SPAM, HAM, CARD = "var(--spam)", "var(--ham)", "var(--card)"

LEAD = 24
"""Pixels from the end of a line to a label that stands at another height."""


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


def led_label(x: float, y: float, at: float, text: str, color: str) -> dict[str, Any]:
    """`end_label` moved to the height `at`, with a thin line to it from its line's end at (x, y).

    All three as on the axis: on a log axis give log10 of the values.
    """
    tail = {"axref": "pixel", "ax": LEAD, "ayref": "y", "ay": at}
    thin = {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": color, "standoff": 3, "startstandoff": 3}
    return end_label(x, y, text, color, showarrow=True, xshift=0, **tail, **thin)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions` moved apart as little as needed, so that neighbours are at least `gap` away.

    They keep their order, and whoever has room stays. Least squares by pooling those who are too
    near (Best and Chakravarti, Mathematical Programming 47, 1990).
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    crowds: list[list[float]] = []  # each stands together, a gap apart, around its own middle
    for place, index in enumerate(order):
        crowd = [positions[index] - place * gap]
        while crowds and fmean(crowds[-1]) > fmean(crowd):
            crowd = crowds.pop() + crowd
        crowds.append(crowd)
    middles = [fmean(crowd) for crowd in crowds for _ in crowd]
    placed = [0.0] * len(positions)
    for place, index in enumerate(order):
        placed[index] = middles[place] + place * gap
    return placed
