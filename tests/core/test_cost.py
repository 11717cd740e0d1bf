"""What a run costs: arithmetic by hand, and estimates that behave."""

import os
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from lora_gpt.config import BadValue, RunConfig
from lora_gpt.core import cost
from lora_gpt.core.cost import Memory, estimate, memory_of, peak_memory_mb
from lora_gpt.core.machine import BlockStep
from lora_gpt.core.optimizer_step import SAMPLE, seconds_of_update
from lora_gpt.core.structure import StageCount, counts

CPU = torch.device("cpu")
RUN = RunConfig().changed(rank=2, batch_size=2, epochs=1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_memory_of_a_stage():
    """Four bytes a parameter; four more for a gradient and eight for AdamW where it is trained."""
    memory = memory_of(StageCount("lora", 10, 1000))
    assert memory == Memory(4000, 40, 80)
    assert memory.total == 4120


def test_gpt2_trains_in_a_fifth_of_the_memory_with_lora():
    """By the counts of GPT-2 124M: 2.6 GB for all parameters, 0.5 GB with LoRA and head."""
    base, _, classifier = (memory_of(stage).total for stage in counts("gpt2"))
    assert base == 16 * 163_037_184
    assert classifier == 4 * 125_768_450 + 12 * 1_328_642
    assert classifier / base == pytest.approx(1 / 5, abs=0.002)


def test_an_estimate_counts_the_steps():
    """The last partial batch is dropped, epochs multiply, the limit cuts."""
    lengths = [8] * 9
    assert estimate(RUN, lengths, CPU).steps == 4
    assert estimate(RUN.changed(epochs=3), lengths, CPU).steps == 12
    assert estimate(RUN.changed(epochs=3, max_steps=5), lengths, CPU).steps == 5
    assert BlockStep.of(RUN, lengths, CPU).tokens == 16


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_an_estimate_is_positive_and_grows_with_the_steps(method):
    """Time by the number of steps; memory does not know how long it lasts."""
    config = RUN.changed(method=method)
    short, long = (estimate(config.changed(epochs=epochs), [8] * 9, CPU) for epochs in (1, 10))
    assert short.seconds > 0 and short.memory_mb > 10
    assert long.seconds == pytest.approx(10 * short.seconds)
    assert long.memory_mb == short.memory_mb


def test_the_update_of_many_parameters_is_timed_on_a_part(monkeypatch):
    """On a clock of one second a look; full tuning moves a hundred times what LoRA does."""
    monkeypatch.setattr("lora_gpt.core.optimizer_step.time.perf_counter", count().__next__)
    monkeypatch.setattr("lora_gpt.core.optimizer_step.time.monotonic", lambda: -60.0)
    assert seconds_of_update(10, CPU) == 1
    assert seconds_of_update(30 * SAMPLE, CPU) == 30


def test_full_tuning_holds_more_than_lora():
    """Gradients and optimizer of every parameter."""
    found, held = [], []
    for method in ("lora", "full"):
        found.append(estimate(RUN.changed(method=method), [8] * 9, CPU).memory_mb)
        held.append(memory_of(counts("mini", RUN.lora, method)[-1]).total / cost.MB)
    assert found[1] - found[0] == pytest.approx(held[1] - held[0])
    assert held[1] - held[0] > 50


def test_nothing_is_kept_of_a_batch_where_the_head_alone_is_trained():
    """No gradient goes below the head."""
    for method in ("lora", "head"):
        config = RUN.changed(method=method)
        short, long = (estimate(config, [length] * 9, CPU).memory_mb for length in (8, 800))
        assert (short == long) == (method == "head")


def test_a_batch_larger_than_the_data_is_refused():
    """As the training itself would refuse it."""
    with pytest.raises(BadValue, match=r"batch_size: must be at most 9, .* got 10"):
        estimate(RUN.changed(batch_size=10), [2] * 9, CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process in /proc")
def test_the_peak_follows_what_is_held():
    """A number of MiB on Linux, never below what the process holds now."""
    cost.reset_peak_memory()
    before = peak_memory_mb(CPU)
    held = torch.ones(32 * cost.MB // 4)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    after = peak_memory_mb(CPU)
    assert held.sum() > 0 and before is not None and after is not None
    assert after >= before and after >= 0.99 * pages * os.sysconf("SC_PAGE_SIZE") / cost.MB


def test_a_system_that_does_not_tell(monkeypatch):
    """None, not 0: a missing number must not look like a small one."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory_mb(CPU) is None
    cost.reset_peak_memory()
