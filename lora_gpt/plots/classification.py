"""Charts of a trained classifier: strength of the adapter, size of its updates."""

from collections.abc import Sequence
from itertools import pairwise

from lora_gpt.config import SPAM_FROM
from lora_gpt.plots.style import CARD, FILL, HAM, SOFT, SPAM, Figure, axis, end_label, layout, line


def strength_curve(points: Sequence[tuple[float, float]], strength: float, p_spam: float) -> Figure:
    """p_spam of a message over the strength of the adapter, and where the slider stands."""
    curve = [(x, 100 * share) for x, share in points]
    trace = line([x for x, _ in curve], [y for _, y in curve], FILL)
    trace["hovertemplate"] = "strength %{x:g}: %{y:.1f}%<extra></extra>"
    color, said = (SPAM, "spam") if p_spam >= SPAM_FROM else (HAM, "ham")
    here: Figure = {"type": "scatter", "mode": "markers", "x": [strength], "y": [100 * p_spam]}
    here |= {"marker": {"color": color, "size": 12, "line": {"color": CARD, "width": 2}}}
    here["hovertemplate"] = f"{said} at strength %{{x:g}}: %{{y:.1f}}%<extra></extra>"
    low, high = points[0][0], points[-1][0]
    half = {"type": "line", "x0": low, "x1": high, "y0": 100 * SPAM_FROM, "y1": 100 * SPAM_FROM}
    half["line"] = {"color": SOFT, "width": 1, "dash": "dot"}
    notes = [
        end_label(high, 100 * SPAM_FROM + side, word, tone)
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
