import json
import math

import pytest

from lora_gpt import plots
from lora_gpt.plots import style


def test_labels_are_moved_apart_as_little_as_needed():
    """Far ones stay; near ones end up a gap apart, around where they were."""
    assert style.spread([0, 5, 10], 2) == [0, 5, 10]
    placed = style.spread([1.0, 1.0, 1.0], 2)
    assert sorted(placed) == [-1, 1, 3]
    assert style.spread([], 1) == []


def test_labels_keep_their_order():
    placed = style.spread([3.0, 1.0, 2.9, 1.1], 0.5)
    order = sorted(range(4), key=placed.__getitem__)
    assert order == [1, 3, 2, 0]
    gaps = [b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)]
    assert min(gaps) >= 0.5 - 1e-9


CURVES = {
    "small": [(1, 0.002), (8, 0.016), (256, 0.3)],
    "large": [(1, 0.001), (8, 0.008), (256, 0.2)],
}


def test_fractions_mark_the_chosen_model_and_rank():
    """The marked line is bold and orange, and its point stands on it."""
    figure = plots.fraction_curves(CURVES, "large", 8)
    small, large, point = figure["data"]
    assert large["line"]["color"] == style.FILL and small["line"]["color"] == style.SOFT
    assert large["line"]["width"] > small["line"]["width"]
    assert (point["x"], point["y"]) == ([8], [pytest.approx(0.8)])
    assert "large trains 0.80% at rank 8" in figure["description"]


def test_fractions_are_shown_whole():
    """No point of any line lies outside the axes."""
    figure = plots.fraction_curves(CURVES, "small", 1)
    low, high = figure["layout"]["yaxis"]["range"]
    for trace in figure["data"]:
        assert all(low < math.log10(share) < high for share in trace["y"])


def run(method="lora", accuracy=0.97, fraction=0.01, label="mini, LoRA r 8", **more):
    low, high = accuracy - 0.02, min(1.0, accuracy + 0.01)
    return plots.RunPoint(label, "1", method, fraction, accuracy, low, high, **more)


def test_no_run_is_no_figure():
    """The chart then says how to get one."""
    assert plots.measured_runs([]) is None


def test_runs_stand_with_their_interval():
    """Error bars reach from the lower to the upper end of the interval, in percent."""
    (trace,) = plots.measured_runs([run(accuracy=0.9)])["data"]
    assert trace["x"] == [pytest.approx(1.0)] and trace["y"] == [pytest.approx(90)]
    assert trace["error_y"]["array"] == [pytest.approx(1)]
    assert trace["error_y"]["arrayminus"] == [pytest.approx(2)]


def test_methods_differ_in_colour_and_in_shape():
    figure = plots.measured_runs([run("lora"), run("head"), run("full")])
    markers = [trace["marker"] for trace in figure["data"]]
    assert len({marker["color"] for marker in markers}) == 3
    assert len({marker["symbol"][0] for marker in markers}) == 3


def test_a_random_start_is_drawn_hollow():
    """Told apart by shape, not by colour alone."""
    (trace,) = plots.measured_runs([run(), run(random_start=True)])["data"]
    assert trace["marker"]["symbol"] == ["circle", "circle-open"]


def test_a_poor_run_is_still_on_the_chart():
    """The axis reaches down to the lowest interval."""
    figure = plots.measured_runs([run(accuracy=0.52), run(accuracy=0.99)])
    assert figure["layout"]["yaxis"]["range"][0] <= 50


def test_a_run_named_like_markup_is_shown_as_text():
    (trace,) = plots.measured_runs([run(label="<b>x</b>.csv")])["data"]
    assert "<b>" not in trace["customdata"][0]


@pytest.mark.parametrize(
    "figure",
    [
        plots.fraction_curves(CURVES, "small", 8),
        plots.measured_runs([run("lora"), run("full", 0.5, 1.0)]),
    ],
)
def test_every_figure_is_plain_json_with_a_description(figure):
    """Figures travel to the browser as they are; screen readers get the description."""
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
    assert figure["description"]
    assert figure["layout"]["showlegend"] is False


def test_strength_curve_marks_where_the_slider_stands():
    """The mark stands at the slider's strength, in the colour of its verdict."""
    points = [(0.0, 0.6), (1.0, 0.02), (2.0, 0.0)]
    figure = plots.strength_curve(points, 1.0, 0.02)
    curve, here = figure["data"]
    assert curve["x"] == [0.0, 1.0, 2.0] and curve["y"] == pytest.approx([60.0, 2.0, 0.0])
    assert here["x"] == [1.0] and here["y"] == [2.0]
    assert here["marker"]["color"] == style.HAM
    assert "60.0% at strength 0, 2.0% at 1, 0.0% at 2." in figure["description"]


def test_update_sizes_keeps_blocks_apart():
    """Bars of a block stand side by side, with a gap to the next block and its name below."""
    layers = [(f"{block}.{name}", 0.1, (1.0,)) for block in "01" for name in ("a", "b")]
    figure = plots.update_sizes([*layers, ("2.a", 0.3, tuple(range(9, 0, -1)))])
    [bars] = figure["data"]
    assert bars["x"] == [0.0, 1.0, 3.5, 4.5, 7.0]
    assert figure["layout"]["xaxis"]["tickvals"] == [0.5, 4.0, 7.0]
    assert figure["layout"]["xaxis"]["ticktext"] == ["0", "1", "2"]
    assert bars["customdata"][-1] == "2.a<br>singular values 9, 8, 7, 6, 5, 4, 3, 2, …"
    assert "the largest is 2.a, 30% of its W" in figure["description"]


def test_update_sizes_of_many_blocks_names_only_some():
    """Forty-eight blocks are named every fourth, so that the names do not touch."""
    figure = plots.update_sizes([(f"{block}.a", 0.1, (1.0,)) for block in range(48)])
    assert figure["layout"]["xaxis"]["ticktext"] == [str(block) for block in range(0, 48, 4)]


@pytest.mark.parametrize("chart", ["loss", "accuracy"])
def test_another_run_is_drawn_dotted_and_named(chart):
    """In grey, so that it is not taken for the run that is watched, and within the frame."""
    curve, other = ((0, 1, 2), (0.9, 0.5, 0.4)), ((0, 2), (1.2, 1.1))
    if chart == "loss":
        figure = plots.loss_curve(curve, ((), ()), ((), ()), 3, (), ("random start", other))
        assert figure["layout"]["yaxis"]["range"][1] > 1.2
    else:
        figure = plots.accuracy_curve(curve, ((), ()), 3, (), None, ("random start", other))
    drawn = figure["data"][-1]
    assert drawn["line"] == {"color": style.SOFT, "width": 2, "dash": "2px,3px"}
    assert any("random start 1.1" in note["text"] for note in figure["layout"]["annotations"])
    assert "random start 1.1" in figure["description"]


def test_no_label_leaves_the_frame():
    """Plotly would not draw it: a loss near 0 keeps its label however many stand above it."""
    near = ((0, 1, 2), (1.8, 0.4, 0.0))
    other = ((0, 2), (0.5, 0.46))
    figure = plots.loss_curve(near, ((), ()), ((0, 2), (1.0, 0.41)), 3, (), ("random", other))
    low, high = figure["layout"]["yaxis"]["range"]
    heights = [note["y"] for note in figure["layout"]["annotations"]]
    assert len(heights) == 3 and all(low <= height <= high for height in heights)
