"""Tokenizers as `tiktoken.Encoding`: GPT-2's own, and the small one of the bundled model.

Both are byte-level, so any text can be encoded. Knows nothing of models. The bundled vocabulary is
a file of ours in tiktoken's format: one base64 token and its rank a line.
"""

import base64
from functools import cache
from pathlib import Path

import requests
import tiktoken
import tiktoken.load

from lora_gpt.core.fetching import TIMEOUTS, faults_of_this_minute

ASSETS = Path(__file__).parents[2] / "assets"
VOCABULARY = ASSETS / "mini" / "vocabulary.tiktoken"
END_OF_TEXT = "<|endoftext|>"
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How the small encoding cuts text into words before merging; digits go in pairs, so that numbers
of any length are made of few tokens."""


class TokenizerUnavailableError(OSError):
    """The tokenizer's files are neither cached nor reachable."""


def from_file(vocabulary: Path, name: str = "mini") -> tiktoken.Encoding:
    """The encoding whose vocabulary stands in `vocabulary`; the end-of-text token comes last."""
    # Not tiktoken's own reader: it caches by path and would keep a vocabulary since replaced.
    lines = vocabulary.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    return tiktoken.Encoding(
        name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


@cache
def load(name: str) -> tiktoken.Encoding:
    """The encoding called `name`: 'mini' from `assets/`, others from tiktoken.

    tiktoken downloads GPT-2's files once and keeps them (in TIKTOKEN_CACHE_DIR, where it is set).
    Raises TokenizerUnavailableError when that fails, and for about a minute without a new try.
    """
    if name == "mini":
        return from_file(VOCABULARY)
    with faults_of_this_minute(name) as faults:
        if not faults:
            # tiktoken's own waits for ever on a network that drops what it is sent.
            tiktoken.load.read_file = _read_file
            try:
                return tiktoken.get_encoding(name)
            except (OSError, ValueError) as error:
                faults.append(error)
    raise TokenizerUnavailableError(
        f"The tokenizer of {name} is not on this machine and could not be downloaded. Connect"
        " to the internet once, or set TIKTOKEN_CACHE_DIR to a folder that holds its files."
    ) from faults[0]


def _read_file(blobpath: str) -> bytes:
    response = requests.get(blobpath, timeout=TIMEOUTS)
    response.raise_for_status()
    return response.content


ENDS = {"mini": "\n"}
"""What is put behind a message, by the name of the encoding. The bundled model has read messages a
line each, several of one sender below each other: at the end of a line it had to tell how the same
sender goes on, so that is where it knows most of the whole message. GPT-2 is asked at the last
token of the message itself, as in the labs."""


def end_of(encoding: tiktoken.Encoding) -> list[int]:
    """The tokens that are put behind every message."""
    return encoding.encode_ordinary(ENDS.get(encoding.name, ""))


def longest_message(encoding: tiktoken.Encoding, context_length: int, max_tokens: int = 0) -> int:
    """How many tokens of a message are read: `max_tokens`, or all (0) that leave room for the end
    in a context of `context_length`."""
    room = context_length - len(end_of(encoding))
    return min(max_tokens or room, room)


def ended(encoding: tiktoken.Encoding, tokens: list[int]) -> list[int]:
    """A message's tokens with the end that belongs behind it, at least one: where there is neither,
    one end-of-text."""
    return tokens + end_of(encoding) or [encoding.eot_token]


def encode(encoding: tiktoken.Encoding, text: str, longest: int) -> list[int]:
    """The first `longest` tokens of `text`, `ended`.

    Special tokens in the text are read as plain characters: people may type them.
    """
    return ended(encoding, encoding.encode_ordinary(text)[:longest])
