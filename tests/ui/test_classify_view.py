from dataclasses import replace

import pytest

from lora_gpt.core.classify import Verdict
from lora_gpt.core.insight import Update, Word
from lora_gpt.ui import classify_view as view

NASTY = """<img src=x onerror=alert(1)> ${1+1} {{7*7}} "'"""


HELLO = Verdict("hello", "spam", 0.987)


def test_verdict_says_both():
    """The label stands in large, the probability after and before training beside it."""
    html = view.verdict_html(HELLO, replace(HELLO, label="ham", p_spam=0.412))
    assert "<p class='verdict spam'>spam" in html
    assert "after training: 98.7% probability of spam" in html
    assert "before training: 41.2% probability of spam" in html
    assert "strength" not in html and "left out" not in html


def test_verdict_at_strength():
    """A verdict at another strength says so, at its bar too, and a message that was cut says that.

    Only at strength 1 does the model stand as it was after training.
    """
    html = view.verdict_html(replace(HELLO, truncated=True), HELLO, strength=0.5)
    assert "probability of spam at strength 0.5</span>" in html and "its end was left out" in html
    assert "aria-label='at strength 0.5: 98.7% probability of spam'" in html
    assert "after training" not in html


def test_verdict_is_told():
    """The sentence for screen readers differs where messages differ, even with one verdict."""
    assert view.told_html(HELLO) == "“hello”: spam, 98.7% probability of spam."
    assert view.told_html(HELLO, 0.5).endswith("98.7% probability of spam at strength 0.5.")
    long = view.told_html(replace(HELLO, text="x" * 300))
    assert len(long) < 120 and "x …”" in long


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (0.81, "falls from 98.7% to 81.0%."),
        (0.995, "rises from 98.7% to 99.5%."),
        (0.98702, "stays at 98.7%."),
    ],
)
def test_without_sentence(without, says):
    """A word's sentence says what happens to the probability when it is left out."""
    word = Word("Pay", 0.987 - without, without)
    start = "Without “Pay” the probability of spam "
    assert view.without_sentence(word, 0.987) == start + says


def test_words_are_tinted_by_weight():
    """The strongest word has the strongest tint, and a word that does nothing has none."""
    assert view.tint(0.4, 0.4) == ("spam", view.STRONGEST_TINT)
    assert view.tint(-0.2, 0.4) == ("ham", view.STRONGEST_TINT // 2)
    assert view.tint(0.001, 0.4) == ("", 0)
    words = [Word("Pay", 0.2, 0.7), Word("me", 0.0, 0.9), Word("later", -0.05, 0.95)]
    html = view.words_html(words, total=3)
    assert "Without “Pay” the probability of spam falls from 90.0% to 70.0%.</p>" in html
    assert html.count("tabindex='0'") == 1 and html.count("tabindex='-1'") == 2
    assert "were tried" not in html


def test_words_that_move_little_are_tinted_little():
    """The full colour is that of 25 points or more, and the page says what it stands for."""
    little = view.words_html([Word("Pay", 0.006, 0.993), Word("me", 0.0, 0.999)], total=2)
    assert "--tint:8%" in little and "--tint:50%" not in little
    assert "deepest colour stands for a move of 25 percentage points" in little
    much = view.words_html([Word("Pay", 0.6, 0.3), Word("me", 0.3, 0.6)], total=2)
    assert "--tint:50%" in much and "--tint:25%" in much
    assert "deepest colour stands for a move of 60 percentage points" in much


def test_words_hold_at_strength_1():
    """The slider moves the verdict and not the words, so these name their strength."""
    words = [Word("Pay", 0.2, 0.7)]
    assert "with the adapter at strength 1." in view.words_html(words, total=1)
    assert "strength" not in view.words_html(words, total=1, lora=False)


def test_words_are_read_out_once():
    """A screen reader reads a word's sentence at the word; below, it only stands."""
    assert "aria-live" not in view.words_html([Word("Pay", 0.2, 0.7)], total=1)


def test_words_without_an_answer():
    """Where the model gave no answer the page says so, and goes on showing the message."""
    html = view.unexplained_html("Pay now")
    assert "Pay now" in html and "did not answer." in html and "Asking" not in html
    assert "did not answer (too long)." in view.unexplained_html("Pay now", "too long")


def test_words_that_decide_nothing():
    """Where no word matters alone, the page says so rather than tinting noise."""
    html = view.words_html([Word("a", 0.001, 0.9), Word("b", -0.002, 0.9)], total=400)
    assert "No single word decides" in html and "--tint" not in html
    assert "Only the first 2 of 400 words were tried." in html
    assert view.words_html([], total=0) == ""


def test_table_counts_and_shortens():
    """A table counts all messages and shows the first ones."""
    html = view.table_html([HELLO, replace(HELLO, label="ham", p_spam=0.1)] * 40)
    assert "80 messages: 40 spam, 40 ham. The first 50 are shown." in html
    assert html.count("<tr>") == 51
    assert "1 message: 1 spam, 0 ham." in view.table_html([HELLO])


def test_texts_are_escaped():
    """No text of a visitor enters the page as HTML, wherever it stands."""
    verdict, word = replace(HELLO, text=NASTY), Word(NASTY, 0.5, 0.2)
    for html in (
        view.verdict_html(verdict, verdict),
        view.told_html(verdict),
        view.pending_html(NASTY),
        view.unexplained_html(NASTY),
        view.words_html([word], total=1),
        view.table_html([verdict]),
        view.updates_html([Update(NASTY, 0.1, (1.0,))]),
    ):
        assert "<img" not in html and "\"'" not in html


def test_updates():
    """The update of each layer is told with its size and its singular values."""
    updates = [
        Update("trf_blocks.0.att.W_query", 0.1234, (3.0, 1.5)),
        Update("trf_blocks.1.ff.layers.0", 0.05, (1.0, 0.5)),
    ]
    said = view.updates_sentence(updates)
    assert "Beside each of 2 frozen weights" in said and "rank 2" in said
    assert "0.att.W_query, 12.3%" in said and "1.ff.layers.0, 5%" in said
    html = view.updates_html(updates)
    assert html.count("<tr>") == 3
    assert "title='3, 1.5'" in html and "height:100%" in html and "height:50%" in html


def test_no_updates():
    """A run without LoRA has no update, and says so."""
    assert "trained no LoRA" in view.updates_sentence([])
    assert view.updates_html([]) == ""


def test_examples_of_both_classes():
    """There are as many examples of spam as of ham, spam first."""
    classes = [is_spam for is_spam, _ in view.EXAMPLES]
    assert classes == sorted(classes, reverse=True) and sum(classes) * 2 == len(classes)
