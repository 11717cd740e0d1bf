"""Contrasts of the page's colours, as WCAG 2.2 counts them; the page test sees only texts."""

import re

import pytest

from lora_gpt.ui.theme import COLOURS, STYLE

CSS = STYLE.read_text(encoding="utf-8")
TEXTS = ("ink", "soft", "lora", "head", "spam", "ham")
TINTS = (("soft", "frozen-bg"), ("lora", "lora-bg"), ("head", "head-bg"))
EDGES = ("edge", "frozen", "lora")
"""Borders of fields, what is frozen, and the bar beside the row on show."""


def tokens(selector: str) -> dict[str, str]:
    block = CSS.partition(f"\n{selector} {{")[2].partition("\n}")[0]
    return dict(re.findall(r"--([\w-]+): #([0-9a-f]{3,6});", block))


THEMES = {"light": tokens(":root"), "dark": tokens(":root") | tokens(".dark")}


def light(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    full = color if len(color) == 6 else "".join(2 * digit for digit in color)
    parts = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_counted_as_the_standard_does():
    assert contrast("fff", "000000") == pytest.approx(21)
    assert contrast("ffffff", "777777") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_can_be_read(theme):
    """At least 4.5 on the page, on a card, and on the tint of their own tag."""
    of = THEMES[theme]
    pairs = [(text, ground) for text in TEXTS for ground in ("bg", "card")]
    for text, ground in (*pairs, *TINTS):
        assert contrast(of[text], of[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("theme", THEMES)
def test_edges_can_be_seen(theme):
    """At least 3 for what a shape is known by: WCAG 2.2, 1.4.11."""
    of = THEMES[theme]
    for edge in EDGES:
        for ground in ("bg", "card"):
            assert contrast(of[edge], of[ground]) >= 3, (edge, ground)
    assert contrast(of["lora"], of["lora-bg"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_a_tick_can_be_seen(theme):
    """Gradio draws it white in both themes."""
    of = THEMES[theme]
    assert COLOURS["checkbox_background_color_selected"] == "var(--tick)"
    assert contrast("ffffff", of["tick"]) >= 4.5
    assert contrast(of["tick"], of["card"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_the_mark_at_50_percent_is_seen_on_every_fill(theme):
    """Its edge in the colour of the card stands out from the fill, the mark from its edge."""
    of = THEMES[theme]
    mark = re.search(r"\.bar\.half::after \{([^}]*)\}", CSS)
    assert mark and "background: var(--ink)" in mark[1]
    assert "box-shadow: 0 0 0 2px var(--card)" in mark[1]
    for fill in ("ink", "spam", "ham", "frozen"):
        assert contrast(of["card"], of[fill]) >= 3, fill
