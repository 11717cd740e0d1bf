"""The bundled model's files: what was trained can be read again, and the card tells of it."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from lora_gpt.__main__ import build_parser
from lora_gpt.config import MODELS, GPTConfig, ModelSpec, RunConfig
from lora_gpt.core.pretrain.corpus import SOURCES
from lora_gpt.core.pretrain.language_model import Recipe, pretrain, read_checkpoint
from lora_gpt.core.pretrain.pack import PROMPTS, continued, pack, trained
from lora_gpt.core.weights import load_base

SMALL = GPTConfig(4096, 64, 16, 2, 2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(work folder, packed folder, facts) of a model that was trained for five steps."""
    work = tmp_path_factory.mktemp("work")
    out = work / "assets" / "mini"
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "held_out"):
        streams = {
            source.file: torch.randint(4095, (99,), generator=generator).to(torch.int16)
            for source in SOURCES
        }
        save_file(streams, work / f"tokens.{part}.safetensors")
    about = {"documents": 1200, "dropped": 7, "characters": 5_000_000}
    corpus = {source.file: about | {"licence": source.licence} for source in SOURCES}
    (work / "corpus.json").write_text(json.dumps(corpus), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mini", ModelSpec("mini (bundled)", SMALL, encoding="mini"))
        for steps, stage in ((3, "prose"), (2, "messages")):
            list(pretrain(work, Recipe(steps * 32, stage, rows=2, width=16)))
        yield work, out, pack(work, out)


def test_the_file_is_the_trained_model(packed):
    """In bfloat16, with the head tied, as `load_base` reads it."""
    work, out, _ = packed
    loading = load_base(RunConfig(), bundled=out)
    with pytest.raises(StopIteration) as done:
        while True:
            next(loading)
    read, kept = done.value.value, trained(read_checkpoint(work)[0])
    for name, value in kept.named_parameters():
        assert torch.equal(read.get_parameter(name), value.bfloat16().float())
    assert torch.equal(read.out_head.weight, read.tok_emb.weight)


def test_the_facts_stand_beside_it(packed):
    """Recipe, losses, corpus, size and samples, as numbers for whoever wants to draw them."""
    _, out, facts = packed
    assert json.loads((out / "training.json").read_text("utf-8")) == facts
    assert [about["step"] for about in facts["stages"].values()] == [3, 2]
    assert facts["stages"]["messages"]["recipe"]["rows"] == 2
    assert facts["bytes"] == (out / "model.safetensors").stat().st_size
    # The head is counted as the app builds it, though it shares its numbers on disk.
    assert facts["parameters"] == sum(
        p.numel() for p in trained(read_checkpoint(packed[0])[0]).parameters()
    )
    assert [*facts["samples"]] == [*PROMPTS]


def test_the_card_tells_what_it_was_made_of(packed):
    """Every source with its licence and what was kept out, and the losses."""
    _, out, facts = packed
    card = (out / "README.md").read_text("utf-8")
    for source in SOURCES:
        shares = [about["shares"].get(source.file, 0) for about in facts["stages"].values()]
        told = " | ".join(f"{100 * share:.0f}%" for share in shares)
        name = f"[{source.file}]({source.address})" if source.address else source.file
        start = f"| {name} | {source.licence} | 1,200 | 7 | 5,000,000 | {told} |"
        assert f"{start} {facts['held_out'][source.file]:.3f} |" in card
    for stage, about in facts["stages"].items():
        for entry in about["log"]:
            losses = f"{entry['loss']:.3f} | {entry['held_out']:.3f} |"
            assert f"| {stage} | {entry['step']:,} | {losses}" in card
    assert f"{SMALL.n_layers} blocks, {SMALL.emb_dim} features" in card
    assert "- prose: 3 steps of 2 x 16" in card and "- messages: 2 steps of 2 x 16" in card
    assert "bfloat16 autocast on a CPU" in card
    assert f"{facts['bytes']:,} bytes" in card


def test_the_commands_of_the_card_are_commands(packed):
    """Each line parses, so that whoever copies it gets what was done."""
    card = (packed[1] / "README.md").read_text("utf-8")
    lines = re.findall(r"^python -m lora_gpt (.+)$", card, re.M)
    found = [build_parser().parse_args(line.split()) for line in lines]
    assert [each.step for each in found] == [
        "filter", "vocabulary", "encode", "train", "train", "pack", "samples",
    ]  # fmt: skip
    assert [(each.stage, each.tokens) for each in found[3:5]] == [
        ("prose", 96), ("messages", 64),
    ]  # fmt: skip


def test_the_same_seed_writes_the_same_words(packed):
    """The samples on the card can be made again."""
    model = trained(read_checkpoint(packed[0])[0])
    first = continued(model, "Hi, are you", 5)
    assert first == continued(model, "Hi, are you", 5) != continued(model, "Hi, are you", 5, seed=1)
    assert first.startswith("Hi, are you")
