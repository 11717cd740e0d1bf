"""The laws of LoRA."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from lora_gpt.config import TARGETS, BadValue, GPTConfig, LoRAConfig
from lora_gpt.core import lora
from lora_gpt.core.classify import share
from lora_gpt.core.lora import (
    PATHS,
    LinearWithLoRA,
    LoRALayer,
    _FusedLoRALinear,
    lora_layers,
    mark_trainable,
    merge,
    prepare,
    replace_head,
    replace_linear_with_lora,
    set_strength,
)
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packing import Packing

CFG = GPTConfig(97, 32, 24, 3, 2)
TOKENS = torch.arange(12) * 7 % 97
PACKING = Packing([5, 7])


def base() -> GPTModel:
    return initialise(GPTModel(CFG), 1).eval()


def adapted(**about) -> GPTModel:
    """A model whose updates say something, as if it had been trained."""
    model = base()
    replace_linear_with_lora(model, **({"rank": 4, "alpha": 8} | about))
    generator = torch.Generator().manual_seed(2)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora.B, 0, 0.3, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.last_logits(TOKENS, PACKING)


def snapshot(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def assert_same(state, other):
    assert list(state) == list(other)
    for name, values in state.items():
        assert torch.equal(values, other[name]), name


# --- what injection leaves alone ----------------------------------------------------------------


def test_an_untrained_adapter_changes_nothing():
    """B starts at 0, so the logits are the base's, bit for bit."""
    model = base()
    replace_linear_with_lora(model, 8, 16)
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize("size", range(1, 7))
def test_any_choice_of_targets_is_injected_where_it_says(size):
    """Every subset wraps exactly its layers, in every block, and returns how many."""
    for targets in itertools.combinations(TARGETS, size):
        model = base()
        assert replace_linear_with_lora(model, 2, 4, targets) == CFG.n_layers * size
        expected = {f"trf_blocks.{i}.{PATHS[t]}" for i in range(CFG.n_layers) for t in targets}
        assert {path for path, _ in lora_layers(model)} == expected


def test_the_base_stays_as_it_was_in_training():
    """Steps of the optimizer change every A, B and the head, and nothing else."""
    model = prepare(base(), "lora", LoRAConfig(rank=4), seed=3).train()
    before = snapshot(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        F.cross_entropy(model.last_logits(TOKENS, PACKING), torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {
        name for name, now in model.state_dict().items() if not torch.equal(now, before[name])
    }
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}


# --- what is trained ----------------------------------------------------------------------------

ADAPTER = {
    f"trf_blocks.{block}.{path}.lora.{matrix}"
    for block in range(CFG.n_layers)
    for path in PATHS.values()
    for matrix in "AB"
}
HEAD = {"out_head.weight", "out_head.bias"}


def names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_base_is_trainable_whole():
    """Stage 1: before anything is frozen, every parameter is trainable."""
    assert names(base()) == {name for name, _ in base().named_parameters()}


def test_after_injection_only_the_adapter_is_trainable():
    """Stage 2: with the old output head, exactly every A and B."""
    model = base()
    replace_linear_with_lora(model, 4, 8)
    mark_trainable(model, "lora")
    assert names(model) == ADAPTER


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lora", ADAPTER | HEAD),
        ("head", HEAD),
        ("full", {name for name, _ in base().named_parameters()} | HEAD),
    ],
)
def test_each_method_trains_exactly_its_names(method, expected):
    """Stage 3: the two-class head is trainable with every method."""
    assert names(prepare(base(), method, LoRAConfig(rank=4), seed=0)) == expected


def test_an_unknown_method_is_refused():
    """By name, rule and value."""
    with pytest.raises(BadValue, match=r"method: must be one of lora, head, full; got 'qlora'"):
        mark_trainable(base(), "qlora")


