"""What is kept out of the pretraining text, and how the rest is cut, typed and mixed."""

import json
import lzma
import os
import random
import re

import pytest

from lora_gpt.config import DataConfig
from lora_gpt.core.data import read_messages
from lora_gpt.core.pretrain import corpus
from lora_gpt.core.pretrain.corpus import (
    LONGEST,
    OWN,
    SHORTHAND,
    SOURCES,
    KeptOut,
    documents,
    informal,
    is_held_out,
    read_documents,
    renumbered,
    tidy_mail,
    words_of,
    write_corpus,
)

SMS = (
    pytest.mark.data,
    pytest.mark.skipif("LORA_GPT_DATA" not in os.environ, reason="LORA_GPT_DATA is not set"),
)
LONG = "URGENT! You have won a guaranteed 1000 pounds prize, call 09061701461 from your landline"
SHORT = "Ok lar"
THREE = "unbelievably convincing advertisement"
KEPT_OUT = KeptOut([LONG, SHORT, THREE, "", "12345 !!"])


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        LONG.lower(),
        LONG.upper(),
        "urgent you have won a guaranteed pounds prize... call; from your landline!!!",
        LONG.replace("09061701461", "08000930705").replace("1000", "2,000"),
        LONG.replace(" ", "\n"),
        f"Dear Ann,\n\nthis came today: {LONG}\nIs it true?\n",
        f"see that: {LONG.lower()} :( what now",
        "URGENT! You have won a guaranteed 1000 pounds prize, bring it home with you tonight",
        "he said: won a guaranteed 1000 pounds prize, call 0906 from your landline",
        SHORT,
        "ok, LAR!",
        "Hello\nok lar\nbye",
        f"An {THREE.title()}!",
    ],
)
def test_copies_are_found(text):
    """Exact, re-cased, re-punctuated, with other digits, embedded, or half of it."""
    assert KEPT_OUT.holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!! 123",
        "You have won a place in our hearts, call me from your landline",
        "I told him it was ok larry was there",
        "Please call me when you get home, I have won the game",
        "an unbelievably convincing story",
        "URGENT! You have won a car",
    ],
)
def test_ordinary_sentences_pass(text):
    """A few shared words, or a short message inside another sentence, are not a copy."""
    assert not KEPT_OUT.holds(text)


def test_nothing_is_kept_out_by_nothing():
    """An empty collection lets everything through, also empty text."""
    assert not KeptOut([]).holds(LONG)
    assert not KeptOut(["", "..."]).holds("")


def test_words_have_neither_case_nor_digits_nor_signs():
    assert words_of("I'm HERE, 2nite: call 0800-CALL!") == ["im", "here", "nite", "call", "call"]


def test_documents_are_cut_as_their_source_is_written():
    """By lines, blank lines, subjects or size; crumbs are dropped, the long are cut."""
    by_kind = {source.documents: source for source in SOURCES}
    assert [*documents(by_kind["line"], "One two\n\nab\n three \n")] == ["One two", "three"]
    assert [*documents(by_kind["blank-line"], "a: Hi\nb: Ho\n\n\nc: Hey")] == [
        "a: Hi\nb: Ho",
        "c: Hey",
    ]
    mails = "Subject: one\n\nbody\n\nSubject: two\nbody"
    assert [*documents(by_kind["subject"], mails)] == [
        "Subject: one\n\nbody",
        "Subject: two\nbody",
    ]
    book = "\n".join(["word " * 100] * 5)
    found = [*documents(by_kind["book"], book)]
    assert [len(each.split()) for each in found] == [300, 200]
    assert [len(each) for each in documents(by_kind["line"], "x" * (LONGEST + 9))] == [LONGEST]


@pytest.mark.parametrize(
    ("apart", "joined"),
    [
        ("i ' m sure it ' s fine , really !", "i'm sure it's fine, really!"),
        ("at 10 : 30 for $ 1 , 000 . 50", "at 10:30 for $1,000.50"),
        ("www . site", "www.site"),
        ("a - b / c ( d ) -------- e", "a-b/c (d)  e"),
    ],
)
def test_mail_is_joined_again(apart, joined):
    """The archive sets words and signs apart."""
    assert tidy_mail(apart) == joined


def test_typing_is_loosened_by_the_seed_alone():
    """The same seed types the same; different seeds type in many ways."""
    text = "I'm going to see you tomorrow, please text your answer before work. Thanks!"
    typed = [informal(text, random.Random(seed)) for seed in range(60)]
    assert typed == [informal(text, random.Random(seed)) for seed in range(60)]
    assert len(set(typed)) > 30
    words = {word for each in typed for word in words_of(each)}
    assert words <= set(words_of(text)) | {w for s in SHORTHAND.values() for w in words_of(s)}
    plain = [informal("Rain fell.", random.Random(seed)) for seed in range(60)]
    assert any(each.isupper() for each in plain) and any(each.islower() for each in plain)


