"""Devices and precisions: what is chosen, and that bfloat16 trains what float32 trains."""

import copy
import os
import platform
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_gpt.config import MODELS, TARGETS, BadValue, GPTConfig, LoRAConfig, RunConfig
from lora_gpt.core import machine
from lora_gpt.core.classify import pack
from lora_gpt.core.lora import PackedBothWays, lora_layers, merge, prepare, set_strength
from lora_gpt.core.machine import BlockStep, choose_precision, compute_in, keep_freed_memory
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packed_weight import PackedWeight

CPU = torch.device("cpu")
SMALL = GPTConfig(97, 64, 64, 4, 3)
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11], [12] * 9, [13, 14, 15]]


needs_layout = pytest.mark.skipif(
    not PackedWeight.works_here(torch.bfloat16), reason="no oneDNN layout for 16 bits here"
)


def classifier(precision, method="lora"):
    model = prepare(initialise(GPTModel(SMALL), 0), method, LoRAConfig(rank=4), 0)
    if method == "lora":
        for _, layer in lora_layers(model):  # B starts at 0, and A would have no gradient
            nn.init.normal_(layer.lora.B, 0, 0.05, generator=torch.Generator().manual_seed(1))
    return compute_in(model, precision).train()


def learnt(model):
    """The loss on a few sequences, and the gradient of every trained parameter."""
    tokens, packing = pack(SEQUENCES, CPU, model.multiple)
    loss = F.cross_entropy(model.last_logits(tokens, packing), torch.tensor([0, 1, 1, 0]))
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), {name: p.grad for name, p in trained.items()}


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_bfloat16_learns_what_float32_learns(method):
    """The same loss to two digits, and gradients of the same direction and size."""
    loss, gradients = learnt(classifier("float32", method))
    narrow_loss, narrow = learnt(classifier("bfloat16", method))
    assert narrow_loss == pytest.approx(loss, rel=0.01)
    assert narrow.keys() == gradients.keys()
    whole = [torch.cat([g.flatten() for g in each.values()]) for each in (gradients, narrow)]
    assert F.cosine_similarity(*whole, dim=0) > 0.995
    assert whole[1].norm() == pytest.approx(whole[0].norm().item(), rel=0.05)


def test_what_is_trained_stays_in_float32():
    """Small steps would be lost in bfloat16; what is frozen takes half the bytes."""
    model = classifier("bfloat16")
    for name, parameter in model.named_parameters():
        frozen = ".linear." in name
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert parameter.requires_grad == (".lora." in name or "out_head" in name)


