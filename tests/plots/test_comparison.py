import json
import math

import pytest

from lora_gpt import plots
from lora_gpt.plots import style
from lora_gpt.plots.comparison import METHOD_MARKS

NEAR = {
    "mini": [(1, 0.003), (8, 0.02), (256, 0.447)],
    "GPT-2 124M": [(1, 0.0013), (8, 0.0106), (256, 0.254)],
    "GPT-2 medium": [(1, 0.0012), (8, 0.0099), (256, 0.242)],
    "GPT-2 XL": [(1, 0.0009), (8, 0.0071), (256, 0.185)],
}


def run(method="lora", fraction=0.01, **more):
    return plots.RunPoint("mini", "r 8", method, fraction, 0.9, 0.88, 0.92, **more)


def test_a_line_leads_from_each_end_to_its_name():
    """Ends stand closer than names can: without the lines a name stands beside another's end."""
    notes = plots.fraction_curves(NEAR, "GPT-2 124M", 8)["layout"]["annotations"]
    assert [note["text"] for note in notes] == list(NEAR)
    for note, points in zip(notes, NEAR.values(), strict=True):
        rank, share = points[-1]
        assert (note["x"], note["y"]) == pytest.approx((math.log10(rank), math.log10(100 * share)))
        assert note["showarrow"] and note["arrowcolor"] == note["font"]["color"]


def test_the_lines_to_the_names_do_not_cross():
    """Names stand in the order of the ends."""
    notes = plots.fraction_curves(NEAR, "mini", 8)["layout"]["annotations"]
    by_end, by_name = (sorted(notes, key=lambda note: note[at]) for at in ("y", "ay"))
    assert by_end == by_name


def test_nothing_wears_the_grey_of_what_is_frozen():
    """On every tab that grey says frozen; a run that trained all parameters froze none."""
    figures = [plots.fraction_curves(NEAR, "mini", 8)]
    figures += [plots.measured_runs([run(method) for method in METHOD_MARKS])]
    assert "--frozen" not in json.dumps(figures)
    assert METHOD_MARKS["full"] == (style.INK, "square")


def test_a_name_at_the_right_stands_before_its_point():
    """The frame would cut it off."""
    (trace,) = plots.measured_runs([run(fraction=0.001), run(fraction=0.03)])["data"]
    assert trace["textposition"] == ["middle right", "middle left"]