# --- the step ------------------------------------------------------------------------------------

PIECES = {
    "line": "\n",
    "blank-line": "\n\n",
    "subject": "\n\nSubject: ",
    "book": "\n",
    "thread": "\n\n",
}


def write_sources(folder, planted):
    """A tiny archive of every source, with `planted` in the middle of each."""
    folder.mkdir()
    for source in SOURCES:
        sentences = [f"Sentence number {n} speaks of {source.file} and rain" for n in range(150)]
        if source.documents == "book":  # a document gathers many paragraphs
            sentences = [sentence * 20 for sentence in sentences]
        sentences[75] += f" {planted}"
        text = PIECES[source.documents].join(sentences)
        with lzma.open(folder / f"{source.file}.txt.xz", "wt", encoding="utf-8") as file:
            file.write(text)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(corpus, "tqdm", lambda documents, **_: documents)


def test_a_planted_message_is_kept_out_and_counted(tmp_path):
    """In no part of any source stands what was planted, whatever its case."""
    write_sources(tmp_path / "texts", LONG.upper())
    report = write_corpus(tmp_path / "texts", [LONG], tmp_path / "out", own=tmp_path / "texts")
    assert report == json.loads((tmp_path / "out" / "corpus.json").read_text("utf-8"))
    assert [*report] == [source.file for source in SOURCES]
    for source in SOURCES:
        kept = [
            document
            for part in ("train", "held_out")
            for document in read_documents(tmp_path / "out", source, part)
            if document
        ]
        about = report[source.file]
        train = read_documents(tmp_path / "out", source, "train")
        copied = len(train) // source.copies * (source.copies - 1)
        assert about["dropped"] == 1
        assert len(kept) - copied == about["documents"] - 1 > 50
        assert not any("landline" in document.lower() for document in kept)
        # Counted before they are typed anew, which adds and drops a few signs.
        written = sum(map(len, train)) / source.copies
        assert about["characters"] == pytest.approx(written, rel=0.05)


def test_the_same_seed_writes_the_same_files(tmp_path):
    """Order and typing come from the seed; another seed shuffles otherwise."""
    write_sources(tmp_path / "texts", "")
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_corpus(tmp_path / "texts", [LONG], tmp_path / name, seed, tmp_path / "texts")
    written = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two", "other")
    }
    assert written["one"] == written["two"] != written["other"]


def test_held_out_documents_are_not_trained_on(tmp_path, monkeypatch):
    """Chosen by their content, so that another order cannot move one into training."""
    monkeypatch.setattr(corpus, "HELD_OUT", 0.2)
    write_sources(tmp_path / "texts", "")
    held = []
    for seed in (0, 1):
        write_corpus(tmp_path / "texts", [], tmp_path / str(seed), seed, tmp_path / "texts")
        held.append(
            {
                document
                for source in SOURCES
                for document in read_documents(tmp_path / str(seed), source, "held_out")
            }
        )
    assert held[0] == held[1] and 50 < len(held[0]) < 250
    assert all(is_held_out(document) for document in held[0])


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"texts: .*enron_spam_mail\.txt\.xz is missing"):
        write_corpus(tmp_path, [], tmp_path / "out")


def test_of_a_thread_only_the_line_is_kept_out():
    """The other messages of that sender stay."""
    thread = f"Hello from the shop\n{LONG}\nok, LAR!\nWe close at six"
    assert KEPT_OUT.without(thread) == "Hello from the shop\nWe close at six"
    assert KEPT_OUT.without(LONG) == ""


def test_copies_differ_in_digits_and_typing_but_not_in_length_of_numbers():
    """A number keeps its shape, so that a shortcode stays a shortcode."""
    text = "Call 0909 879 0123, £1.50 a minute"
    found = {renumbered(text, random.Random(seed)) for seed in range(40)}
    assert text in found and len(found) > 10
    assert {re.sub(r"\d", "0", each) for each in found} == {re.sub(r"\d", "0", text)}


@pytest.mark.parametrize("own", [each for each in SOURCES if each.documents == "thread"])
@pytest.mark.parametrize("data", ["bundled", pytest.param("sms-spam", marks=SMS)])
def test_our_own_threads_hold_no_message_of_the_data_sets(data, own):
    """What the filter lets through of the text in the repository: not one line is a message,
    exactly or nearly, and most of the text is left."""
    kept_out = KeptOut([each.text for each in read_messages(DataConfig(data=data))])
    with lzma.open(OWN / f"{own.file}.txt.xz", "rt", encoding="utf-8") as file:
        threads = list(documents(own, file.read()))
    kept = [kept_out.without(thread) for thread in threads]
    lines = [line for thread in kept for line in thread.splitlines()]
    assert not any(kept_out.holds(line) for line in lines)
    whole = sum(len(thread.splitlines()) for thread in threads)
    assert 0.99 * whole < len(lines) <= whole
