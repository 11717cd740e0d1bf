import pytest
import torch

from lora_gpt.config import MODELS, BadValue, LoRAConfig
from lora_gpt.core.lora import mark_trainable, replace_head, replace_linear_with_lora
from lora_gpt.core.model import GPTModel
from lora_gpt.core.structure import arithmetic, counts, outline, printed, tree


def built(model, stage, lora):
    """The whole model on the meta device, every block of it, as the labs build it."""
    with torch.device("meta"):
        gpt = GPTModel(MODELS[model].config)
        if stage != "base":
            replace_linear_with_lora(gpt, lora.rank, lora.alpha, lora.targets)
            if stage == "classifier":
                replace_head(gpt)
            mark_trainable(gpt, "lora")
    return gpt


def test_the_three_stages_of_gpt2():
    """The table of the lab reports, number for number."""
    base, lora, classifier = counts("gpt2")
    assert (base.trainable, base.total) == (163_037_184, 163_037_184)
    assert (lora.trainable, lora.total) == (1_327_104, 164_364_288)
    assert (classifier.trainable, classifier.total) == (1_328_642, 125_768_450)
    assert [f"{100 * stage.fraction:.2f}" for stage in (base, lora, classifier)] == [
        "100.00",
        "0.81",
        "1.06",
    ]


def test_gpt2_xl_by_hand():
    """The counts of XL follow from its sizes alone."""
    d, blocks, vocabulary = 1600, 48, 50257
    linear = 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d)
    body = vocabulary * d + 1024 * d + blocks * (linear + 4 * d) + 2 * d
    injected = blocks * 8 * (4 * 2 * d + 2 * 5 * d)
    base, lora, classifier = counts("gpt2-xl")
    assert base.total == body + vocabulary * d
    assert (lora.trainable, lora.total) == (injected, body + vocabulary * d + injected)
    assert classifier.trainable == injected + 2 * d + 2
    assert classifier.total == body + injected + 2 * d + 2


def test_another_shape_is_counted_by_its_own_sizes():
    """GPT-2 124M with three blocks in place of twelve: a quarter of what its blocks hold."""
    block = (163_037_184 - 2 * 50257 * 768 - 1024 * 768 - 2 * 768) // 12
    base, lora, _ = counts("gpt2", shape="768x12x3x1024")
    assert base.total == 163_037_184 - 9 * block
    assert lora.trainable == 1_327_104 // 4
    assert tree("gpt2", shape="768x12x3x1024").parameters == base.total


@pytest.mark.parametrize("stage", ["base", "lora", "classifier"])
@pytest.mark.parametrize("model", ["mini", "gpt2", "gpt2-xl"])
def test_the_folded_tree_is_the_model(model, stage):
    """A tree folded from one block tells what the whole model would: text and counts."""
    lora = LoRAConfig(rank=3, alpha=6, targets=("W_query", "ff_out"))
    gpt, root = built(model, stage, lora), tree(model, stage, lora)
    assert printed(root) == repr(gpt)
    assert root.parameters == sum(p.numel() for p in gpt.parameters())
    assert root.trainable == sum(p.numel() for p in gpt.parameters() if p.requires_grad)


def test_each_layer_says_what_happened_to_it():
    """Replaced, new, unchanged and frozen are told apart where they happen."""
    nodes = {node.path: node for node in tree("gpt2", "classifier").walk()}
    query = nodes["trf_blocks.0.att.W_query"]
    assert (query.change, query.parameters, query.trainable) == ("replaced", 602_880, 12_288)
    assert nodes["trf_blocks.0.att.W_query.linear"].change == "unchanged"
    assert nodes["trf_blocks.0.att.W_query.linear"].kind == "frozen"
    assert nodes["trf_blocks.0.att.W_query.lora"].change == "new"
    assert nodes["trf_blocks.0.att.W_query.lora"].kind == "lora"
    assert (nodes["out_head"].change, nodes["out_head"].kind) == ("new", "head")
    assert (nodes["tok_emb"].change, nodes["tok_emb"].kind) == ("unchanged", "frozen")
    assert nodes["trf_blocks.0"].repeat == 12


def test_the_arithmetic_adds_up():
    """Every count is the value of the sum that explains it."""
    for node in tree("gpt2-medium", "classifier").walk():
        if node.parameters:
            left, right = arithmetic(node).split(" = ")
            assert eval(left.replace(",", "").replace("×", "*")) == int(right.replace(",", ""))
            assert int(right.replace(",", "")) == node.parameters


def test_methods_decide_what_is_trainable():
    """Head only trains the head; full trains everything; neither injects."""
    assert counts("gpt2", method="head")[-1].trainable == 1_538
    full = counts("gpt2", method="full")[-1]
    assert full.trainable == full.total == 124_441_346


def test_the_outline_names_every_module_with_its_count():
    text = outline(tree("gpt2", "classifier"))
    assert "602,880" in text and "replaced" in text and "TransformerBlock × 12" in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tree("gpt5"), "model: must be one of mini"),
        (lambda: tree("gpt2", shape="wide"), "shape: must be features x heads"),
        (lambda: tree("gpt2", "after"), "stage: must be one of base"),
        (lambda: tree("mini", "lora", LoRAConfig(rank=256, targets=("W_key",))), None),
    ],
)
def test_bad_values_are_refused_by_name(call, words):
    if words is None:
        call()
    else:
        with pytest.raises(BadValue, match=words):
            call()
