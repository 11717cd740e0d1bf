"""Dividing messages: laws of every split, the labs' protocol, and duplicates."""

import os
from collections import Counter
from itertools import combinations, product
from random import Random

import pandas as pd
import pytest

from lora_gpt.config import BadValue, DataConfig, preset
from lora_gpt.core import split as room
from lora_gpt.core.data import DataError, Message, read_messages
from lora_gpt.core.split import fold, split

WORDS = "apple brick cloud dance eagle flute grape house inlet jelly knife lemon".split()  # noqa: SIM905


def distinct(size: int, is_spam: bool) -> list[Message]:
    """Messages that are not like each other."""
    return [
        Message(f"{'s' if is_spam else 'h'}{chr(97 + n // 26)}{chr(97 + n % 26)}", is_spam)
        for n in range(size)
    ]


MESSAGES = distinct(40, True) + distinct(100, False)
COPIES = [
    Message(text, word in WORDS[:6])
    for word in WORDS
    for text in (
        f"{word} {word}s in my {word} bag, 12",
        f"{word.upper()} {word}s in MY {word} bag: 3!",
    )
]
"""Twelve pairs that only differ in capitals, numbers and punctuation."""


@pytest.fixture
def compared(monkeypatch):
    """Every comparison of two texts, as it is made."""
    made, alike = [], room._alike
    monkeypatch.setattr(room, "_alike", lambda *two: made.append(two) or alike(*two))
    return made


def duplicate_groups(texts: list[str]) -> list[int]:
    """A group number for each text."""
    text_of, sets = room._folded(texts)
    return room._groups(text_of, sets, room._rarest(sets))


def parts(made) -> list[tuple[Message, ...]]:
    return [made.train, made.validation, made.test]


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("keep_apart", [True, False])
@pytest.mark.parametrize("stratify", [True, False])
def test_every_message_stands_in_one_part(balance, keep_apart, stratify):
    """Nothing is lost and nothing stands twice, whatever the knobs say."""
    given = MESSAGES + COPIES
    config = DataConfig(balance=balance, keep_apart=keep_apart, stratify=stratify)
    made = [each for part in parts(split(given, config, 3)) for each in part]
    if balance:
        assert sum(each.is_spam for each in made) == len(made) / 2 == 52
    else:
        assert Counter(made) == Counter(given)
    assert not Counter(made) - Counter(given)


def test_the_seed_decides():
    """The same seed gives the same parts in the same order, another seed others."""
    config = DataConfig()
    assert split(MESSAGES, config, 5) == split(MESSAGES, config, 5)
    assert split(MESSAGES, config, 5) != split(MESSAGES, config, 6)


def test_balance_drops_ham_only():
    """All spam stays; where spam outnumbers ham nothing is dropped."""
    made = split(MESSAGES, DataConfig(), 1)
    kept = {each for part in parts(made) for each in part}
    assert set(distinct(40, True)) <= kept
    assert len(kept) == 80
    few = distinct(40, True) + distinct(20, False)
    assert sum(map(len, parts(split(few, DataConfig(), 1)))) == 60


@pytest.mark.parametrize("keep_apart", [True, False])
def test_stratified_parts_have_the_same_share_of_spam(keep_apart):
    """Each class is cut at the fractions by itself."""
    config = DataConfig(balance=False, keep_apart=keep_apart)
    made = split(MESSAGES, config, 2)
    spam = [sum(each.is_spam for each in part) for part in parts(made)]
    assert spam == [28, 4, 8]
    assert [len(part) for part in parts(made)] == [98, 14, 28]


def test_a_plain_split_is_cut_by_numbers_alone():
    """Without stratify the classes fall as they fall."""
    made = split(MESSAGES, DataConfig(balance=False, stratify=False), 2)
    assert [len(part) for part in parts(made)] == [98, 14, 28]


def test_a_message_never_stands_on_both_sides():
    """With keep_apart on, equal and nearly equal messages share a part."""
    for seed in range(5):
        made = split(MESSAGES + COPIES, DataConfig(balance=False), seed)
        together = [each for part in parts(made) for each in part]
        part_of = [n for n, part in enumerate(parts(made)) for _ in part]
        homes: dict[int, set[int]] = {}
        for group, part in zip(
            duplicate_groups([each.text for each in together]), part_of, strict=True
        ):
            homes.setdefault(group, set()).add(part)
        assert all(len(home) == 1 for home in homes.values())
        assert made.leaked == made.near == 0


def test_groups_do_not_all_go_to_training():
    """Duplicates are spread over the parts by their sizes."""
    made = split(MESSAGES + COPIES, DataConfig(balance=False), 0)
    assert all(set(COPIES) & set(part) for part in parts(made))


