"""Dividing messages into training, validation and test, and finding those that stand in several.

Everything follows from the seed. Knows nothing of files and models.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lora_gpt.config import BadValue, DataConfig
from lora_gpt.core.data import Message

NEAR = 0.5
"""Share of common shingles from which two messages are nearly equal. In the SMS Spam Collection,
pairs from 0.5 on are one text with a name, number or half-sentence changed; below 0.45, chance
meetings of short everyday messages begin."""


@dataclass(frozen=True)
class Split:
    """The three parts, each in shuffled order, and what stands on both sides."""

    train: tuple[Message, ...]
    validation: tuple[Message, ...]
    test: tuple[Message, ...]
    leaked: int
    """Test messages that also stand in training, letter for letter."""
    near: int
    """Test messages with a nearly equal one in training, the letter-for-letter ones included."""


def split(messages: Sequence[Message], config: DataConfig, seed: int) -> Split:
    """Divide `messages` as `config` says; every message kept goes into exactly one part.

    With balance on and keep_apart and stratify off these are the labs' own steps, to the message:
    pandas' `sample(n_spam, random_state=seed)` of the ham, spam below it, `sample(frac=1,
    random_state=seed)` of all, then cut. Raises BadValue where a part would stay empty.
    """
    # Not default_rng: RandomState's numbers are frozen for good, and are those that pandas draws.
    if config.balance:
        messages = _balanced(messages, np.random.RandomState(seed))
    random = np.random.RandomState(seed)
    order = random.choice(len(messages), len(messages), replace=False)
    shuffled = [messages[i] for i in order]
    text_of, links = _alike([each.text for each in shuffled])
    groups = _groups(text_of, links) if config.keep_apart else list(range(len(shuffled)))
    part_of = _assign(shuffled, groups, config, random)
    train, validation, test = (
        tuple(each for each, part in zip(shuffled, part_of, strict=True) if part == wanted)
        for wanted in range(3)
    )
    if not train or not test or (config.validation_fraction and not validation):
        rule = "must leave messages for every part; too many of these are nearly equal"
        raise BadValue("keep_apart", rule, config.keep_apart)
    trained = {each.text for each in train}
    leaked = sum(each.text in trained for each in test)
    trained_texts = {text for text, part in zip(text_of, part_of, strict=True) if part == 0}
    near_texts = trained_texts | {b for a, b in links if a in trained_texts}
    near_texts |= {a for a, b in links if b in trained_texts}
    near = sum(p == 2 and text in near_texts for text, p in zip(text_of, part_of, strict=True))
    return Split(train, validation, test, leaked, near)


def _balanced(messages: Sequence[Message], random: np.random.RandomState) -> list[Message]:
    """As many ham as spam, drawn at random, and below them all the spam."""
    ham = [each for each in messages if not each.is_spam]
    spam = [each for each in messages if each.is_spam]
    if len(ham) > len(spam):
        ham = [ham[i] for i in random.choice(len(ham), len(spam), replace=False)]
    return ham + spam


# --- who goes where ----------------------------------------------------------------------------


def _assign(
    messages: Sequence[Message],
    groups: Sequence[int],
    config: DataConfig,
    random: np.random.RandomState,
) -> list[int]:
    """The part of each message: 0 training, 1 validation, 2 test; groups stay whole."""
    stratum: Callable[[Message], Hashable] = (
        (lambda each: each.is_spam) if config.stratify else (lambda each: None)
    )
    strata = [stratum(each) for each in messages]
    room: list[Counter[Hashable]] = [Counter(), Counter(), Counter()]
    for name, size in Counter(strata).items():
        for part, places in enumerate(_sizes(size, config)):
            room[part][name] = places
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    part_of = [0] * len(messages)
    # The large groups first, while there is room; single messages then fill every part to its size.
    for together in sorted(members.values(), key=len, reverse=True):
        need = Counter(strata[i] for i in together)
        if len(together) == 1:
            part = next(p for p in range(3) if room[p][strata[together[0]]] > 0)
        else:
            part = _part_with_room(need, room, random)
        for i in together:
            part_of[i] = part
        room[part].subtract(need)
    return part_of


def _sizes(size: int, config: DataConfig) -> tuple[int, int, int]:
    """Messages for training, validation and test; rounding favours test, as in the labs."""
    # The small addition keeps 0.7 * 10, which is a hair below 7 in floating point, at 7.
    test, validation = config.test_fraction, config.validation_fraction
    train = int((1 - validation - test) * size + 1e-9)
    watch = max(int(validation * size + 1e-9), 1) if validation else 0
    return train, watch, size - train - watch


def _part_with_room(
    need: Counter[Hashable], room: Sequence[Counter[Hashable]], random: np.random.RandomState
) -> int:
    """One of the parts that the group fits, the roomier the likelier; else where least juts out."""
    excess = [sum(max(0, count - r[name]) for name, count in need.items()) for r in room]
    free = np.array([sum(max(0, r[name]) for name in need) for r in room], dtype=float)
    free[np.array(excess) > min(excess)] = 0
    if not free.any():
        return int(np.argmin(excess))
    return int(random.choice(3, p=free / free.sum()))


# --- nearly equal messages ---------------------------------------------------------------------


def fold(text: str) -> str:
    """What is left of `text` when capitals, numbers and punctuation make no difference.

    Every number becomes one 0. A text of punctuation or emoji alone is left as it is.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"\d+", "0", plain.replace("'", "").replace("’", ""))
    return re.sub(r"[\W_]+", " ", plain).strip() or text.strip()


def duplicate_groups(texts: Sequence[str]) -> list[int]:
    """A group number for each text: nearly equal texts, and those linked by others, share one.

    Nearly equal means equal when folded, or shingles (words, and pairs of neighbouring words) with
    a Jaccard similarity of at least `NEAR`.
    """
    return _groups(*_alike(texts))


def _alike(texts: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """For each text the number of its folded text, and the pairs of numbers that are similar."""
    numbers: dict[str, int] = {}
    text_of = [numbers.setdefault(fold(text), len(numbers)) for text in texts]
    return text_of, list(_similar([_shingles(folded) for folded in numbers]))


def _shingles(folded: str) -> set[str]:
    words = folded.split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _similar(sets: Sequence[set[str]]) -> Iterator[tuple[int, int]]:
    """The pairs of sets with a Jaccard similarity of at least `NEAR`, by their places.

    Prefix filtering finds them without comparing all with all: two sets that share so much must
    share one of their rarest members (Chaudhuri et al. 2006, "A primitive operator for similarity
    joins in data cleaning").
    """
    frequency = Counter(member for each in sets for member in each)
    rank = {
        member: n for n, member in enumerate(sorted(frequency, key=lambda m: (frequency[m], m)))
    }
    seen: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        size = len(sets[i])
        candidates: set[int] = set()
        for member in sorted(sets[i], key=rank.__getitem__)[: size - math.ceil(NEAR * size) + 1]:
            candidates.update(seen[member])
            seen[member].append(i)
        for j in candidates:
            common = len(sets[i] & sets[j])
            if common >= NEAR * (size + len(sets[j]) - common):
                yield j, i


def _groups(text_of: Sequence[int], links: Sequence[tuple[int, int]]) -> list[int]:
    """The smallest text number that each message's text is linked to, over any number of links
    (union-find)."""
    parent = list(range(max(text_of, default=-1) + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(text) for text in text_of]
