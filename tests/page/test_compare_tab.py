import re

from playwright.sync_api import expect

from lora_gpt.config import METHODS, MODELS, RunConfig


def test_the_costs_of_every_model_and_method(visit):
    """The labs' LoRA line stands in the table, with the memory that follows from it."""
    page = visit("Compare")
    costs = page.locator("#costs")
    for words in ("GPT-2 XL", "1,328,642", "125,768,450", "1.06%", "503 MB", "head only"):
        expect(costs).to_contain_text(words)
    assert costs.locator("tr").count() == 1 + len(MODELS) * len(METHODS)
    assert costs.locator("tbody.on tr").count() == len(METHODS)
    assert costs.locator("th[aria-current]").inner_text() == MODELS["gpt2"].label


def test_the_chart_is_drawn_and_follows_the_knobs(visit):
    page = visit("Compare")
    plot = page.locator("figure.chart").first
    expect(plot.locator(".annotation-text").first).to_be_visible()
    expect(plot).to_have_attribute(
        "aria-label",
        f"Trained share over the rank for {len(MODELS)} models; GPT-2 124M trains 1.06% at rank 8.",
    )
    box = page.get_by_label("number input for Rank r").filter(visible=True)
    box.fill("64")
    box.press("Enter")
    expect(plot).to_have_attribute("aria-label", re.compile("at rank 64[.]$"))
    expect(page.locator("#costs")).to_contain_text("LoRA r 64 and head")


def test_charts_change_with_the_theme(visit):
    """Colours come from the page: a dark page has light letters in its charts."""
    page = visit("Compare")
    letters = page.locator("figure.chart .xtick text").first
    expect(letters).to_be_visible()
    light = letters.evaluate("node => getComputedStyle(node).fill")
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector('figure.chart .xtick text')).fill"
        " !== before",
        arg=light,
    )


def test_finished_runs_are_points(visit, app):
    """The bundled ones stand there before anything was trained."""
    assert any(run.finished for run in app.service.sample_runs()), "the bundled runs are lost"
    page = visit("Compare")
    measured = page.locator("figure.chart").nth(1)
    expect(measured).to_have_attribute("aria-label", re.compile(r"^Test accuracy of \d+ runs"))
    expect(page.locator("#measured-runs")).to_contain_text("bundled")


def test_the_runs_follow_while_the_tab_is_open(visit, app, page, monkeypatch):
    """Without a reload, and without a change to what the visitor has set."""
    with monkeypatch.context() as nothing_yet:
        nothing_yet.setattr(app.service, "sample_runs", list)
        visit("Compare")
        expect(page.get_by_text("No finished run yet")).to_be_visible()
        expect(page.locator("#costs")).to_contain_text("and head")
        box = page.get_by_label("number input for Rank r").filter(visible=True)
        box.fill("64")
        box.press("Enter")
        expect(page.locator("#costs")).to_contain_text("LoRA r 64 and head")
    made = app.service.store.create(RunConfig())
    expect(page.locator("#measured-runs")).to_contain_text("A. mini, LoRA r 8")
    expect(page.locator("figure.chart").nth(1)).to_have_attribute(
        "aria-label", re.compile("4 runs")
    )
    expect(box).to_have_value("64")
    made.delete()
