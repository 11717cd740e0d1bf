"""Dividing messages into training, validation and test, and finding those that stand in several.

Everything follows from the seed. Knows nothing of files and models.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from lora_gpt.config import BadValue, DataConfig
from lora_gpt.core.data import DataError, Message

NEAR = 0.5
"""Share of common shingles from which two messages are nearly equal. In the SMS Spam Collection,
pairs from 0.5 on are one text with a name, number or half-sentence changed; below 0.45, chance
meetings of short everyday messages begin."""
MOST_LOOKS = 40_000_000
"""At words of messages while nearly equal ones are searched for: about ten seconds. 20,000 lines of
books take a third of it, the SMS Spam Collection a hundredth."""


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
    random_state=seed)` of all, then cut. Raises BadValue where a part would stay empty, or training
    or test without spam or ham, and DataError where the search for nearly equal messages would take
    too long.
    """
    # Not default_rng: RandomState's numbers are frozen for good, and are those that pandas draws.
    if config.balance:
        messages = _balanced(messages, np.random.RandomState(seed))
    random = np.random.RandomState(seed)
    order = random.choice(len(messages), len(messages), replace=False)
    shuffled = [messages[i] for i in order]
    text_of, sets = _folded([each.text for each in shuffled])
    rarest = _rarest(sets)
    groups = list(range(len(shuffled)))
    if config.keep_apart:
        groups = _groups(text_of, sets, rarest)
    part_of = _assign(shuffled, groups, config, random)
    train, validation, test = (
        tuple(each for each, part in zip(shuffled, part_of, strict=True) if part == wanted)
        for wanted in range(3)
    )
    _check_parts(shuffled, part_of, config)
    trained = {each.text for each in train}
    leaked = sum(each.text in trained for each in test)
    tested = [text for text, part in zip(text_of, part_of, strict=True) if part == 2]
    trained_texts = {text for text, part in zip(text_of, part_of, strict=True) if part == 0}
    # Kept apart, none is left to be found, and finding takes as long as keeping apart.
    near_texts = set() if config.keep_apart else _near(sets, rarest, trained_texts, set(tested))
    near = sum(text in near_texts for text in tested)
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


def _check_parts(messages: Sequence[Message], part_of: Sequence[int], config: DataConfig) -> None:
    """BadValue where training or test lacks a class or validation is empty; it names the knob that
    did it."""
    classes = Counter(each.is_spam for each in messages)
    placed = Counter((part, each.is_spam) for part, each in zip(part_of, messages, strict=True))
    for part, name in ((0, "training"), (2, "test")):
        for is_spam, kind in ((True, "spam"), (False, "ham")):
            if placed[part, is_spam]:
                continue
            size = classes[is_spam] if config.stratify else len(messages)
            rule = f"must leave {kind} for {name}"
            if not _sizes(size, config)[part]:
                rule += f", of {size:,} messages at least one"
                raise BadValue("test_fraction", rule, config.test_fraction)
            if not config.stratify:
                raise BadValue("stratify", f"must be on to leave {kind} for {name}", False)
            rule += "; too many of these are nearly equal"
            raise BadValue("keep_apart", rule, config.keep_apart)
    if config.validation_fraction and 1 not in part_of:
        rule = "must leave messages for validation; too many of these are nearly equal"
        raise BadValue("keep_apart", rule, config.keep_apart)


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
    return re.sub(r"[\W_]+", _gap, plain).strip() or text.strip()


def _gap(gap: re.Match[str]) -> str:
    """What stays of signs between letters: a space, and before it the marks that a letter bears,
    such as the vowel signs of Hindi."""
    signs, start = gap[0], gap.start()
    if start == 0 or signs.isascii() or not gap.string[start - 1].isalpha():
        return " "
    marks = "".join(takewhile(lambda sign: unicodedata.category(sign).startswith("M"), signs))
    return marks if marks == signs else f"{marks} "


def _folded(texts: Sequence[str]) -> tuple[list[int], list[set[str]]]:
    """For each text the number of its folded text, and for each number its shingles."""
    numbers: dict[str, int] = {}
    text_of = [numbers.setdefault(fold(text), len(numbers)) for text in texts]
    return text_of, [_shingles(folded) for folded in numbers]


def _shingles(folded: str) -> set[str]:
    """The words, and the pairs of neighbouring words."""
    words = folded.split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _alike(one: set[str], other: set[str]) -> bool:
    """Whether two sets have a Jaccard similarity of at least `NEAR`."""
    common = len(one & other)
    return common >= NEAR * (len(one) + len(other) - common)


