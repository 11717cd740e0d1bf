"""The model that only answers says what the trained model says, and leaves it alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_gpt.config import GPTConfig, LoRAConfig
from lora_gpt.core.answering import PackedLinear, for_answers
from lora_gpt.core.classify import pack, share
from lora_gpt.core.lora import lora_layers, prepare, set_strength
from lora_gpt.core.machine import compute_in
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packed_weight import PackedWeight

CFG = GPTConfig(50, 16, 24, 3, 3)
TOKENS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9]]

needs_layout = pytest.mark.skipif(
    not PackedWeight.works_here(torch.float32), reason="no oneDNN layout for 32 bits here"
)


@pytest.fixture
def without_layout(monkeypatch):
    """A machine whose library has no layout of its own."""
    monkeypatch.setattr(PackedWeight, "works_here", staticmethod(lambda dtype: False))


def trained(method="lora", cfg=CFG, **lora):
    """A model that training has changed in every place where it can."""
    model = prepare(initialise(GPTModel(cfg), 0), method, LoRAConfig(**{"rank": 4} | lora), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def said(model, sequences=SEQUENCES):
    """Logits at the last token of each sequence."""
    return model.last_logits(*pack(sequences, torch.device("cpu"), model.multiple))


@pytest.mark.parametrize("layout", [pytest.param(True, marks=needs_layout), False])
@pytest.mark.parametrize(
    "about",
    [
        {},
        {"targets": ("W_query", "ff_out")},
        {"rank_stabilised": True, "alpha": 3.0},
        {"dropout": 0.5},
        {"method": "head"},
        {"method": "full"},
        {"cfg": GPTConfig(50, 16, 24, 3, 3, qkv_bias=False)},
        {"cfg": GPTConfig(50, 16, 24, 3, 1)},
    ],
    ids=str,
)
def test_it_says_what_the_trained_model_says(about, layout, request):
    """For one message, for several, and for every token of a full rectangle."""
    if not layout:
        request.getfixturevalue("without_layout")
    model = trained(**about)
    answering = for_answers(model)
    assert any(isinstance(m, PackedLinear) for m in answering.modules()) == layout
    for sequences in (SEQUENCES, SEQUENCES[:1], SEQUENCES[1:2]):
        torch.testing.assert_close(said(answering, sequences), said(model, sequences), **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(answering(TOKENS), model(TOKENS), **CLOSE)


def test_it_answers_at_full_strength():
    """Whatever strength the model was asked at before."""
    model = trained()
    expected = said(model)
    for strength in (0.0, 2.0):
        set_strength(model, strength)
        torch.testing.assert_close(said(for_answers(model)), expected, **CLOSE)
    assert not torch.allclose(said(model), expected, atol=1e-3)


def test_the_model_and_what_shares_its_weights_stay_as_they_were():
    """Bit for bit, strength too; what nobody changes is shared, not copied."""
    base = initialise(GPTModel(CFG), 0).requires_grad_(False)
    model, other = (prepare(share(base), "lora", LoRAConfig(rank=4), seed) for seed in (0, 1))
    set_strength(model, 0.5)
    before = copy.deepcopy(model.state_dict()), said(model), said(other)
    answering = for_answers(model)
    assert all(torch.equal(v, before[0][name]) for name, v in model.state_dict().items())
    assert {layer.strength for _, layer in lora_layers(model)} == {0.5}
    assert torch.equal(said(model), before[1]) and torch.equal(said(other), before[2])
    assert answering.tok_emb.weight is base.tok_emb.weight
    assert answering.trf_blocks[0].norm1.scale is base.trf_blocks[0].norm1.scale


@needs_layout
def test_no_weight_is_kept_twice():
    """Of the blocks' matrices only those in the processor's layout are left."""
    answering = for_answers(trained())
    left = [name for name, p in answering.trf_blocks.named_parameters() if p.dim() > 1]
    assert not left and not [*lora_layers(answering)]
    packed = [m for m in answering.modules() if isinstance(m, PackedLinear)]
    assert sum(each.weight.nbytes for each in packed) == 3 * 12 * 24 * 24 * 4


@needs_layout
def test_a_model_that_computes_in_16_bits_keeps_its_weights_as_they_are():
    """It is asked under autocast, and says the same as before."""
    model = compute_in(trained(), "bfloat16").eval()
    answering = for_answers(model)
    assert not any(isinstance(m, PackedLinear) for m in answering.modules())
    torch.testing.assert_close(said(answering), said(model), rtol=0.05, atol=0.05)


@needs_layout
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_a_packed_layer_is_the_plain_one(gelu, bias):
    """For any number of rows, two layers on one input too."""
    torch.manual_seed(0)
    linears = nn.Linear(40, 56, bias=bias), nn.Linear(40, 8, bias=bias)
    packed = PackedLinear(*linears, gelu=gelu)
    for rows in (1, 7, 64, 131):
        x = torch.randn(rows, 40)
        expected = torch.cat([linear(x) for linear in linears], -1).detach()
        expected = F.gelu(expected, approximate="tanh") if gelu else expected
        torch.testing.assert_close(packed(x), expected, **CLOSE)


@needs_layout
def test_a_library_that_rounds_is_refused(monkeypatch):
    """Where oneDNN was told to multiply 32 bits in 16, answers would not be the model's."""
    real = PackedWeight.__call__
    PackedWeight.works_here.cache_clear()
    rounded = lambda *given: real(*given).bfloat16().float()  # noqa: E731
    monkeypatch.setattr(PackedWeight, "__call__", rounded)
    assert not PackedWeight.works_here(torch.float32)
    PackedWeight.works_here.cache_clear()