def test_leaks_are_counted():
    """`leaked` counts test messages that stand in training letter for letter, `near` those with a
    nearly equal one there, the leaked included."""
    doubled = MESSAGES + MESSAGES[:60] + COPIES
    config = DataConfig(keep_apart=False, stratify=False, balance=False)
    made = split(doubled, config, 4)
    trained = {each.text for each in made.train}
    folded = {fold(text) for text in trained}
    assert made.leaked == sum(each.text in trained for each in made.test) > 0
    assert made.near >= sum(fold(each.text) in folded for each in made.test) > made.leaked


def test_only_training_counts_as_a_leak():
    """A copy in validation is no leak into training."""
    same = [Message("one and the same", n % 2 == 0) for n in range(2)]
    config = DataConfig(
        keep_apart=False, balance=False, validation_fraction=0.3, test_fraction=0.2, stratify=False
    )
    for seed in range(8):
        made = split(MESSAGES + same, config, seed)
        crosses = same[0].text in {each.text for each in made.train}
        crosses &= same[0].text in {each.text for each in made.test}
        assert made.leaked == made.near == crosses


def test_no_validation_part_when_none_is_wanted():
    """A fraction of 0 leaves the part empty, any other leaves at least one message."""
    assert split(MESSAGES, DataConfig(validation_fraction=0), 1).validation == ()
    tiny = distinct(10, True) + distinct(10, False)
    assert len(split(tiny, DataConfig(validation_fraction=0.01), 1).validation) == 2


def test_messages_that_are_all_alike_are_refused():
    """One group cannot be on two sides: the sentence names the knob."""
    alike = [Message(f"call me at {n}", n % 2 == 0) for n in range(30)]
    with pytest.raises(BadValue, match=r"keep_apart: must leave spam for .*; too many"):
        split(alike, DataConfig(), 1)
    made = split(alike, DataConfig(keep_apart=False), 1)
    assert made.near == len(made.test)


@pytest.mark.parametrize("seed", range(8))
def test_training_and_test_have_both_classes_or_are_refused(seed):
    """All spam in one group goes to one part: the others could teach or tell nothing of it."""
    given = [Message(f"call me at {n}", True) for n in range(12)] + distinct(12, False)
    for knobs in ({}, {"test_fraction": 0.5, "validation_fraction": 0}):
        with pytest.raises(BadValue, match=r"keep_apart: must leave spam for (training|test); too"):
            split(given, DataConfig(**knobs), seed)


def test_the_knob_that_left_a_class_out_is_named():
    """A part that is too small for a class, and a class that chance left out."""
    given = distinct(40, True) + distinct(40, False)
    small = {"validation_fraction": 0.01, "test_fraction": 0.01}
    for keep_apart in (True, False):
        rule = "test_fraction: must leave spam for test, of 40 messages at least one; got 0.01"
        with pytest.raises(BadValue, match=rule):
            split(given, DataConfig(**small, keep_apart=keep_apart), 1)
    with pytest.raises(BadValue, match=r"stratify: must be on to leave (spam|ham) for test"):
        split(given, DataConfig(**small | {"test_fraction": 0.02}, stratify=False), 1)


# --- the labs' protocol ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [42, 123])
def test_the_lab_preset_is_the_labs_own_split(seed):
    """Message by message what the labs' pandas lines give."""
    frame = pd.DataFrame([(each.text, each.is_spam) for each in MESSAGES], columns=["text", "spam"])
    ham = frame[~frame.spam].sample(40, random_state=seed)
    mixed = pd.concat([ham, frame[frame.spam]]).sample(frac=1, random_state=seed)
    made = split(MESSAGES, preset("lab").data, seed)
    assert [each.text for each in made.train] == list(mixed.text[:64])
    assert [each.text for each in made.test] == list(mixed.text[64:])
    assert made.validation == ()


@pytest.mark.data
@pytest.mark.skipif("LORA_GPT_DATA" not in os.environ, reason="LORA_GPT_DATA is not set")
def test_the_lab_preset_on_the_real_collection(compared):
    """1,195 to train and 299 to test, of which about one in seven stands in training; few of the
    sixteen million pairs are looked at."""
    messages = read_messages(DataConfig(data="sms-spam"))
    for seed, leaked, near in ((42, 45, 101), (123, 43, 83)):
        made = split(messages, preset("lab").data, seed)
        assert (len(made.train), len(made.validation), len(made.test)) == (1195, 0, 299)
        assert (made.leaked, made.near) == (leaked, near)
    made = split(messages, DataConfig(balance=False), 42)
    assert made.near == 0
    assert len(compared) < 30 * len(messages)


