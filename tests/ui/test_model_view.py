import re

import pytest

from lora_gpt.config import LoRAConfig
from lora_gpt.core import structure
from lora_gpt.ui.anatomy import LESSONS, anatomy_html
from lora_gpt.ui.compare_view import line_of
from lora_gpt.ui.model_view import (
    linear_of,
    picture_html,
    said_html,
    scale_html,
    shares,
    stages_html,
    stats_html,
)
from lora_gpt.ui.tree import paired, tree_html

BASE = structure.tree("gpt2", "base")
GPT2 = structure.tree("gpt2", "classifier")


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_both_trees_have_the_same_lines():
    """Every module stands beside its twin, or beside a gap."""
    before, after = structure.tree("gpt2", "base"), GPT2
    left, right = tree_html(before, after).split('data-side="after"')
    paths = [re.findall(r'data-path="([^"]*)"', side) for side in (left, right)]
    assert paths[0] == paths[1]
    assert left.count("row gap") == 12 and right.count("row gap") == 0
    pairs = list(paired(before, after))
    assert all(old is None or new is None or old.path == new.path for old, new, _ in pairs)


def test_the_tree_tells_frozen_new_and_replaced_apart():
    """With words, not with colour alone."""
    after = text_of(tree_html(structure.tree("gpt2", "base"), GPT2).split('"after"')[1])
    assert "W_query LinearWithLoRA +12,288 602,880" in after
    assert "lora LoRALayer new, rank 8 12,288" in after
    assert "out_head Linear new 768 → 2 1,538" in after
    assert "tok_emb Embedding frozen 38,597,376" in after
    assert "0-11 TransformerBlock × 12 +110,592" in after


def test_what_the_tree_means_by_times_is_read_out():
    """A title is for the mouse alone; the label is read, and the module's card says it to all."""
    meant = "12 blocks of this shape; the counts are those of one"
    assert f'role="img" aria-label="{meant}"' in tree_html(BASE, GPT2)
    block = next(node for node in GPT2.walk() if node.path == "trf_blocks.0")
    assert meant in text_of(anatomy_html(block, structure.arithmetic(block), 2.0))


def test_the_numbers_on_top_are_the_labs():
    said = text_of(stats_html(GPT2, BASE))
    assert "trained 1,328,642 all parameters 125,768,450 fraction 1.06%" in said
    assert "72 linear layers were replaced" in said
    assert "1,327,104 numbers are LoRA." in said


def test_it_is_said_why_the_model_shrinks():
    """Injection adds numbers; that there are fewer in the end is the head's doing."""
    head = "The output head's 38,597,376 numbers are gone, 1,538 new ones stand in their place."
    assert head in text_of(stats_html(GPT2, BASE))
    assert "head" not in text_of(stats_html(structure.tree("gpt2", "lora"), BASE))


def test_the_numbers_are_told_in_a_sentence():
    assert said_html(GPT2) == "1,328,642 of 125,768,450 parameters are trained, 1.06%."


def test_the_stage_that_is_shown_is_marked_in_words():
    """Not with a tint alone; and every column says what it holds."""
    html = stages_html(structure.counts("gpt2"), "lora")
    assert html.count('aria-current="true"') == 1 and html.count("shown here") == 1
    [row] = re.findall(r"<tr[^>]*aria-current.*?</tr>", html)
    assert text_of(row).startswith("LoRA injected, base frozen shown here 1,327,104")
    assert html.count('<th scope="col"') == html.count("<th") - html.count("<thead") == 4


def test_without_a_head_only_lora_is_trained():
    found = shares(structure.tree("gpt2", "lora"))
    assert (found.lora, found.head, found.total) == (1_327_104, 0, 164_364_288)


def test_matrices_are_drawn_to_scale():
    """A is as high as W and r wide, B as wide as W and r high, all by one measure."""
    node = linear_of(
        structure.tree("gpt2", "lora", LoRAConfig(rank=64)), "trf_blocks.0.ff.layers.0"
    )
    sizes = re.findall(r"width:([\d.]+)px;height:([\d.]+)px", picture_html(node, 0.25))
    (w_width, w_height), (a_width, a_height), (b_width, b_height) = [
        (float(width), float(height)) for width, height in sizes
    ]
    assert w_width / w_height == pytest.approx(3072 / 768)
    assert (a_height, b_width) == (w_height, w_width)
    assert a_width / w_width == pytest.approx(64 / 3072)
    assert b_height / w_height == pytest.approx(64 / 768)


def test_the_drawing_says_that_the_table_has_w_turned():
    """PyTorch's shape is out x in, the drawing's in x out; where both are one nothing is said."""
    feed_forward = linear_of(GPT2, "trf_blocks.0.ff.layers.2")
    said = text_of(picture_html(feed_forward, 2))
    assert "W 3,072 × 768" in said
    assert "PyTorch stores W turned, out × in: 768 × 3,072." in said
    assert "PyTorch stores" not in text_of(picture_html(linear_of(GPT2, ""), 2))
    assert "out × in: 2 × 768." in text_of(picture_html(linear_of(GPT2, "out_head"), 2))


def test_what_is_too_thin_to_draw_is_said():
    node = linear_of(structure.tree("gpt2-xl", "lora", LoRAConfig(rank=1)), "")
    assert "thinner than one pixel" in picture_html(node, 16)


@pytest.mark.parametrize(
    ("path", "drawn"),
    [
        ("trf_blocks.0.att.W_key", "trf_blocks.0.att.W_key"),
        ("trf_blocks.0.att.W_key.lora", "trf_blocks.0.att.W_key"),
        ("trf_blocks.0.ff", "trf_blocks.0.att.W_query"),
        ("out_head", "out_head"),
        ("", "trf_blocks.0.att.W_query"),
    ],
)
def test_the_picture_follows_the_chosen_module(path, drawn):
    assert linear_of(GPT2, path).path == drawn


def test_a_layer_that_is_no_target_is_drawn_alone():
    only_values = structure.tree("gpt2", "lora", LoRAConfig(targets=("W_value",)))
    assert linear_of(only_values, "").path == "trf_blocks.0.att.W_value"
    query = linear_of(only_values, "trf_blocks.0.att.W_query")
    assert "No LoRA stands beside this layer" in picture_html(query, 2)


def test_every_kind_of_module_is_explained():
    """Nothing in the tree is left without a sentence and its arithmetic."""
    for node in GPT2.walk():
        assert node.type in LESSONS
        arithmetic = structure.arithmetic(node)
        assert text_of(arithmetic) in text_of(anatomy_html(node, arithmetic, 2.0))


def test_the_scale_is_written_as_it_is_computed():
    assert "16 / 8 = 2" in scale_html(LoRAConfig())
    assert "16 / √8 = 5.66" in scale_html(LoRAConfig(rank_stabilised=True))


@pytest.mark.parametrize("rank", [1, 8, 256])
def test_the_line_over_ranks_is_the_model(rank):
    """One tree with rank 1 foretells the share at every rank."""
    lora = LoRAConfig(rank=rank)
    line = line_of(structure.tree("mini", "classifier", LoRAConfig(rank=1)))
    root = structure.tree("mini", "classifier", lora)
    assert line.fraction(rank) == root.trainable / root.parameters
