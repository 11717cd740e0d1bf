"""Step 1: the pretraining text, read, cleaned of everything that stands in the SMS data, mixed.

Reads `*.txt.xz` of the sources below and writes one file of documents a source and part. A document
that holds a message of the data sets, exactly or nearly, is dropped, so that no test message
is ever seen in pretraining. Some conversational documents are also written the way people type
on phones: the sources are edited prose, the task is not. Knows nothing of tokens or models.

The text is read in two stages, language before messages: `STAGES` says which source has which share
of the tokens of each.
"""

import hashlib
import json
import lzma
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lora_gpt.config import PRETRAINING
from lora_gpt.core.tokenizer import ASSETS


@dataclass(frozen=True)
class Source:
    """One text of the mixture and how its documents are parted."""

    file: str
    documents: str  # "blank-line", "line", "subject", "book" or "thread"
    informal: float  # share of the documents that are rewritten as typed on a phone
    licence: str
    copies: int = 1
    """How often each document is written; every copy after the first is typed anew."""
    address: str = ""
    """Where the text comes from; empty for what lies in this repository."""


OWN = ASSETS / "mini"
"""Where the text lies that was written for this project; the rest lies in the folder of texts."""
SOURCES = (
    Source(
        "enron_spam_mail",
        "subject",
        informal=0.5,
        licence="public record (Enron-Spam 2006)",
        copies=4,
        address="https://www2.aueb.gr/users/ion/data/enron-spam/",
    ),
    Source(
        "schema_guided_dialogue",
        "blank-line",
        informal=0.5,
        licence="CC BY-SA 4.0, Google",
        address="https://github.com/google-research-datasets/dstc8-schema-guided-dialogue",
    ),
    Source(
        "common_voice_sentences",
        "line",
        informal=0.5,
        licence="CC0, Mozilla",
        copies=4,
        address="https://commonvoice.mozilla.org",
    ),
    Source(
        "taskmaster4",
        "blank-line",
        informal=0.5,
        licence="CC BY 4.0, Google",
        address="https://github.com/google-research-datasets/Taskmaster",
    ),
    Source(
        "gutenberg",
        "book",
        informal=0.15,
        licence="public domain in the US",
        address="https://www.gutenberg.org",
    ),
    Source(
        "threads",
        "thread",
        informal=0.35,
        licence="MIT, written for this project",
        copies=8,
    ),
)
STAGES: dict[str, dict[str, float]] = {
    "prose": {
        "gutenberg": 0.56,
        "schema_guided_dialogue": 0.15,
        "enron_spam_mail": 0.15,
        "common_voice_sentences": 0.08,
        "taskmaster4": 0.02,
        "threads": 0.04,
    },
    "messages": {
        "threads": 0.26,
        "gutenberg": 0.30,
        "enron_spam_mail": 0.16,
        "schema_guided_dialogue": 0.14,
        "common_voice_sentences": 0.12,
        "taskmaster4": 0.02,
    },
}
"""Share of each source in the tokens of a stage; the stages follow each other."""
assert [*STAGES] == [*PRETRAINING]
HELD_OUT = 0.01
LONGEST = 4000  # characters of one document


# --- what is kept out ----------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Lower-case words without digits and punctuation, so that small changes do not hide a copy."""
    return re.findall(r"[a-z]+", text.lower().replace("'", ""))


