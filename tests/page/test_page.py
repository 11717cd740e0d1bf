"""The page as a whole. `page` itself fails a test on console errors and requests to the outside."""

import json
import urllib.request

import pytest
from playwright.sync_api import expect

READY = {
    "Model": "#model-stats strong",
    "Train": "#train-preview h3",
    "Compare": "#costs table",
    "Classify": "#changes .plot",
}
"""The tabs, and what stands in each once it is drawn."""


def opened(page, name):
    """The tab `name`, opened and drawn."""
    tab = page.get_by_role("tab", name=name, exact=True)
    tab.click()
    expect(tab).to_have_attribute("aria-selected", "true")
    expect(page.locator(READY[name]).first).to_be_visible()
    return page


def test_tabs_by_keyboard(visit):
    """The tabs are reached with the Tab key and opened with Enter."""
    page = visit("Model")
    page.get_by_role("tab", name="Model", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Classify", exact=True)).to_have_attribute(
        "aria-selected", "true"
    )


def test_phone_needs_no_sideways_scroll(phone, visit, width_of):
    """On a phone no tab is wider than the screen."""
    visit(on=phone)
    for name in READY:
        assert width_of(opened(phone, name)) == 0, name


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const behind = (el) => {
    const layers = [];
    for (let at = el; at; at = at.parentElement)
      layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const faults = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), el = walker.currentNode.parentElement;
    if (!text || !el.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (el.closest('svg, script, style, [disabled]') || !el.getClientRects().length) continue;
    const ground = behind(el), ink = over(rgba(getComputedStyle(el).color), ground);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05);
    const where = `${el.tagName}.${el.className}`;
    if (ratio < 4.5) faults.add(`${ratio.toFixed(2)} ${where}: ${text.slice(0, 40)}`);
  }
  return [...faults];
}"""


NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select')]
  .filter((el) => el.checkVisibility() && !el.labels?.length && !el.closest('label'))
  .filter((el) => !(el.getAttribute('aria-label') || el.getAttribute('aria-labelledby')
    || el.title || el.innerText?.trim() || el.placeholder))
  .map((el) => el.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_in_both_themes(visit, theme):
    """All four tabs open without an error and without asking another machine for anything, every
    text has a contrast of at least 4.5 to what is behind it (WCAG 2.2, 1.4.3), and every button,
    field and slider that is shown can be told by name, without seeing it."""
    page = visit("Model", query=f"__theme={theme}")
    expect(page).to_have_title("What does LoRA do to GPT-2?")
    for name in READY:
        assert not opened(page, name).evaluate(CONTRAST), name
        assert not page.evaluate(NAMELESS), name
    assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")


def test_health(app):
    """The server says that it is well, for whoever watches over it."""
    with urllib.request.urlopen(f"{app.url}/healthz") as answer:
        assert json.load(answer) == {"status": "ok"}


def test_only_classify_is_public(app):
    """The public API is the one function that is meant to be: the page's own events are not."""
    with urllib.request.urlopen(f"{app.url}/gradio_api/info") as answer:
        assert list(json.load(answer)["named_endpoints"]) == ["/classify"]
