"""Step 5: the trained weights into `assets/`, with a card that says where they come from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_gpt.config import MODELS
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel
from lora_gpt.core.packing import Packing
from lora_gpt.core.pretrain.corpus import SOURCES, STAGES
from lora_gpt.core.pretrain.language_model import held_out_losses, read_checkpoint, stages_in
from lora_gpt.core.weights import BUNDLED, save_base

PROMPTS = ("Hi, are you", "Your parcel", "Congratulations! You", "I would like to", "Subject: ")
BEFORE = """python -m lora_gpt pretrain filter --work WORK --texts TEXTS
python -m lora_gpt pretrain vocabulary --work WORK
python -m lora_gpt pretrain encode --work WORK"""
TRAIN = "python -m lora_gpt pretrain train --work WORK --stage {stage} --tokens {tokens}"
AFTER = """python -m lora_gpt pretrain pack --work WORK
python -m lora_gpt pretrain samples --work WORK"""


def pack(work: Path, out: Path = BUNDLED) -> dict[str, Any]:
    """Write the checkpoint of `work` into the folder `out`, with its card; returns the facts."""
    tensors, _ = read_checkpoint(work)
    model = trained(tensors)
    out.mkdir(parents=True, exist_ok=True)
    save_base(model, out)
    corpus = json.loads((work / "corpus.json").read_text(encoding="utf-8"))
    stages = {stage: read_checkpoint(work, stage)[1] for stage in stages_in(work)}
    for stage, about in stages.items():
        about["shares"] = STAGES[stage]
    facts: dict[str, Any] = {"stages": stages, "corpus": corpus}
    facts["held_out"] = held_out_losses(
        model, load_file(work / "tokens.held_out.safetensors"), stages[stage]["recipe"]["width"]
    )
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    facts["bytes"] = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    facts["samples"] = {prompt: continued(model, prompt) for prompt in PROMPTS}
    (out / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (out / "README.md").write_text(card(facts), encoding="utf-8")
    return facts


def trained(tensors: dict[str, Tensor]) -> GPTModel:
    """The model of a checkpoint, its head tied."""
    model = GPTModel(MODELS["mini"].config)
    state = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    state["out_head.weight"] = state["tok_emb.weight"]
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def continued(model: GPTModel, prompt: str, tokens: int = 40, seed: int = 0) -> str:
    """What the model writes after `prompt`, drawn at temperature 0.8 with a fixed seed."""
    encoding, generator = tokenizer.load("mini"), torch.Generator().manual_seed(seed)
    written = encoding.encode_ordinary(prompt)
    for _ in range(tokens):
        row = torch.tensor(written)
        logits = model.last_logits(row, Packing([len(written)]))[0] / 0.8
        following = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        if following == encoding.eot_token:
            break
        written.append(following)
    return encoding.decode(written)


def card(facts: dict[str, Any]) -> str:
    """The model card: what it is, what it was made of, how well it reads."""
    cfg = MODELS["mini"].config
    return "\n".join(
        [
            "# mini: the bundled base model",
            "",
            f"GPT-2's architecture at a small size: {cfg.n_layers} blocks, {cfg.emb_dim} features,"
            f" {cfg.n_heads} heads, {cfg.context_length} tokens of context, a byte-level BPE of"
            f" {cfg.vocab_size:,} tokens. {facts['parameters']:,} parameters with the output head"
            f" untied; {facts['bytes']:,} bytes of bfloat16 on disk, where the head is tied.",
            "",
            "It was made to be looked into, adapted and compared on a laptop. It is no chat model:"
            " it continues short English text for a few words and knows no facts. It read"
            " American office mail of 2000, service dialogues, read-aloud sentences, old books and"
            " invented text messages, and repeats their views. Use it for spam and ham as this app"
            " does; nothing else was measured.",
            "",
            "## Text",
            "",
            *_text_table(facts),
            "",
            "Kept out: documents that hold a message of the SMS Spam Collection or of the bundled"
            " messages, exactly or nearly (of a thread only the line). A part of the documents was"
            " rewritten as people type on phones (case, signs, shorthand).",
            "",
            "`threads` is `threads.txt.xz` in this folder: text messages that a language model"
            " (Claude) wrote for this project, without labels. Messages of one sender stand"
            " together, as in the inbox of a phone, so that what comes next tells who is"
            " writing.",
            "",
            "## Training",
            "",
            "Each stage goes on where the one before ended.",
            "",
            *(_stage_line(about) for about in facts["stages"].values()),
            "",
            "To do it again: TEXTS holds each source above that has an address as NAME.txt.xz,"
            " plain text, dialogues parted by blank lines, mails by their subject lines, sentences"
            " and paragraphs of books on a line each. Work in a copy of the repository:"
            " `vocabulary`, `pack` and `samples` write into `assets/`.",
            "",
            "```",
            BEFORE,
            *(
                TRAIN.format(stage=stage, tokens=about["recipe"]["tokens"])
                for stage, about in facts["stages"].items()
            ),
            AFTER,
            "```",
            "",
            "| stage | step | training loss | held-out loss |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {stage} | {entry['step']:,} | {entry['loss']:.3f} | {entry['held_out']:.3f} |"
                for stage, about in facts["stages"].items()
                for entry in _marks(about["log"])
            ),
            "",
            "Losses are in nats a token; the held-out loss of a stage weighs the sources by their"
            " shares in it.",
            "",
            "## What it writes",
            "",
            "Continued at temperature 0.8, one try each:",
            "",
            "\n>\n".join(
                f"> {json.dumps(text, ensure_ascii=False)}" for text in facts["samples"].values()
            ),
            "",
        ]
    )


def _text_table(facts: dict[str, Any]) -> list[str]:
    """A line a source: licence, size, what was kept out, its share of each stage, its loss."""
    stages = facts["stages"]
    addresses = {source.file: source.address for source in SOURCES}
    lines = [
        "| source | licence | documents | kept out | characters |"
        + "".join(f" share of {stage} |" for stage in stages)
        + " held-out loss |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * (len(stages) + 1),
    ]
    for name, about in facts["corpus"].items():
        shares = "".join(
            f" {100 * stage['shares'].get(name, 0):.0f}% |" for stage in stages.values()
        )
        address = addresses.get(name)
        told = f"[{name}]({address})" if address else name
        lines.append(
            f"| {told} | {about['licence']} | {about['documents']:,} | {about['dropped']:,} |"
            f" {about['characters']:,} |{shares} {facts['held_out'][name]:.3f} |"
        )
    return lines


def _stage_line(about: dict[str, Any]) -> str:
    recipe = about["recipe"]
    seen = about["step"] * recipe["rows"] * recipe["width"]
    falling = f"falling to 0 over the last {100 * recipe['fall']:.0f}%"
    place = "a GPU" if about["device"] == "cuda" else "a CPU"
    return (
        f"- {recipe['stage']}: {about['step']:,} steps of {recipe['rows']} x {recipe['width']}"
        f" tokens: {seen:,} tokens. Muon at learning rate {recipe['matrix_rate']:g} for the blocks'"
        f" matrices, AdamW at learning rate {recipe['learning_rate']:g} for the rest,"
        f" {falling if recipe['fall'] else 'held'}, bfloat16 autocast on {place}, seed"
        f" {recipe['seed']}."
    )


def _marks(log: list[dict[str, Any]], most: int = 9) -> list[dict[str, Any]]:
    """About `most` entries of a log, evenly, the first and the last among them."""
    places = {round(place * (len(log) - 1) / (most - 1)) for place in range(most)}
    return [log[place] for place in sorted(places)]
