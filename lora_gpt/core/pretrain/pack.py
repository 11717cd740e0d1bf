"""Step 5: the trained weights into `assets/`, with a card that says where they come from."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_gpt.config import MODELS
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel, Packing
from lora_gpt.core.pretrain.language_model import read_checkpoint
from lora_gpt.core.weights import BUNDLED, save_base

PROMPTS = ("Hi, are you", "Your parcel", "Congratulations! You", "I would like to", "Subject: ")
COMMANDS = """python -m lora_gpt pretrain filter --work WORK --texts TEXTS
python -m lora_gpt pretrain vocabulary --work WORK
python -m lora_gpt pretrain encode --work WORK
python -m lora_gpt pretrain train --work WORK --tokens {tokens}
python -m lora_gpt pretrain pack --work WORK
python -m lora_gpt pretrain samples --work WORK"""


def pack(work: Path, out: Path = BUNDLED) -> dict[str, Any]:
    """Write the checkpoint of `work` as the bundled model, with its card; returns the facts."""
    tensors, about = read_checkpoint(work)
    model = trained(tensors)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_base(model, out)
    corpus = json.loads((work / "corpus.json").read_text(encoding="utf-8"))
    facts = about | {"corpus": corpus, "parameters": sum(p.numel() for p in model.parameters())}
    facts["bytes"] = out.stat().st_size
    facts["samples"] = {prompt: continued(model, prompt) for prompt in PROMPTS}
    (out.parent / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (out.parent / "README.md").write_text(card(facts), encoding="utf-8")
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
    recipe, cfg = facts["recipe"], MODELS["mini"].config
    seen = facts["step"] * recipe["rows"] * recipe["width"]
    sources = [
        f"| {name} | {about['licence']} | {about['documents']:,} | {about['dropped']:,} |"
        f" {about['characters']:,} | {100 * about['share']:.0f}% |"
        for name, about in facts["corpus"].items()
    ]
    log = facts["log"]
    marks = sorted({round(place * (len(log) - 1) / 12) for place in range(13)})
    curve = [
        f"| {log[at]['step']:,} | {log[at]['loss']:.3f} | {log[at]['held_out']:.3f} |"
        for at in marks
    ]
    samples = [f"> {json.dumps(text, ensure_ascii=False)}" for text in facts["samples"].values()]
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
            " American office mail of 2000, service dialogues, read-aloud sentences and old books,"
            " and repeats their views. Use it for spam and ham as this app does; nothing else was"
            " measured.",
            "",
            "## Text",
            "",
            "| source | licence | documents | kept out | characters | share of training |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *sources,
            "",
            "Kept out: documents that hold a message of the SMS Spam Collection, exactly or nearly."
            " A part of the documents was rewritten as people type on phones (case, signs,"
            " shorthand).",
            "",
            "## Training",
            "",
            f"{facts['step']:,} steps of {recipe['rows']} x {recipe['width']} tokens: {seen:,}"
            " tokens. AdamW, learning rate"
            f" {recipe['learning_rate']:g}, falling to 0 over the last"
            f" {100 * recipe['fall']:.0f}%, bfloat16 autocast on a CPU, seed {recipe['seed']}.",
            "",
            "```",
            COMMANDS.format(tokens=recipe["tokens"]),
            "```",
            "",
            "| step | training loss | held-out loss |",
            "| ---: | ---: | ---: |",
            *curve,
            "",
            "Losses are in nats a token.",
            "",
            "## What it writes",
            "",
            "Continued at temperature 0.8, one try each:",
            "",
            "\n>\n".join(samples),
            "",
        ]
    )