def test_float32_changes_nothing():
    model = classifier("float32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.half_precision and model.multiple == 1


def test_merging_in_bfloat16_equals_not_merging():
    """The copies of a weight in the processor's layout go with the layer that had them."""
    model = classifier("bfloat16").eval()
    tokens, packing = pack(SEQUENCES, CPU, model.multiple)
    before = model.last_logits(tokens, packing)
    merge(model)
    torch.testing.assert_close(model.last_logits(tokens, packing), before, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("targets", [tuple(TARGETS), ("W_query", "W_value"), ("ff_in",)])
def test_side_by_side_changes_nothing(targets):
    """Query, key and value in one product: values, gradients, names and the saved file stay."""
    lora = LoRAConfig(rank=4, targets=targets)
    plain = prepare(initialise(GPTModel(SMALL), 0), "lora", lora, 0)
    for _, layer in lora_layers(plain):
        nn.init.normal_(layer.lora.B, 0, 0.05, generator=torch.Generator().manual_seed(1))
    together = compute_in(copy.deepcopy(plain), "float32")
    joined = [block.att.side_by_side is not None for block in together.trf_blocks]
    assert joined == [targets == tuple(TARGETS)] * 3
    (loss, gradients), (other, others) = learnt(plain), learnt(together)
    assert loss == pytest.approx(other, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6)
    for name, values in plain.state_dict().items():
        assert torch.equal(values, together.state_dict()[name]), name


def test_side_by_side_follows_strength():
    """Each layer may go its own way, and what is said is the same."""
    model = classifier("float32").eval()
    plain = prepare(initialise(GPTModel(SMALL), 0), "lora", LoRAConfig(rank=4), 0).eval()
    plain.load_state_dict(model.state_dict())
    tokens, packing = pack(SEQUENCES, CPU)
    for change in (
        lambda each: set_strength(each, 0.5),
        lambda each: setattr(each.trf_blocks[0].att.W_key, "strength", 2.0),
        lambda each: set_strength(each, 0),
    ):
        change(model)
        change(plain)
        expected = plain.last_logits(tokens, packing)
        torch.testing.assert_close(model.last_logits(tokens, packing), expected)


@needs_layout
@pytest.mark.parametrize("shape", [(48, 32), (96, 64), (5, 7)], ids=str)
def test_a_packed_weight_multiplies_as_the_plain_one_does(shape):
    """Either way, for any number of rows."""
    weight = torch.randn(shape).bfloat16()
    packed, bias = PackedBothWays(weight), torch.randn(shape[0]).bfloat16()
    for rows in (1, 32, 50):
        x, gradient = (torch.randn(rows, size).bfloat16() for size in reversed(shape))
        expected = x.float() @ weight.float().T
        torch.testing.assert_close(packed.forth(x, None).float(), expected, rtol=0.02, atol=0.02)
        expected = expected + bias.float()
        torch.testing.assert_close(packed.forth(x, bias).float(), expected, rtol=0.02, atol=0.02)
        expected = gradient.float() @ weight.float()
        torch.testing.assert_close(packed.back(gradient).float(), expected, rtol=0.02, atol=0.02)


@needs_layout
def test_weights_are_packed_in_16_bits_alone():
    """Each frozen weight once, those of query, key and value together."""
    assert not any(layer._packed for _, layer in lora_layers(classifier("float32")))
    model = classifier("bfloat16")
    for path, layer in lora_layers(model):
        assert (layer._packed is None) == any(w in path for w in ("query", "key", "value")), path
    assert all(block.att.side_by_side.packed for block in model.trf_blocks)


def test_a_library_that_refuses_the_layout_is_not_asked_again(monkeypatch):
    """An older processor, another build: its fault is an answer, not a crash."""
    for refusal in (RuntimeError("bf16 path needs the cpu support"), AttributeError("no such op")):
        PackedWeight.works_here.cache_clear()

        def refused(self, weight, refusal=refusal):
            raise refusal

        monkeypatch.setattr(PackedWeight, "__init__", refused)
        assert not PackedWeight.works_here(torch.bfloat16)
    PackedWeight.works_here.cache_clear()


def test_16_bits_without_that_layout(monkeypatch):
    """The same loss and gradients where the library has no such layout."""
    loss, gradients = learnt(classifier("bfloat16"))
    monkeypatch.setattr(PackedWeight, "works_here", staticmethod(lambda dtype: False))
    model = classifier("bfloat16")
    assert not any(layer._packed for _, layer in lora_layers(model))
    other, others = learnt(model)
    assert other == pytest.approx(loss, rel=0.01)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=0.1, atol=0.02)


def step_of(**changes):
    return BlockStep.of(RunConfig().changed(**changes), [8], CPU)


@pytest.mark.parametrize(("gain", "chosen"), [(2.0, "bfloat16"), (1.1, "float32")])
def test_the_faster_precision_is_chosen(gain, chosen, monkeypatch):
    """By its time on this machine, and only where the gain is worth it."""
    machine._choice_of_this_process.cache_clear()
    times = {"float32": gain, "bfloat16": 1.0}
    monkeypatch.setattr(BlockStep, "seconds", lambda self, precision: times[precision])
    assert choose_precision("auto", step_of(model="gpt2")) == chosen
    machine._choice_of_this_process.cache_clear()


def test_a_small_model_is_not_asked_about(monkeypatch):
    """The bundled model gives the same numbers on every machine."""
    monkeypatch.setattr(BlockStep, "seconds", lambda self, precision: pytest.fail("measured"))
    assert choose_precision("auto", step_of()) == "float32"
    assert choose_precision("bfloat16", step_of()) == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_is_measured_once_a_minute(precision, monkeypatch):
    """The page asks at every move of a slider; a machine that was busy is asked again later."""
    now, asked = [600.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    measured = machine.compute_in
    monkeypatch.setattr(
        machine, "compute_in", lambda model, kind: asked.append(kind) or measured(model, kind)
    )
    machine._seconds_in_this_minute.cache_clear()
    for now[0] in (600.0, 659.0, 661.0):
        assert step_of().seconds(precision) > 0
    assert asked == [precision, precision]


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_the_way_back_is_measured_where_training_goes_it(method, monkeypatch):
    """Below a head that is trained alone, nothing needs a gradient."""
    back, backward = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda y: back.append(y) or backward(y))
    machine._seconds_in_this_minute.cache_clear()
    assert step_of(method=method).seconds("float32") > 0
    assert bool(back) == (method != "head")


@pytest.mark.parametrize(
    ("batch", "length", "measured"),
    [(4, 8, [8] * 4), (256, 250, [250] * 8), (256, 9, [9] * 227), (2, 256, [256] * 2)],
)
def test_a_large_batch_is_measured_in_part(batch, length, measured, monkeypatch):
    """On 2,048 tokens at most; the time is that of the whole batch."""
    laid_out = []
    monkeypatch.setattr(
        machine, "_seconds_of_a_block", lambda *given: laid_out.append(given[2]) or len(given[2])
    )
    machine._seconds_in_this_minute.cache_clear()
    step = BlockStep.of(RunConfig().changed(batch_size=batch), [length], CPU)
    assert step.seconds("float32") == pytest.approx(batch)
    assert laid_out == [measured]
    machine._seconds_in_this_minute.cache_clear()


@pytest.mark.parametrize(
    ("words", "refusal", "says"),
    [
        ("can't allocate memory: you tried", BadValue, "batch_size: must be small .*; got 8"),
        ("CUDA out of memory. Tried to allocate 2 GiB", BadValue, "batch_size: must be small"),
        ("a fault of ours", RuntimeError, "a fault of ours"),
    ],
)
def test_too_little_memory_is_told_of_the_batch(words, refusal, says, monkeypatch):
    """In a sentence; another fault is not hidden behind it."""

    def full(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(machine, "_seconds_of_a_block", full)
    machine._seconds_in_this_minute.cache_clear()
    with pytest.raises(refusal, match=says):
        step_of().seconds("float32")


def test_memory_is_kept_only_where_the_library_can(monkeypatch):
    """Linux with another C library, and other systems, are left alone."""
    keep_freed_memory()
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
    monkeypatch.setattr(machine.sys, "platform", "win32")
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    keep_freed_memory()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="no glibc here"
)
def test_what_an_earlier_training_freed_goes_back():
    """The most memory of a small run after a large one in the same process is that of the small."""

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    keep_freed_memory()
    large = torch.ones(2**25)
    size = large.nbytes
    del large
    before = held()
    keep_freed_memory()
    assert held() < before - size / 2


def test_the_sizes_that_are_asked_about():
    """GPT-2 and larger, not the bundled model."""
    large = [
        name
        for name, spec in MODELS.items()
        if 12 * spec.config.emb_dim**2 * spec.config.n_layers >= machine.LARGE
    ]
    assert large == ["distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
