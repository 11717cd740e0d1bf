"""A vocabulary that is learnt from text and read by tiktoken."""

import pytest

from lora_gpt.core import tokenizer
from lora_gpt.core.pretrain.corpus import SOURCES
from lora_gpt.core.pretrain.vocabulary import write_vocabulary

TEXTS = [
    "",
    "the parcel is waiting for you",
    "URGENT! £1,000 prize, call 09061701461 now!!!",
    "Ünïcödé 中文 العربية 🎉👩‍👩‍👧",
    "tabs\tand\r\nlines  \n\n end ",
    "\x00\x1f\x7f\ufeff<|endoftext|>",
]
SIZE = 400


def write_sources(folder):
    for source in SOURCES:
        documents = [f"the parcel number {n} is waiting at the {source.file}" for n in range(40)]
        (folder / f"{source.file}.train.txt").write_text("\0".join(documents), encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the file, how many tokens it was said to hold)"""
    folder = tmp_path_factory.mktemp("corpus")
    write_sources(folder)
    out = folder / "assets" / "vocabulary.tiktoken"
    return out, write_vocabulary(folder, out, SIZE)


@pytest.fixture(scope="module")
def encoding(written):
    return tokenizer.from_file(written[0])


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])
def test_any_text_comes_back(encoding, text):
    """Byte-level: also what the tiny corpus never held."""
    assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_the_end_of_text_is_the_one_token_that_is_not_learnt(written, encoding):
    """At most `size` in all, so that the model's table has a row for each."""
    out, count = written
    assert len(out.read_text("ascii").splitlines()) == count < SIZE
    assert encoding.eot_token == count and encoding.n_vocab == count + 1


def test_frequent_words_became_tokens(encoding):
    """What was learnt shortens the text that it was learnt from."""
    assert len(encoding.encode_ordinary(" parcel")) == 1
    assert len(encoding.encode_ordinary(" the parcel is waiting")) == 4


def test_digits_go_in_pairs(encoding):
    """Numbers of any length are cut the same way."""
    tokens = [encoding.decode([t]) for t in encoding.encode_ordinary("09061701461")]
    assert all(len(token) <= 2 for token in tokens)


def test_the_same_seed_learns_the_same(tmp_path, written):
    write_sources(tmp_path)
    again = tmp_path / "again"
    write_vocabulary(tmp_path, again, SIZE)
    assert again.read_bytes() == written[0].read_bytes()