# --- nearly equal messages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Call 0800-123 NOW!!", "call 0900 - 45, now"),
        ("I'm late", "im late."),
        ("I’m late", "I'm LATE"),
        ("ＦＲＥＥ entry", "free entry"),
        ("See\n you  there", "see you there"),
    ],
)
def test_folding_sees_past_capitals_numbers_and_punctuation(one, other):
    """What only differs in those is one text."""
    assert fold(one) == fold(other)


def test_folding_keeps_the_marks_of_letters():
    """Vowel signs make words; marks on digits and emoji, and those that begin a text, do not."""
    assert fold("दिन") == "दिन" != fold("दान")
    assert fold("दिन, और  दान!") == "दिन और दान"
    assert fold("1\ufe0f\u20e3 go \u2764\ufe0f") == fold("2 go") == "0 go"
    assert fold("\u0301 go") == "go"


def test_folding_keeps_what_is_all_punctuation():
    """Two different smileys are two different texts."""
    assert fold(" :) ") == ":)"
    assert len(set(duplicate_groups([":)", ":(", "👍", "?"]))) == 4


def test_near_duplicates_share_a_group():
    """A changed name or number keeps the group; another text with common words does not."""
    groups = duplicate_groups(
        [
            "Urgent! Call 090612 from landline. Your Tenerife holiday or £5,000 await collection",
            "URGENT call 090666 from landline. Your Ibiza holiday or £10,000 await collection",
            "Your holiday photos from Tenerife are lovely, call me from the landline",
        ]
    )
    assert groups[0] == groups[1] != groups[2]


def test_groups_reach_over_links():
    """If a is near b and b is near c, all three stay together."""
    chain = ["a b c d e f g h", "a b c d e f x y", "a b c d w z x y"]
    assert len(set(duplicate_groups([chain[0], chain[2]]))) == 2
    assert len(set(duplicate_groups(chain))) == 1


def test_many_equal_messages_are_no_burden(compared):
    """Equal texts are one text, and are not compared at all."""
    assert set(duplicate_groups(["ok"] * 50_000)) == {0}
    assert compared == []


@pytest.mark.parametrize("keep_apart", [True, False])
def test_many_similar_messages_are_no_burden(compared, keep_apart):
    """Not each with each: one comparison brings a text to its group, or finds it near."""
    names = ["".join(letters) for letters in product("abcdefghijkl", repeat=3)][:1500]
    alike = [Message(f"Hi {n}, your parcel is waiting at the depot", True) for n in names]
    others = distinct(400, True) + distinct(400, False)
    config = DataConfig(balance=False, keep_apart=keep_apart, stratify=False)
    made = split(alike + others, config, 1)
    assert made.near == (0 if keep_apart else len(set(alike) & set(made.test)))
    assert 100 < len(compared) < 2 * len(alike)


def test_the_search_finds_what_comparing_each_with_each_finds():
    """Texts of all lengths and degrees of likeness, none of them passed over."""
    random = Random(0)
    texts = [" ".join(random.sample(WORDS, random.randint(2, 12))) for _ in range(150)]
    texts += [" ".join(random.sample(text.split(), len(text.split()))) for text in texts[:75]]
    text_of, sets = room._folded(texts)
    parent = list(range(len(sets)))
    for i, j in combinations(range(len(sets)), 2):
        if room._alike(sets[i], sets[j]):
            low, high = sorted((parent[i], parent[j]))
            parent = [low if each == high else each for each in parent]
    assert 10 < len(set(parent)) < len(sets) - 10
    assert duplicate_groups(texts) == [parent[text] for text in text_of]
    trained, asked = set(range(0, len(sets), 3)), set(range(1, len(sets), 3))
    near = {i for i in asked if any(room._alike(sets[i], sets[j]) for j in trained)}
    assert 5 < len(near) < len(asked)
    assert room._near(sets, room._rarest(sets), trained, asked) == near


@pytest.mark.parametrize("keep_apart", [True, False])
def test_messages_that_are_all_half_alike_are_refused_in_time(compared, monkeypatch, keep_apart):
    """A file made on purpose is not compared each with each, whatever becomes of it."""
    monkeypatch.setattr(room, "MOST_LOOKS", 5_000)
    random = Random(0)
    given = [Message(" ".join(random.sample(WORDS, 6)), n % 2 == 0) for n in range(400)]
    with pytest.raises(DataError, match=r"data: .* at most 5,000 looks .* Take a sample of its"):
        split(given, DataConfig(keep_apart=keep_apart), 1)
    assert len(compared) < 5_000 / 6
    split(given[:60], DataConfig(keep_apart=keep_apart), 1)


def test_no_texts_have_no_groups():
    """Nothing in, nothing out."""
    assert duplicate_groups([]) == []