def _rarest(sets: Sequence[set[str]]) -> list[list[str]]:
    """The rarest members of each set, so many that two sets which are alike share one of them.

    So nobody need compare all with all: prefix filtering (Chaudhuri et al. 2006, "A primitive
    operator for similarity joins in data cleaning").
    """
    frequency = Counter(member for each in sets for member in each)
    # In two sorts: of millions of members, pairs of number and text take longer.
    by_name = sorted(frequency)
    rank = {m: n for n, m in enumerate(sorted(by_name, key=frequency.__getitem__))}
    enough = [len(each) - math.ceil(NEAR * len(each)) + 1 for each in sets]
    return [sorted(each, key=rank.__getitem__)[:n] for each, n in zip(sets, enough, strict=True)]


_Holder = tuple[int, int]
"""A text that has a member, by number, and how many members it has from that one on, the rarest
first."""


def _groups(
    text_of: Sequence[int], sets: Sequence[set[str]], rarest: Sequence[list[str]]
) -> list[int]:
    """The smallest text number that each message's text is linked to, over any number of links
    (union-find).

    Texts that are in one group already are not compared: a file of a thousand versions of one
    message would have half a million pairs. The short texts come first: to be found by one at least
    as long, a text need show still fewer of its rarest members (Xiao et al. 2008, "Efficient
    similarity joins for near duplicate detection").
    """
    parent, allowance = list(range(len(sets))), _Allowance()

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    # For each member the texts that have it among their rarest, by the root of their group.
    seen: dict[str, dict[int, list[_Holder]]] = defaultdict(dict)
    for i in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        tried: set[int] = set()
        size = len(sets[i])
        shown = size - math.ceil(2 * NEAR * size / (1 + NEAR)) + 1
        for place, groups in enumerate(map(seen.__getitem__, rarest[i])):
            one = (i, size - place)
            for group, texts in list(groups.items()):
                if root(group) != root(i) and _has_alike(sets, one, texts, tried, allowance):
                    low, high = sorted((root(group), root(i)))
                    parent[high] = low
                if root(group) != group:
                    groups.setdefault(root(group), []).extend(groups.pop(group))
            if place < shown:
                groups.setdefault(root(i), []).append(one)
    return [root(text) for text in text_of]


def _near(
    sets: Sequence[set[str]], rarest: Sequence[list[str]], trained: set[int], asked: set[int]
) -> set[int]:
    """Which of the texts `asked` are among the `trained`, or alike one of them, by number."""
    seen: dict[str, list[_Holder]] = defaultdict(list)
    allowance = _Allowance()
    for i in trained:
        for place, member in enumerate(rarest[i]):
            seen[member].append((i, len(sets[i]) - place))

    def has_one(i: int) -> bool:
        tried: set[int] = set()
        return any(
            _has_alike(sets, (i, len(sets[i]) - place), seen.get(member, ()), tried, allowance)
            for place, member in enumerate(rarest[i])
        )

    return {i for i in asked if i in trained or has_one(i)}


class _Allowance:
    """What a search may still look at. A file of texts that are all half alike, made on purpose,
    would keep it at work for minutes, and other visitors waiting."""

    def __init__(self) -> None:
        self._left = MOST_LOOKS

    def spend(self, looks: int) -> None:
        """Raises DataError when nothing is left."""
        self._left -= looks
        if self._left < 0:
            raise DataError(
                "data: must hold messages of which nearly equal ones are found in at most"
                f" {MOST_LOOKS:,} looks at a word; got more, since too many are half alike. Take a"
                " sample of its rows."
            )


def _has_alike(
    sets: Sequence[set[str]],
    one: _Holder,
    others: Sequence[_Holder],
    tried: set[int],
    allowance: _Allowance,
) -> bool:
    """Whether one of `others` is alike `one`, all of them holders of a member, told from their
    rarest shared one on; those in `tried` are not, and what is compared joins."""
    i, left = one
    for j, other_left in others:
        most = min(left, other_left)  # can be common: the members before it are not
        if j in tried or most < NEAR * (len(sets[i]) + len(sets[j]) - most):
            allowance.spend(1)
            continue
        allowance.spend(min(len(sets[i]), len(sets[j])))
        if _alike(sets[i], sets[j]):
            return True
        tried.add(j)
    return False
