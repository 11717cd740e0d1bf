import random
import re
import string
import zipfile

import pytest
from playwright.sync_api import expect

from lora_gpt.config import MODELS, LoRAConfig, RunConfig
from lora_gpt.core.structure import counts

HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{7*7}}"
PATIENCE = 60_000
"""Milliseconds for a worker that starts on a busy machine."""
PHONE = {"width": 390, "height": 844}
TRAINED = f"{counts('mini', LoRAConfig())[-1].trainable:,}"
"""By the default knobs: LoRA and the head of two classes."""
HEAD = f"{2 * MODELS['mini'].config.emb_dim + 2}"


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """A small file of one's own: no two messages are alike, and spam holds markup."""
    draw = random.Random(1)
    rows = ["label\ttext"]
    for label in ("spam", "ham") * 40:
        words = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(12)]
        rows.append(f"{label}\t{' '.join(words)}{' ' + HOSTILE if label == 'spam' else ''}")
    path = tmp_path_factory.mktemp("own") / "own.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(app, messages):
    """The id of a finished run that none of the browsers started."""
    config = RunConfig().changed(data=str(messages), epochs=1, max_steps=3)
    run_id, events = app.service.run_here(config)
    for _ in events:
        pass
    return run_id


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).click()


def use_own(page, messages):
    """Choose one's own file in a run short enough for a test."""
    choose(page, "Messages", "Your own file")
    page.locator("input[type=file]").first.set_input_files(messages)
    expect(page.locator("#train-preview")).to_contain_text("80 messages in the file")


def test_the_plan_follows_the_knobs(visit):
    """Steps, trained share, time and memory are told before the start, and so is a refusal."""
    page = visit("Train")
    plan = page.locator("#train-plan")
    expect(plan).to_contain_text(TRAINED, timeout=PATIENCE)
    choose(page, "Start from", re.compile("Quick look"))
    expect(plan).to_contain_text(re.compile(r"steps\s*60"))
    choose(page, "Method", "head only")
    expect(plan).to_contain_text(HEAD)
    choose(page, "Messages", "Your own file")
    expect(plan).to_contain_text("Choose a CSV, TSV or TXT file")


def test_the_messages_are_shown_as_text(visit, messages):
    """Balance, parts and samples of one's own file; markup in a message is text."""
    page = visit("Train")
    use_own(page, messages)
    preview = page.locator("#train-preview")
    expect(preview).to_contain_text("40 spam, 50.0%")
    expect(preview).to_contain_text(HOSTILE)
    expect(preview.locator("img")).to_have_count(0)


def test_a_run_can_be_stopped_and_goes_on(visit, app, messages):
    """A double click starts one run; it can be stopped, is found again in a new tab, and goes
    on."""
    page = visit("Train")
    use_own(page, messages)
    count = page.get_by_label("number input for Epochs")
    count.fill("40")
    count.press("Enter")
    expect(page.locator("#train-plan")).to_contain_text("40 epochs")
    before = len(app.service.runs())
    page.locator("#train-start").dblclick()
    progress = page.locator("#train-progress")
    expect(progress).to_contain_text("tokens/s", timeout=PATIENCE)
    assert len(app.service.runs()) == before + 1
    page.locator("#train-stop").click()
    expect(progress).to_contain_text("Stopped at step", timeout=PATIENCE)

    page = visit("Train", on=page.context.new_page())
    progress = page.locator("#train-progress")
    expect(progress).to_contain_text("Stopped at step", timeout=PATIENCE)
    expect(page.locator("#train-log textarea")).to_have_value(re.compile(r"Epoch 1 \| Batch 1 \|"))
    page.locator("#train-resume").click()
    expect(progress).to_contain_text("tokens/s", timeout=PATIENCE)
    page.locator("#train-stop").click()
    expect(progress).to_contain_text("Stopped", timeout=PATIENCE)


def test_a_run_is_watched_to_its_end(visit, messages):
    """Curves, log and result come by themselves; the list of runs tells the accuracy."""
    page = visit("Train")
    use_own(page, messages)
    choose(page, "Start from", re.compile("Quick look"))
    expect(page.locator("#train-plan")).to_contain_text("1 epoch of 7")
    page.locator("#train-start").click()
    progress = page.locator("#train-progress")
    expect(progress).to_contain_text("Finished: 7 steps", timeout=PATIENCE)
    expect(progress).to_contain_text(f", {messages.name}, seed 42")
    expect(page.get_by_role("img", name="after 7 steps")).to_have_count(2)
    expect(page.locator("#train-result")).to_contain_text("linear baseline")
    expect(page.get_by_label("Look at")).to_have_value(re.compile(r"^1\. .*finished, [\d.]+%"))
    expect(page.locator("#train-resume")).to_be_disabled()


