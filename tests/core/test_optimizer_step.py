"""Both ways of a step come to the same; a recording changes nothing, and may be refused."""

from itertools import pairwise

import pytest
import torch

from lora_gpt.config import GPTConfig, LoRAConfig
from lora_gpt.core.lora import prepare
from lora_gpt.core.machine import compute_in
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.optimizer_step import WIDTHS, Outcome, PackedStep, RecordedStep
from lora_gpt.core.packing import Packing, Rectangle

SHAPE = GPTConfig(vocab_size=300, context_length=96, emb_dim=32, n_heads=4, n_layers=3)
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [3, 6, 9, 0], [11, 1, 5, 2]] * 2
RATE = 1e-3

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model_of(method="lora", device="cpu", precision="float32"):
    model = initialise(GPTModel(SHAPE), 3)
    model = prepare(model, method, LoRAConfig(rank=4, alpha=8), 0).to(device)
    return compute_in(model, precision).train()


def sequences():
    """Twelve of 1 to 96 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = [1, 7, 20, 31, 32, 33, 40, 64, 12, 96, 3, 50]
    return [torch.randint(300, (n,), generator=generator).tolist() for n in lengths]


def parts_of(model):
    return model, sequences(), torch.arange(12) % 2, 1.0, 0.01


def eager():
    """A recorder for machines without a GPU: runs once, as the real one does, and plays by
    running again."""

    def record(work):
        work()
        return work

    return record


def refusing():
    def record(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    return record


def recorded(model, recorder=eager):
    return RecordedStep(*parts_of(model), batch_size=4, recorder=recorder)


def values(step):
    return [p.detach().clone() for p in step.trained]


def moments(step):
    states = step.optimizer.state.values()
    return [value.clone() for state in states for value in state.values()]


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_padded_steps_equal_packed_ones(method):
    """Losses, norms, right answers and what was learnt, over batches of several widths."""
    packed, padded = PackedStep(*parts_of(model_of(method))), recorded(model_of(method))
    for places in BATCHES:
        one, other = packed(places, RATE, 1), padded(places, RATE, 1)
        assert other.loss == pytest.approx(one.loss, abs=1e-5)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
        assert other.right == one.right
    for one, other in zip(values(packed), values(padded), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_recording_teaches_nothing():
    """Neither the first recording, which makes the optimizer's memory, nor a later one."""
    step = recorded(model_of())
    before = values(step)
    list(step.prepare(BATCHES[:1]))
    assert all(torch.equal(a, b) for a, b in zip(before, values(step), strict=True))
    assert moments(step) and not any(each.any() for each in moments(step))
    step(BATCHES[0], RATE, 1)
    before, remembered = values(step), moments(step)
    list(step.prepare(BATCHES[:3]))
    assert all(torch.equal(a, b) for a, b in zip(before, values(step), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(remembered, moments(step), strict=True))


def test_each_width_is_recorded_once():
    """Before the first step for the batches that are known, at its first need for another."""
    made = []

    def counting():
        def record(work):
            made.append(work)
            return eager()(work)

        return record

    step = recorded(model_of(), counting)
    known = [[0, 1, 2, 3], [3, 2, 1, 0], [6, 0, 1, 2]]  # up to 31, 31 and 40 tokens
    assert list(step.prepare(known)) == [(0, 2), (1, 2), (2, 2)]
    for places in known:
        step(places, RATE, 1)
    assert len(made) == 2
    step([9, 0, 1, 2], RATE, 1)
    step([9, 4, 1, 2], RATE, 1)
    assert len(made) == 3


def test_widths_fit_the_model_and_rise():
    """No width is beyond the context, and the longest sequence has one."""
    step = recorded(model_of())
    assert step.widths == [32, 48, 64, 96]
    assert all(wide <= 1.5 * narrow for narrow, wide in pairwise(WIDTHS))


def test_a_refused_recording_goes_on_without():
    """The same steps as never recorded; what was tried first left no trace."""
    packed, step = PackedStep(*parts_of(model_of())), recorded(model_of(), refusing)
    list(step.prepare(BATCHES[:2]))
    assert step.refused == "operation not permitted when stream is capturing"
    assert [step(places, RATE, 1) for places in BATCHES] == [packed(p, RATE, 1) for p in BATCHES]


def test_a_rectangle_is_a_packing():
    """Rows, positions and last tokens of sequences that fill their rectangle are the same."""
    packing, rectangle = Packing([6, 6, 6]), Rectangle(torch.tensor([6, 6, 6]), 6)
    assert torch.equal(packing.last, rectangle.last)
    assert torch.equal(packing.positions, rectangle.positions)
    assert rectangle.real.all()
    shorter = Rectangle(torch.tensor([2, 6]), 8)
    assert shorter.last.tolist() == [1, 13] and shorter.real[0, 0, 0].sum() == 2


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_recordings_on_a_gpu_equal_packed_steps(method):
    """In single precision, by real recordings."""
    packed = PackedStep(*parts_of(model_of(method, "cuda")))
    parts = parts_of(model_of(method, "cuda"))
    played = RecordedStep(*parts, batch_size=4)
    list(played.prepare(BATCHES))
    assert not played.refused
    for places in BATCHES:
        one, other = packed(places, RATE, 1), played(places, RATE, 1)
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
        assert other.right == one.right
    for one, other in zip(values(packed), values(played), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_that_refuses_goes_on(monkeypatch):
    """A step that waits for the GPU cannot be recorded; it is then taken kernel by kernel."""
    parts = parts_of(model_of("lora", "cuda"))
    packed, step = (
        PackedStep(*parts_of(model_of("lora", "cuda"))),
        RecordedStep(*parts, batch_size=4),
    )
    real = step.learn

    def waiting(*inputs) -> torch.Tensor:
        result = real(*inputs)
        result.sum().item()
        return result

    monkeypatch.setattr(step, "learn", waiting)
    list(step.prepare(BATCHES[:1]))
    assert step.refused
    for places in BATCHES:
        told: Outcome = step(places, RATE, 1)
        assert told.loss == pytest.approx(packed(places, RATE, 1).loss, abs=1e-4)
