"""Tokenizers: the bundled one, GPT-2's, and what happens without a network."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken

from lora_gpt.config import MODELS
from lora_gpt.core import fetching, tokenizer

TEXTS = [
    "",
    " ",
    "URGENT! You have won a £1,000 prize, call 09061701461 now!!!",
    "see you at 8 :)\n\n\tlove\r\n",
    "Ünïcödé, 中文, العربية, हिन्दी",
    "🎉👩‍👩‍👧‍👦🇩🇪",
    "e\u0301 \u200b\u202e\ufeff\x00\x1f\x7f",
    "a" * 500,
    "<|endoftext|>",
    "".join(chr(c) for c in range(0, 0x110000, 97) if not 0xD800 <= c < 0xE000),
]


@pytest.fixture
def fresh():
    """No encoding and no fault is remembered before or after the test."""
    tokenizer.load.cache_clear()
    fetching._faults.cache_clear()
    yield
    tokenizer.load.cache_clear()
    fetching._faults.cache_clear()


@pytest.fixture(scope="module")
def mini():
    return tokenizer.load("mini")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:30])
def test_any_text_comes_back_as_it_was(mini, text):
    """The bundled encoding is byte-level: nothing is lost and nothing is unknown."""
    assert mini.decode(mini.encode_ordinary(text)) == text


def test_every_byte_is_a_token(mini):
    """Whatever 256 bytes there are can be written."""
    for value in range(256):
        assert mini.decode_bytes([mini.encode_single_token(bytes([value]))]) == bytes([value])


def test_the_bundled_encoding_fits_the_bundled_model(mini):
    """4,096 tokens, the end-of-text token last."""
    assert mini.n_vocab == 4096 == MODELS["mini"].config.vocab_size
    assert mini.eot_token == 4095


def test_special_tokens_in_a_text_are_plain_characters(mini):
    """People may type them; they never become the special token."""
    tokens = tokenizer.encode(mini, "<|endoftext|>", 100)
    assert mini.eot_token not in tokens
    assert mini.decode(tokens) == "<|endoftext|>\n"


def test_an_empty_text_has_one_token(mini):
    """So that there is a last token to classify at: the end of a line, or else the end of text."""
    assert tokenizer.encode(mini, "", 10) == mini.encode_ordinary("\n")
    other = tokenizer.from_file(tokenizer.VOCABULARY, "other")
    assert tokenizer.encode(other, "", 10) == [other.eot_token]


def test_a_long_text_is_cut(mini):
    """Its first tokens are kept, and the end of its line."""
    text = "one two three four five six"
    (line_break,) = mini.encode_ordinary("\n")
    assert tokenizer.encode(mini, text, 3) == [*mini.encode_ordinary(text)[:3], line_break]
    assert tokenizer.encode(mini, text, 99) == [*mini.encode_ordinary(text), line_break]


def test_the_end_has_room_in_the_context(mini):
    """Where only the context sets a limit, and where a knob does."""
    assert tokenizer.longest_message(mini, 256) == 255
    assert tokenizer.longest_message(mini, 256, 256) == 255
    assert tokenizer.longest_message(mini, 256, 40) == 40
    other = tokenizer.from_file(tokenizer.VOCABULARY, "other")
    assert tokenizer.longest_message(other, 256) == 256


def test_every_model_names_an_encoding_of_its_size():
    """The small model has the bundled one, GPT-2's have GPT-2's."""
    mini = MODELS["mini"]
    assert tokenizer.load(mini.encoding).n_vocab == mini.config.vocab_size
    others = {spec.encoding for name, spec in MODELS.items() if name != "mini"}
    assert others == {"gpt2"} and mini.encoding != "gpt2"


@pytest.mark.parametrize("fault", [ConnectionError("no route"), ValueError("bad hash")], ids=repr)
def test_out_of_reach_is_a_sentence_that_says_what_to_do(monkeypatch, fresh, fault):
    """Neither cached nor downloadable: connect once, or name the folder."""

    def unreachable(name):
        raise fault

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(tokenizer.TokenizerUnavailableError) as caught:
        tokenizer.load("gpt2")
    assert "gpt2" in str(caught.value)
    assert "Connect to the internet once" in str(caught.value)
    assert "TIKTOKEN_CACHE_DIR" in str(caught.value)


def test_what_could_not_be_had_is_not_tried_again_at_once(monkeypatch, fresh):
    """Whoever moves a slider must not wait for the network each time; a minute later it is asked
    anew, and what is there then stays."""
    now, asked, network = [600.0], [], {"is away": True}

    def get_encoding(name):
        asked.append(name)
        if network["is away"]:
            raise ConnectionError("no route")
        return tokenizer.load("mini")

    monkeypatch.setattr(fetching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    for now[0] in (600.0, 659.0, 661.0):
        with pytest.raises(tokenizer.TokenizerUnavailableError, match="could not be downloaded"):
            tokenizer.load("gpt2")
    assert asked == ["gpt2"] * 2
    now[0], network["is away"] = 721.0, False
    assert tokenizer.load("gpt2") is tokenizer.load("gpt2")
    assert asked == ["gpt2"] * 3


def test_a_download_does_not_wait_for_ever(monkeypatch, fresh, tmp_path):
    """On a network that drops packets nothing would come back."""
    given = []

    def get(url, timeout=None):
        given.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr("requests.get", get)
    with pytest.raises(tokenizer.TokenizerUnavailableError):
        tokenizer.load("gpt2")
    assert given == [tokenizer.TIMEOUTS] and max(given[0]) <= 30


def test_the_bundled_encoding_needs_no_network(monkeypatch, fresh):
    """tiktoken is not asked for it."""
    monkeypatch.setattr(tiktoken, "get_encoding", None)
    assert tokenizer.load("mini").name == "mini"


@pytest.mark.data
@pytest.mark.skipif("LORA_GPT_DATA" not in os.environ, reason="LORA_GPT_DATA is not set")
def test_gpt2s_encoding_is_the_real_one(monkeypatch, fresh):
    """50,257 tokens; the ids are those that GPT-2 was trained with."""
    cache = Path(os.environ["LORA_GPT_DATA"]) / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    encoding = tokenizer.load("gpt2")
    assert encoding.n_vocab == 50257
    assert encoding.encode_ordinary("Hello, I am") == [15496, 11, 314, 716]
    for text in TEXTS:
        assert encoding.decode(encoding.encode_ordinary(text)) == text