def test_a_run_is_deleted_once_it_is_meant(visit, app, messages):
    """Not while it goes on, and not before a second click; then it is gone from list and disk."""
    page = visit("Train")
    use_own(page, messages)
    choose(page, "Start from", re.compile("Quick look"))
    expect(page.locator("#train-plan")).to_contain_text("1 epoch of 7")
    expect(page.locator("#train-delete")).to_be_disabled()
    page.locator("#train-start").click()
    expect(page.locator("#train-delete")).to_be_disabled()
    progress = page.locator("#train-progress")
    expect(progress).to_contain_text("Finished: 7 steps", timeout=PATIENCE)
    before = {run.id for run in app.service.runs()}
    page.locator("#train-delete").click()
    page.locator("#train-keep").click()
    expect(page.locator("#train-sure")).to_have_count(0)
    assert {run.id for run in app.service.runs()} == before
    page.locator("#train-delete").click()
    page.locator("#train-sure").click()
    expect(progress).to_have_count(0)
    expect(page.locator("#train-delete")).to_be_disabled()
    expect(page.get_by_label("Look at")).to_have_value("")
    assert len(before - {run.id for run in app.service.runs()}) == 1
    assert visit("Train", on=page.context.new_page()).locator("#train-progress").count() == 0


def test_a_knob_without_effect_is_not_shown(visit):
    """Where no LoRA is injected there is nothing for a rank to do; a preset brings it back."""
    page = visit("Train")
    scale, rank = page.get_by_text("Scale alpha"), page.get_by_label("number input for Rank r")
    expect(rank.locator("visible=true")).to_have_count(1)
    choose(page, "Method", "head only")
    expect(scale).to_be_hidden()
    expect(rank.locator("visible=true")).to_have_count(0)
    choose(page, "Start from", re.compile("Default"))
    expect(scale).to_be_visible()
    expect(rank.locator("visible=true")).to_have_count(1)


def test_pretrained_and_random_start_are_drawn_in_one_chart(visit, app, messages):
    """One preset starts both; the second is drawn beside the first and its accuracy is told."""
    page = visit("Train")
    use_own(page, messages)
    choose(page, "Start from", re.compile("What pretraining is worth"))
    page.get_by_text("More knobs").click()
    steps = page.get_by_label("Most steps")
    steps.fill("6")
    steps.press("Enter")
    expect(page.locator("#train-plan")).to_contain_text(re.compile(r"steps each\s*6"))
    expect(page.locator("#train-plan")).to_contain_text("2 runs, one after the other")
    before = len(app.service.runs())
    page.locator("#train-start").click()
    result = page.locator("#train-result")
    expect(result).to_contain_text("weights that never saw a text", timeout=2 * PATIENCE)
    assert len(app.service.runs()) == before + 2
    expect(page.get_by_role("img", name=re.compile(r"random start [\d.]+ after"))).to_have_count(2)


def test_a_shared_run_can_be_watched_and_taken_but_not_stopped(visit, done):
    """The link opens the tab with the whole result, as text, curves that can be smoothed, and the
    files behind it."""
    page = visit("Train", query=f"run={done}")
    result = page.locator("#train-result")
    expect(result).to_contain_text(re.compile(r"95% interval [\d.]+ to [\d.]+, \d+ of \d+"))
    expect(result.locator("img")).to_have_count(0)
    expect(page.locator("#train-progress")).to_contain_text("started elsewhere")
    expect(page.locator("#train-stop")).to_be_disabled()
    expect(page.locator("#train-resume")).to_be_disabled()
    expect(page.locator("#train-delete")).to_be_disabled()
    lines = page.get_by_role("img", name="Loss over steps").locator(".scatterlayer .trace")
    expect(lines).to_have_count(2)
    page.get_by_label("Smooth the training loss").check()
    expect(lines).to_have_count(3)
    with page.expect_download() as taken:
        page.locator("#train-adapter").click()
    with zipfile.ZipFile(taken.value.path()) as archive:
        assert "adapter_model.safetensors" in archive.namelist()
    with page.expect_download() as taken:
        page.locator("#train-report").click()
    assert taken.value.path().read_text(encoding="utf-8").startswith("# LoRA on")


def test_a_shared_run_can_be_asked_about_messages(visit, done):
    """The tab Classify takes the run that the link leads to, and answers with it."""
    page = visit("Train", query=f"run={done}")
    expect(page.locator("#train-result")).to_contain_text("linear baseline")
    page.get_by_role("tab", name="Classify", exact=True).click()
    chosen = page.get_by_label("Classifier", exact=True)
    expect(chosen).to_have_value(re.compile(r"^linked, [\d.]+% in test: "))
    expect(page.locator("#verdict .verdict")).to_be_visible()
    expect(page.locator("#strength .plot")).to_be_visible()


def test_a_wrong_link_says_so(visit):
    page = visit("Train", query="run=nothing-of-this-name")
    expect(page.get_by_text("The link leads to no run.")).to_be_visible()
    expect(page.locator("#train-plan")).to_contain_text(TRAINED, timeout=PATIENCE)


def test_a_phone_shows_the_plan_first_and_the_buttons_always(visit, new_page, width_of, done):
    """The keys go the way that is seen; a run that a link leads to is scrolled to."""
    page = visit("Train", query=f"run={done}", on=new_page(viewport=PHONE))
    expect(page.locator("#train-result")).to_contain_text("linear baseline")
    expect(page.locator("#train-preview")).to_contain_text("training")
    assert width_of(page) == 0
    expect(page.locator("#train-progress")).to_be_in_viewport()
    page.wait_for_timeout(3500)  # so long the run is kept in view
    page.mouse.wheel(0, -20_000)
    expect(page.locator("#header")).to_be_in_viewport()
    plan, knob = page.locator("#train-plan"), page.get_by_label("Start from", exact=True)
    assert plan.bounding_box()["y"] < knob.bounding_box()["y"]
    expect(page.locator("#train-start")).to_be_in_viewport(ratio=1)
