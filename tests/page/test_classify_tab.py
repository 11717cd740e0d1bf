"""The Classify tab over the bundled sample runs. No test knows how good they are."""

import csv
import io
import json
import re
import threading
import urllib.request

import pytest
from playwright.sync_api import expect

from lora_gpt.ui.classify_view import EXAMPLES
from lora_gpt.words import percent

NASTY = "<img src=x onerror=alert(1)> ${1+1} {{7*7}}"
PAY = EXAMPLES[0][1]


@pytest.fixture
def classify(visit):
    """The open tab, once the first message is answered to the end."""

    def go():
        page = visit("Classify")
        answered(page, PAY)
        expect(page.locator("#changes .plot")).to_be_visible()
        return page

    return go


def answered(page, text):
    """Wait until `text` is on show with its words and its curve."""
    first = text.split()[0]
    expect(page.locator("#words .word").first).to_have_text(first)
    expect(page.locator("#words .key")).to_be_visible()
    expect(page.locator("#strength .plot")).to_be_visible()


def test_works_at_once(app, classify):
    """The tab opens with a sample run and an answered message, before anything was trained."""
    page = classify()
    [verdict] = app.service.classify("sample", [PAY])
    [before] = app.service.classify_before("sample", [PAY])
    shown = page.locator("#verdict")
    expect(shown.locator(".verdict")).to_contain_text(verdict.label)
    expect(shown.get_by_label("after training")).to_have_attribute(
        "aria-label", f"after training: {percent(verdict.p_spam)} probability of spam"
    )
    expect(shown.get_by_label("before training")).to_have_attribute(
        "aria-label", f"before training: {percent(before.p_spam)} probability of spam"
    )
    expect(page.get_by_label("Classifier")).to_have_value(re.compile(r"^sample, .* in test: "))


def test_example(app, classify):
    """An example is classified by one click, and read out: by a region that stays while its text
    changes, for one that is put in with it is not read."""
    page, text, said = classify(), EXAMPLES[-1][1], "#verdict-said [role=status]"
    expect(page.locator(said)).to_contain_text(f"“{PAY[:20]}")
    page.evaluate(f"document.querySelector('{said}').dataset.kept = 'yes'")
    page.locator("button.example", has_text=text).click()
    answered(page, text)
    expect(page.get_by_label("Message", exact=True)).to_have_value(text)
    [verdict] = app.service.classify("sample", [text])
    expect(page.locator("#verdict .verdict")).to_contain_text(percent(verdict.p_spam))
    expect(page.locator(said)).to_contain_text(f"“{text[:20]}")
    expect(page.locator(said)).to_have_attribute("data-kept", "yes")


def test_words_by_mouse_and_keyboard(classify):
    """A word that is pointed at says what happens without it; arrow keys go from word to word."""
    page = classify()
    words, says = page.locator("#words .word"), page.locator("#words .says")
    words.nth(1).hover()
    expect(says).to_have_text(words.nth(1).get_attribute("aria-label"))
    expect(says).to_contain_text(f"Without “{PAY.split()[1]}” the probability of spam")
    words.nth(1).focus()
    page.keyboard.press("ArrowRight")
    expect(words.nth(2)).to_be_focused()
    expect(says).to_contain_text(f"Without “{PAY.split()[2]}”")


def test_strength(app, classify):
    """The slider shows the message at another strength of the adapter, 0 being none of it."""
    page = classify()
    page.get_by_label("number input for Strength of the adapter").fill("0")
    page.keyboard.press("Enter")
    [verdict] = app.service.classify("sample", [PAY], 0.0)
    shown = page.locator("#verdict .verdict")
    expect(shown).to_contain_text(f"{percent(verdict.p_spam)} probability of spam at strength 0")
    expect(page.locator("#verdict").get_by_label("at strength 0:")).to_be_visible()
    expect(page.locator("#verdict").get_by_label("after training")).to_have_count(0)
    expect(page.locator("#words")).to_contain_text("with the adapter at strength 1")
    page.get_by_label("number input for Strength of the adapter").fill("")
    page.locator("#strength").get_by_role("button", name="Reset to default value").click()
    expect(page.locator("#verdict").get_by_label("after training")).to_be_visible()


def test_the_message_before_is_dimmed_while_the_model_works(app, classify, monkeypatch):
    """What is on show must not be taken for the answer to the message that was just sent."""
    page, answer, may = classify(), app.service.classify, threading.Event()

    def slow(*asked):
        assert may.wait(30)
        return answer(*asked)

    monkeypatch.setattr(app.service, "classify", slow)
    page.locator("button.example", has_text=EXAMPLES[-1][1]).click()
    try:
        for part in ("#verdict", "#words", "#strength"):
            expect(page.locator(f"{part} .pending")).to_be_visible()
    finally:
        may.set()
    answered(page, EXAMPLES[-1][1])
    expect(page.locator(".pending")).to_have_count(0)


def test_words_that_are_not_answered(app, classify, monkeypatch):
    """Where explaining fails a sentence says so, and the verdict and the curve are there."""
    page, text = classify(), EXAMPLES[-1][1]

    def fail(*asked):
        raise ValueError("no words today")

    monkeypatch.setattr(app.service, "attributions", fail)
    page.locator("button.example", has_text=text).click()
    expect(page.locator("#words .says")).to_contain_text("did not answer (no words today)")
    expect(page.locator("#words .words")).to_have_text(text)
    expect(page.locator("#strength .plot")).to_be_visible()


