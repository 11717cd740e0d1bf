import pytest

from lora_gpt.plots import style


def test_whoever_has_room_stays():
    """A crowd moves apart around its own middle; it pushes nobody who stands far away."""
    assert style.spread([0.0, 0.5, 10.0], 2) == pytest.approx([-0.75, 1.25, 10.0])
    assert style.spread([10.0, 0.0, 0.5, -9.0], 2) == pytest.approx([10.0, -0.75, 1.25, -9.0])


def test_two_crowds_that_meet_are_one():
    """Spread apart they would overlap, so that they share one middle."""
    assert style.spread([0.0, 0.0, 1.5, 1.5], 1) == pytest.approx([-0.75, 0.25, 1.25, 2.25])


def test_a_led_label_keeps_hold_of_its_line():
    """Its line starts where the curve ends and goes to the text, at whatever height that stands."""
    label = style.led_label(2.4, 1.3, 1.9, "GPT-2 XL", style.SOFT)
    assert (label["x"], label["y"], label["ay"], label["ayref"]) == (2.4, 1.3, 1.9, "y")
    assert label["showarrow"] and label["arrowcolor"] == label["font"]["color"]
    assert label["ax"] == style.LEAD
