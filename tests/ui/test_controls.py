from html import unescape

import gradio as gr
import pytest

from lora_gpt.config import BadValue, RunConfig, all_knobs
from lora_gpt.core.data import DataError
from lora_gpt.ui.controls import config_from, control, default_of
from lora_gpt.ui.errors import complaint, guard


@pytest.mark.parametrize("name", all_knobs())
def test_every_knob_has_a_widget_that_tells_what_it_does(name):
    """Label, help and default come from the knob; nothing is written twice."""
    about, widget = all_knobs()[name], control(name)
    assert widget.label.startswith(about.label)
    assert widget.info == about.help
    value = widget.value
    assert (tuple(value) if isinstance(value, list) else value) == default_of(name)


def test_the_widgets_of_an_untouched_page_are_the_default_run():
    """What the widgets start at is accepted and changes nothing."""
    names = list(all_knobs())
    values = [control(name).value for name in names]
    assert config_from(names, values, RunConfig()) == RunConfig()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rank", gr.Slider),
        ("targets", gr.CheckboxGroup),
        ("rank_stabilised", gr.Checkbox),
        ("model", gr.Dropdown),
        ("text_column", gr.Textbox),
        ("seed", gr.Number),
        ("alpha", gr.Number),
        ("max_steps", gr.Number),
    ],
)
def test_the_widget_fits_the_knob(name, kind):
    """A slider needs a short range and round steps; the rest is a box to type in."""
    assert type(control(name)) is kind


def test_a_tab_may_narrow_a_range():
    """Alpha from 1 on has round steps, and so becomes a slider."""
    widget = control("alpha", 32, minimum=1, maximum=128)
    assert type(widget) is gr.Slider
    assert (widget.minimum, widget.maximum, widget.value) == (1, 128, 32)


def test_units_stand_beside_the_label():
    assert control("batch_size").label == "Batch size (messages)"


def test_whole_numbers_come_back_whole():
    """A browser sends 8.0 for 8."""
    rank = config_from(["rank"], [8.0], RunConfig()).lora.rank
    assert rank == 8 and isinstance(rank, int)


@pytest.mark.parametrize(
    "name", [name for name in all_knobs() if type(default_of(name)) is int], ids=str
)
def test_no_widget_rounds_a_fraction(name):
    """0.5 steps are not 0 steps, which means all of them."""
    sent = control(name).preprocess(0.5)
    with pytest.raises(BadValue, match=f"{name}: must be a whole number .*; got 0.5"):
        config_from([name], [sent], RunConfig())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rank", 0, "rank: must be a whole number from 1 to 256; got 0"),
        ("rank", None, "rank: must be a whole number"),
        ("targets", [], "targets: must name at least one"),
        ("model", "gpt5", "model: must be one of"),
        ("flavour", 1, "config: knows only the knobs"),
    ],
)
def test_what_a_widget_cannot_mean_is_refused_by_name(name, value, words):
    with pytest.raises(BadValue, match=words):
        config_from([name], [value], RunConfig())


@pytest.mark.parametrize("value", [None, -3, 300])
def test_what_a_slider_sends_is_judged_by_the_knob(value):
    """A box that is emptied for a moment, or holds too much, is refused in a sentence of ours."""
    sent = control("rank").preprocess(value)
    with pytest.raises(BadValue, match="rank: must be a whole number from 1 to 256"):
        config_from(["rank"], [sent], RunConfig())


def test_a_complaint_names_the_label_and_is_harmless():
    """People know 'Rank r', not 'rank'; and a value is shown, never run."""
    error = BadValue("rank", "must be a whole number", "<img src=x onerror=alert(1)>")
    said = complaint(error)
    assert said.startswith("Rank r must be a whole number; got ")
    assert "<" not in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"targets": []}, "Targets must name at least one of query, key, value, attention output"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.8},
            "of the messages for training, beside “Test part” 0.8; got 0.5",
        ),
        ({"max_steps": 0.5}, "Most steps must be a whole number of at least 0; got 0.5"),
    ],
)
def test_a_complaint_names_no_option_of_the_command_line(values, said):
    with pytest.raises(BadValue) as refused:
        RunConfig().changed(**values)
    assert said in unescape(complaint(refused.value))


def test_half_a_step_comes_to_the_knob_as_half_a_step():
    """A box that rounds would take it for 0, which means no limit."""
    assert control("max_steps").preprocess(0.5) == 0.5


def test_a_fault_of_a_file_names_what_to_set_as_the_page_does():
    error = DataError("a.csv: the column 'kind' holds x, y; set spam_label to the one")
    assert unescape(complaint(error)).endswith("holds x, y; set “Word for spam” to the one")


def test_an_empty_value_is_not_quoted():
    assert complaint(BadValue("targets", "must name one", [])) == "Targets must name one"


def test_a_file_error_says_which_file():
    assert complaint(FileNotFoundError(2, "No such file", "a<b.csv")) == "No such file: a&lt;b.csv"


def test_guard_shows_refusals_and_lets_faults_through():
    """A caller's mistake becomes a toast; a fault of ours stays a fault."""

    @guard
    def handler(error):
        raise error

    with pytest.raises(gr.Error, match="Rank r must be small"):
        handler(BadValue("rank", "must be small", 9))
    with pytest.raises(KeyError):
        handler(KeyError("ours"))


def test_guard_keeps_a_generator_a_generator():
    """What was sent before the refusal has been sent."""

    @guard
    def handler():
        yield 1
        raise ValueError("enough")

    steps = handler()
    assert next(steps) == 1
    with pytest.raises(gr.Error, match="enough"):
        next(steps)