def test_text_is_only_text(classify):
    """HTML and template syntax in a message are shown as they were typed, and never run."""
    page = classify()
    page.on("dialog", lambda dialog: pytest.fail("the message ran as a script"))
    page.get_by_label("Message", exact=True).fill(NASTY)
    page.get_by_role("button", name="Classify", exact=True).click()
    answered(page, NASTY)
    expect(page.locator("#words .words")).to_have_text(NASTY)
    page.get_by_label("Messages", exact=True).fill(f"{NASTY}\nSee you at seven")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#verdicts td.text").first).to_have_text(NASTY)
    assert page.locator("img[src='x']").count() == 0


def test_an_empty_message_is_refused(classify):
    """Nothing to classify is said in a sentence, and the page goes on."""
    page = classify()
    page.get_by_label("Message", exact=True).fill("  ")
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#verdict")).to_have_text("Message must not be empty")
    expect(page.locator("#words")).to_be_hidden()
    page.locator("button.example").first.click()
    answered(page, PAY)


def test_many_messages_and_their_file(classify):
    """Lines, pasted from a spreadsheet with its header, become a table, and the table can be taken
    away as CSV at the first click."""
    page = classify()
    page.get_by_label("Messages", exact=True).fill(
        "label\ttext\nspam\tWin a prize now\n\nham\t=1+1 is two\n"
    )
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#verdicts .count")).to_contain_text("2 messages:")
    with page.expect_download() as taken:
        page.get_by_text("Download as CSV").click()
    assert taken.value.suggested_filename == "verdicts.csv"
    contents = taken.value.path().read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(contents)))
    assert [row["text"] for row in rows] == ["Win a prize now", "'=1+1 is two"]
    assert all(row["label"] in ("spam", "ham") for row in rows)
    assert all(0 <= float(row["p_spam"]) <= 1 for row in rows)


def upload(page, name, contents):
    file = {"name": name, "mimeType": "text/plain", "buffer": contents}
    page.locator("#messages-file input[type=file]").set_input_files(file)


def test_file(classify):
    """The text column of a CSV file is classified, whatever else stands in it."""
    page = classify()
    upload(page, "mine.csv", b'id,text\n1,"Hello, you"\n2,Win a prize\n')
    expect(page.locator("#verdicts td.text")).to_have_text(["Hello, you", "Win a prize"])


def test_bad_file(visit):
    """A file that is no text is refused in a sentence that names it, where the verdicts of other
    messages stood: they are no answer to this one."""
    page = visit("Classify")
    page.get_by_label("Messages", exact=True).fill("Win a prize now")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#verdicts .count")).to_be_visible()
    upload(page, "mine.csv", b"PK\x03\x04\0\0\0\0")
    expect(page.locator("#verdicts")).to_contain_text("mine.csv: must be a text file")
    expect(page.get_by_text("Download as CSV")).to_be_hidden()


def test_another_classifier(app, classify):
    """Choosing another run answers the same message anew, and shows what that run changed."""
    page = classify()
    names = [run.id for run in app.service.sample_runs()]
    assert len(names) == 4, "the bundled runs"
    page.get_by_label("Classifier").click()
    page.get_by_role("option").last.click()
    [verdict] = app.service.classify(names[-1], [PAY])
    expect(page.locator("#verdict .verdict")).to_contain_text(percent(verdict.p_spam))


def test_a_classifier_without_lora(app, classify):
    """It has no strength to set, and the page says so; the slider comes back with the next."""
    page, methods = classify(), {run.config.training.method for run in app.service.sample_runs()}
    assert "head" in methods
    page.get_by_label("Classifier", exact=True).click()
    page.get_by_role("option", name="head only").click()
    expect(page.locator("#no-strength")).to_contain_text("This run trained no LoRA")
    expect(page.locator("#strength")).to_be_hidden()
    expect(page.locator("#words .key")).to_be_visible()
    expect(page.locator("#words")).not_to_contain_text("strength")
    page.get_by_label("Classifier", exact=True).click()
    page.get_by_role("option", name="LoRA").first.click()
    answered(page, PAY)
    expect(page.locator("#no-strength")).to_be_hidden()


def test_updates_of_all_layers(app, classify):
    """Every layer that LoRA wraps has a row with its size and its singular values."""
    page = classify()
    page.get_by_text("Every layer, with its singular values").click()
    updates = app.service.updates("sample")
    expect(page.locator("#changes tbody tr")).to_have_count(len(updates))
    assert page.locator("#changes .spectrum").first.get_attribute("aria-label")


def asked(app, *values):
    """What the API answers to `values`: the name of the event and its data."""
    address = f"{app.url}/gradio_api/call/classify"
    body = json.dumps({"data": list(values)}).encode()
    post = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(post) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/{event}") as answer:
        lines = answer.read().decode().splitlines()
    return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))


def test_api(app):
    """The API gives a verdict for each text, the same as the page's."""
    kind, [verdicts] = asked(app, [PAY, "See you at seven"], "sample")
    assert kind == "complete"
    expected = app.service.classify("sample", [PAY, "See you at seven"])
    assert [each["label"] for each in verdicts] == [each.label for each in expected]
    assert verdicts[0] == {
        "text": PAY,
        "label": expected[0].label,
        "p_spam": pytest.approx(expected[0].p_spam, abs=1e-5),
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (([], "sample"), "must not be empty"),
        (("no list", "sample"), "must be a list of texts"),
        (([1, 2], "sample"), "must be a list of texts"),
        ((["x" * 20_001], "sample"), "at most 20,000 characters"),
        ((["x"] * 2_001, "sample"), "at most 2,000 at once"),
        ((["x"], "../../etc"), "must be the id of a run"),
    ],
)
def test_api_refuses(app, values, says):
    """The API refuses what it was not made for, in a sentence."""
    kind, told = asked(app, *values)
    assert kind == "error"
    assert says in json.dumps(told)
