"""The linear model: learns from training, is measured on test, and repeats itself."""

import os

import pytest

from lora_gpt.config import DataConfig, preset
from lora_gpt.core.baseline import linear_baseline
from lora_gpt.core.data import Message, read_messages
from lora_gpt.core.split import Split, split


def made_split(test: list[Message]) -> Split:
    train = [Message(f"win a prize, code {n}", True) for n in range(20)]
    train += [Message(f"see you for dinner at {n}", False) for n in range(20)]
    return Split(tuple(train), (), tuple(test), 0, 0)


def test_it_learns_from_training():
    """What is easy is learnt; the probability leans the right way."""
    metrics = linear_baseline(
        made_split([Message("a prize to win", True), Message("dinner, see you", False)]), seed=1
    )
    assert metrics.accuracy == metrics.auc == 1.0
    assert metrics.loss is None


def test_it_is_measured_on_test_alone():
    """Labels of the test part do not reach the model: turned round, all is wrong."""
    metrics = linear_baseline(
        made_split([Message("a prize to win", False), Message("dinner, see you", True)]), seed=1
    )
    assert metrics.size == 2
    assert metrics.accuracy == 0.0


def test_the_same_seed_gives_the_same_figures():
    """It is as repeatable as the training it is compared with."""
    one = split(read_messages(DataConfig()), DataConfig(), 7)
    assert linear_baseline(one, 7) == linear_baseline(one, 7)


@pytest.mark.data
@pytest.mark.skipif("LORA_GPT_DATA" not in os.environ, reason="LORA_GPT_DATA is not set")
def test_it_reaches_what_is_known_of_the_real_collection():
    """Under the labs' protocol about 97.3% with a spread of 0.9 over resplits."""
    messages = read_messages(DataConfig(data="sms-spam"))
    seeds = (42, 123, 1)
    metrics = [linear_baseline(split(messages, preset("lab").data, seed), seed) for seed in seeds]
    assert 0.96 < sum(each.accuracy for each in metrics) / len(seeds) < 0.985