@pytest.mark.parametrize("targets", [tuple(TARGETS), ("W_query",), ("ff_in", "out_proj")], ids=str)
def test_trainable_is_rank_times_in_plus_out(targets):
    """Summed over the wrapped layers, as the design's table counts."""
    model = base()
    replace_linear_with_lora(model, 3, 6, targets)
    mark_trainable(model, "lora")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = [(la.linear.in_features, la.linear.out_features) for _, la in lora_layers(model)]
    assert trainable == sum(3 * (n_in + n_out) for n_in, n_out in sizes)


def test_the_same_seed_prepares_the_same_classifier():
    """A and head are functions of the seed."""
    first, second, other = (prepare(base(), "lora", LoRAConfig(), s) for s in (9, 9, 10))
    assert_same(first.state_dict(), second.state_dict())
    assert not torch.equal(first.out_head.weight, other.out_head.weight)


# --- merging and strength -----------------------------------------------------------------------


def test_merged_equals_unmerged():
    """Adding the update to the weight gives the same logits within 1e-5."""
    model = adapted()
    apart = logits(model)
    assert not torch.allclose(apart, logits(base()), atol=1e-2)  # the updates do speak
    merge(model)
    torch.testing.assert_close(logits(model), apart, atol=1e-5, rtol=1e-5)


def test_merging_twice_equals_merging_once():
    """The update is added once, and nothing of LoRA is left."""
    model = adapted()
    merge(model)
    once = snapshot(model)
    assert once.keys() == base().state_dict().keys() and not any(lora_layers(model))
    merge(model)
    assert_same(model.state_dict(), once)


def test_merging_leaves_other_models_over_the_same_base_alone():
    """Runs share one frozen base; merging into it would change them all."""
    shared = base()
    one, other = share(shared), share(shared)
    for model in (one, other):
        replace_linear_with_lora(model, 4, 8)
    for _, layer in lora_layers(one):
        nn.init.ones_(layer.lora.B)
    merge(one)
    assert torch.equal(logits(other), logits(base()))
    assert torch.equal(logits(shared), logits(base()))


def test_strength_0_is_the_base():
    """Bit for bit, merged too."""
    model = adapted()
    set_strength(model, 0)
    assert torch.equal(logits(model), logits(base()))
    merge(model)
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0, 3.0])
def test_strength_scales_the_update(strength):
    """A layer's output moves in a straight line with the strength, merged or not."""
    model = adapted()
    layer = model.trf_blocks[0].att.W_key
    x = torch.randn(5, CFG.emb_dim)
    with torch.no_grad():
        expected = layer.linear(x) + strength * layer.lora(x)
        set_strength(model, strength)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.merged()(x), expected, atol=1e-5, rtol=1e-5)


# --- the numbers of a layer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stabilised", "scale"), [(False, 16 / 9), (True, 16 / 3)], ids=["alpha/r", "alpha/sqrt(r)"]
)
def test_the_scale_is_the_one_of_the_paper(stabilised, scale):
    """alpha / r, or alpha / sqrt(r) when rank-stabilised; the config says the same."""
    layer = LoRALayer(24, 24, 9, 16, rank_stabilised=stabilised)
    assert layer.scale == pytest.approx(scale)
    assert LoRAConfig(rank=9, rank_stabilised=stabilised).scale == pytest.approx(scale)
    nn.init.normal_(layer.B)
    x = torch.randn(4, 24)
    torch.testing.assert_close(layer(x), scale * x @ layer.A @ layer.B)


@pytest.mark.parametrize("stabilised", [False, True])
@torch.no_grad()
def test_a_layer_equals_pefts(stabilised):
    """Given the same A and B, the outputs are those of PEFT's LoraLayer on the same Linear."""
    linear = nn.Linear(24, 36)
    ours = LinearWithLoRA(linear, LoRALayer(24, 36, 5, 7, rank_stabilised=stabilised))
    nn.init.normal_(ours.lora.B)
    config = LoraConfig(r=5, lora_alpha=7, use_rslora=stabilised)
    theirs = PeftLinear(copy.deepcopy(linear), "default", config, r=5, lora_alpha=7)
    theirs.lora_A["default"].weight.copy_(ours.lora.A.T)
    theirs.lora_B["default"].weight.copy_(ours.lora.B.T)
    x = torch.randn(9, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.update(), theirs.get_delta_weight("default"))