class KeptOut:
    """Finds messages of a collection inside other text.

    A text is a copy when it holds all letters of a message (of more than `shortest` letters), when
    it is a message, or when it shares at least half of the five-word runs of one.
    """

    run, shortest = 5, 25

    def __init__(self, messages: Iterable[str]):
        self._whole: set[str] = set()
        self._runs: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._needed: dict[int, int] = {}
        for number, message in enumerate(messages):
            words = words_of(message)
            if words:
                self._whole.add("".join(words))
            runs = set(self._runs_of(words))
            for each in runs:
                self._runs[each].add(number)
            self._needed[number] = max(1, (len(runs) + 1) // 2)

    def _runs_of(self, words: list[str]) -> Iterator[tuple[str, ...]]:
        # Three words of a message that is too short for a full run are enough to look closer.
        size = self.run if len(words) >= self.run else len(words)
        if sum(map(len, words)) > self.shortest or size == self.run:
            for start in range(len(words) - size + 1):
                yield tuple(words[start : start + size])

    def holds(self, text: str) -> bool:
        """Whether `text` holds a message of the collection, exactly or nearly."""
        if any("".join(words_of(line)) in self._whole for line in text.splitlines()):
            return True
        words = words_of(text)
        found: Counter[int] = Counter()
        for size in range(3, self.run + 1):
            for start in range(len(words) - size + 1):
                for number in self._runs.get(tuple(words[start : start + size]), ()):
                    found[number] += 1
                    if found[number] >= self._needed[number]:
                        return True
        return False

    def without(self, thread: str) -> str:
        """The lines of `thread` that are no message of the collection."""
        return "\n".join(line for line in thread.splitlines() if not self.holds(line))


# --- reading -------------------------------------------------------------------------------------


def documents(source: Source, text: str) -> Iterator[str]:
    """The documents of one source, each at most `LONGEST` characters."""
    if source.documents == "line":
        parts = text.splitlines()
    elif source.documents == "subject":
        parts = [tidy_mail(part) for part in re.split(r"\n\s*\n(?=Subject:)", text)]
    elif source.documents == "book":
        parts = _gathered(text.splitlines(), 1200)
    else:  # blank lines part dialogues and threads
        parts = re.split(r"\n\s*\n", text)
    for part in parts:
        if len(part.strip()) >= 3:
            yield part.strip()[:LONGEST]


def _gathered(paragraphs: list[str], size: int) -> list[str]:
    """Paragraphs joined until a document holds about `size` characters."""
    gathered, current = [], ""
    for paragraph in paragraphs:
        current += paragraph.strip() + "\n"
        if len(current) >= size:
            gathered.append(current)
            current = ""
    return [*gathered, current]


def tidy_mail(text: str) -> str:
    """Join the words and signs that the mail archive has set apart ("i ' m" -> "i'm")."""
    text = re.sub(r"(?<=\w) ' (?=(?:s|m|t|d|re|ve|ll)\b)", "'", text)
    text = re.sub(r"(?<=\d) ([.,:]) (?=\d)", r"\1", text)
    text = re.sub(r" ([.,:;!?%)])", r"\1", text)
    text = re.sub(r"([($£#@]) (?=\w)", r"\1", text)
    text = re.sub(r"(?<=\w) ([/@_-]) (?=\w)", r"\1", text)
    text = re.sub(r"(?<=www\.) ", "", text)
    return re.sub(r"[ \t]{2,}|([-=_*]\s?){6,}", " ", text)


SHORTHAND = {
    "you": "u", "your": "ur", "are": "r", "to": "2", "for": "4", "please": "pls", "thanks": "thx",
    "see": "c", "be": "b", "and": "n", "tomorrow": "tmrw", "today": "2day", "great": "gr8",
    "before": "b4", "okay": "ok", "because": "cos", "about": "abt", "message": "msg", "text": "txt",
    "really": "rly", "people": "ppl", "with": "wid", "what": "wat", "the": "da", "have": "hav",
    "going": "goin", "that": "dat", "love": "luv", "good": "gd", "back": "bak", "work": "wrk",
}  # fmt: skip


def informal(text: str, rng: random.Random) -> str:
    """`text` as somebody might type it on a phone: case, signs and spelling loosened."""
    style = rng.random()
    if style < 0.5:
        text = text.lower()
    elif style < 0.58:
        text = text.upper()
    elif style < 0.7:
        text = text.title()
    elif style < 0.9:  # a word here and there shouted
        text = re.sub(
            r"\b[a-z]+\b", lambda m: m.group().upper() if rng.random() < 0.15 else m.group(), text
        )
    if rng.random() < 0.5:  # the sources count in dollars, half of the readers do not
        text = text.replace("$", rng.choice("££€"))
    if rng.random() < 0.4:
        text = re.sub(r"[.,;]+(?=\s|$)", rng.choice(("", "", "...", "..", "!")), text)
    if rng.random() < 0.4:
        text = text.replace("'", "").replace("’", "")
    strength = rng.choice((0.0, 0.2, 0.6))

    def shorten(match: re.Match[str]) -> str:
        word = match.group()
        return SHORTHAND.get(word.lower(), word) if rng.random() < strength else word

    return re.sub(r"[A-Za-z]+", shorten, text)


def typed(text: str, share: float, rng: random.Random) -> str:
    """`text`, loosened with probability `share`."""
    return informal(text, rng) if rng.random() < share else text


def renumbered(text: str, rng: random.Random) -> str:
    """`text` with other digits, half of the time: which numbers they are tells nothing."""
    if rng.random() < 0.5:
        return text
    return re.sub(r"\d", lambda _: str(rng.randrange(10)), text)


# --- the step ------------------------------------------------------------------------------------


def is_held_out(document: str) -> bool:
    """A fixed hundredth of all documents, chosen by their content."""
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def write_corpus(
    texts: Path, messages: list[str], out: Path, seed: int = 0, own: Path = OWN
) -> dict:
    """Filter every source, of `texts` or of `own`, into `out`; returns and writes their counts.

    Documents are shuffled within their source and separated by NUL. `messages` are kept out: a
    document that holds one is dropped, of a thread only the line. Raises FileNotFoundError naming
    a source that is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept_out, report = KeptOut(messages), {}
    for source in SOURCES:
        path = (own if source.documents == "thread" else texts) / f"{source.file}.txt.xz"
        if not path.is_file():
            raise FileNotFoundError(f"texts: {path} is missing")
        rng = random.Random(f"{seed} {source.file}")
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found = list(documents(source, file.read()))
        rng.shuffle(found)
        parts: dict[str, list[str]] = {"train": [], "held_out": []}
        dropped = 0
        for document in tqdm(found, desc=source.file, unit="doc", mininterval=1):
            kept = document
            if source.documents == "thread":
                kept = kept_out.without(document)
                dropped += len(document.splitlines()) - len(kept.splitlines())
            elif kept_out.holds(document):
                kept, dropped = "", dropped + 1
            if kept:
                parts["held_out" if is_held_out(document) else "train"].append(kept)
        written = _written(parts["train"], source, rng)
        for part, kept_documents in {**parts, "train": written}.items():
            text = "\0".join(kept_documents)
            (out / f"{source.file}.{part}.txt").write_text(text, encoding="utf-8")
        report[source.file] = {
            "documents": len(found),
            "dropped": dropped,
            "characters": sum(map(len, parts["train"])),
            "licence": source.licence,
        }
    (out / "corpus.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _written(kept: list[str], source: Source, rng: random.Random) -> list[str]:
    """The documents as they are trained on: each copy in its own order and typed on its own."""
    if source.copies == 1:
        return [typed(document, source.informal, rng) for document in kept]
    written = list(kept)
    for _ in range(source.copies - 1):
        copy = [typed(renumbered(each, rng), source.informal, rng) for each in kept]
        rng.shuffle(copy)
        written += copy
    return written


def read_documents(folder: Path, source: Source, part: str) -> list[str]:
    return (folder / f"{source.file}.{part}.txt").read_text(encoding="utf-8").split("\0")
