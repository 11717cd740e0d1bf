import json
import math
from itertools import pairwise

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
    more = {"mark": "1", "accuracy": 0.9} | more
    return plots.RunPoint("mini", method=method, fraction=fraction, low=0.88, high=0.92, **more)


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


def marks_of(runs):
    figure = plots.measured_runs(runs, height=300)
    return figure["layout"]["annotations"], figure["layout"]["yaxis"]["range"]


@pytest.mark.parametrize("accuracy", [0.9, 0.99])
def test_marks_of_runs_that_stand_near_do_not_cover_each_other(accuracy):
    """Each has a line of text for itself, right of all points and within the frame, and a thin
    line to its point."""
    runs = [run(fraction=0.03 + n / 1000, accuracy=accuracy, mark=str(n)) for n in range(9)]
    notes, (low, high) = marks_of(runs)
    assert sorted(note["text"] for note in notes) == [point.mark for point in runs]
    heights = sorted(note["ay"] for note in notes)
    line = 15 * (high - low) / (300 - 60)
    assert all(above - below > 0.999 * line for below, above in pairwise(heights))
    assert low < heights[0] and heights[-1] < high
    assert {note["ax"] for note in notes} == {notes[0]["ax"]} and notes[0]["axref"] == "x"
    assert notes[0]["ax"] > math.log10(100 * runs[-1].fraction)
    assert {note["y"] for note in notes} == {100 * accuracy} and all(
        note["showarrow"] for note in notes
    )


def test_marks_far_from_each_other_stand_beside_their_points():
    notes, _ = marks_of([run(fraction=0.0002), run(fraction=0.004), run(fraction=0.03)])
    assert [note["ay"] for note in notes] == pytest.approx([90, 90, 90])


def test_a_crowd_has_no_marks_and_is_told_when_pointed_at():
    crowd = [run(mark=str(n)) for n in range(40)]
    assert [note["text"] for note in marks_of([*crowd, run("head", 0.0002, mark="A")])[0]] == ["A"]
    (trace,) = plots.measured_runs(crowd)["data"]
    assert trace["customdata"][7].startswith("7. mini<br>90.0%")