def test_a_starts_as_a_linear_layer_does():
    """Uniform within 1 / sqrt(in), whatever the rank; B is 0."""
    layer = LoRALayer(400, 50, 8, 16)
    assert layer.A.abs().max().item() == pytest.approx(0.05, rel=0.02)
    assert not layer.B.any()


def test_dropout_speaks_in_training_only():
    """In evaluation two passes are equal, in training they differ."""
    model = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"rank": 0}, "rank: must be from 1 to 24 .*; got 0"),
        ({"rank": 25}, "rank: must be from 1 to 24 .*; got 25"),
        ({"alpha": 0}, "alpha: must be above 0; got 0"),
        ({"alpha": float("nan")}, "alpha: must be above 0; got nan"),
        ({"targets": ["W_query", "out_head"]}, "targets: must be taken from .*; got 'out_head'"),
        ({"targets": []}, r"targets: must name at least one .*; got \[\]"),
    ],
    ids=str,
)
def test_a_bad_choice_is_refused_and_changes_nothing(about, message):
    """By name, rule and value; the model is as it was."""
    model = base()
    before = snapshot(model)
    with pytest.raises(BadValue, match=message):
        replace_linear_with_lora(model, **({"rank": 4, "alpha": 8} | about))
    assert_same(model.state_dict(), before)


def test_injecting_twice_is_refused():
    """An update of an update is nobody's wish."""
    model = adapted()
    before = snapshot(model)
    with pytest.raises(BadValue, match="inject once"):
        replace_linear_with_lora(model, 2, 4, ["W_value"])
    assert_same(model.state_dict(), before)


def test_the_new_head_has_two_classes_and_a_bias():
    """The rest of the model is untouched."""
    model = base()
    replace_head(model)
    assert logits(model).shape == (2, 2)
    assert model.out_head.bias is not None


# --- the fused layer -----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_fused_gradients_agree_with_finite_differences(bias):
    """In double precision, for x, A and B."""
    torch.manual_seed(0)
    weight, offset = torch.randn(5, 4).double(), torch.randn(5).double() if bias else None
    x, A, B = (torch.randn(*shape).double().requires_grad_() for shape in ((3, 4), (4, 2), (2, 5)))
    assert torch.autograd.gradcheck(
        lambda x, A, B: _FusedLoRALinear.apply(x, weight, None, offset, A, B, 1.7), (x, A, B)
    )


def test_fused_equals_plain_autograd_over_twenty_steps(monkeypatch):
    """The same losses, step for step, as the two lines of the definition."""

    def losses():
        model = prepare(base(), "lora", LoRAConfig(rank=4, alpha=8), 3).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
        found = []
        for _ in range(20):
            loss = F.cross_entropy(model.last_logits(TOKENS, PACKING), torch.tensor([0, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    fused = losses()
    monkeypatch.setattr(LinearWithLoRA, "can_fuse", lambda self, x: False)
    assert fused == pytest.approx(losses(), abs=1e-4)
    assert fused[-1] < fused[0] / 2


def test_what_is_drawn_follows_from_the_seed_alone(monkeypatch):
    """Other threads draw from the common generator at the same time."""
    cfg = GPTConfig(50, 16, 24, 3, 2)

    def drawn():
        model = prepare(initialise(GPTModel(cfg), 0), "lora", LoRAConfig(rank=2), 7)
        return [p.detach() for p in model.parameters() if p.requires_grad]

    alone, real = drawn(), lora.replace_head

    def disturbed(model):
        torch.rand(5)
        real(model)

    monkeypatch.setattr(lora, "replace_head", disturbed)
    torch.manual_seed(123)
    assert all(map(torch.equal, alone, drawn()))
