"""Step 3: next-token training of the bundled model, resumable, with a held-out loss.

Every step is a function of (seed, step) alone, so a run that was stopped and resumed sees what one
that was never stopped would have seen. The learning rate warms up, stays, and falls to 0 over the
last fifth, so that a longer training can branch off before the fall.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_gpt.config import MODELS, GPTConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel, Packing, initialise
from lora_gpt.core.pretrain.corpus import SOURCES, read_documents


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside the text."""

    tokens: int
    rows: int = 24
    width: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 150
    fall: float = 0.2
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.rows * self.width))

    def rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup_steps)
        falling = min(1.0, (self.steps - step) / max(1.0, self.steps * self.fall))
        return self.learning_rate * rising * falling


@dataclass(frozen=True)
class PretrainStep:
    """What one step says: losses in nats a token; `held_out` where it was measured."""

    step: int
    steps: int
    loss: float
    held_out: float | None = None


def encode_sources(corpus: Path, out: Path) -> None:
    """Write the tokens of every source and part as int16, documents parted by end-of-text."""
    encoding = tokenizer.load("mini")
    for part in ("train", "held_out"):
        streams = {}
        for source in SOURCES:
            tokens: list[int] = []
            for document in encoding.encode_ordinary_batch(read_documents(corpus, source, part)):
                tokens += [*document, encoding.eot_token]
            streams[source.file] = torch.tensor(tokens, dtype=torch.int16)
        save_file(streams, out / f"tokens.{part}.safetensors")


class Mixture:
    """Rows of tokens drawn from the sources by their shares; the same step draws the same rows."""

    def __init__(self, streams: dict[str, Tensor], recipe: Recipe):
        self.streams = [streams[source.file] for source in SOURCES]
        self.shares = torch.tensor([source.share for source in SOURCES])
        self.recipe = recipe

    def rows(self, step: int) -> Tensor:
        """(rows, width + 1) tokens."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        count, width = self.recipe.rows, self.recipe.width + 1
        chosen = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        rows = []
        for place in chosen.tolist():
            stream = self.streams[place]
            start = int(torch.randint(len(stream) - width, (1,), generator=generator))
            rows.append(stream[start : start + width])
        return torch.stack(rows).long()


def language_loss(model: GPTModel, rows: Tensor) -> Tensor:
    """Mean cross-entropy of every next token of `rows` (B, T+1)."""
    tokens, following = rows[:, :-1], rows[:, 1:]
    packing = Packing([tokens.shape[1]] * len(tokens))
    logits = F.linear(model.hidden_states(tokens.flatten(), packing), model.tok_emb.weight)
    return F.cross_entropy(logits.float(), following.flatten())


def held_out_loss(model: GPTModel, streams: dict[str, Tensor], width: int) -> float:
    """Mean loss over the held-out text: each source by its share, at most 16 rows of it."""
    total = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for source in SOURCES:
            stream = streams[source.file]
            span = min(width + 1, len(stream))
            count = min(16, len(stream) // span)
            rows = torch.stack([stream[i * span : (i + 1) * span] for i in range(count)]).long()
            total += source.share * language_loss(model, rows).item()
    return total


def pretrain(work: Path, recipe: Recipe, cfg: GPTConfig | None = None) -> Iterator[PretrainStep]:
    """Train in `work`, which holds the encoded sources; goes on from a checkpoint that lies there.

    Yields every step; writes a checkpoint every 200 steps and at the end.
    """
    cfg = cfg or MODELS["mini"].config
    mixture = Mixture(load_file(work / "tokens.train.safetensors"), recipe)
    held_out = load_file(work / "tokens.held_out.safetensors")
    model = initialise(GPTModel(cfg), recipe.seed)
    model.out_head.weight = model.tok_emb.weight  # tied: half the parameters of a small model
    optimizer = _optimizer(model, recipe)
    start, log = _restore(work, model, optimizer, recipe)
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, mixture.rows(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last, value, outside = step + 1 == recipe.steps, loss.item(), None
        if not math.isfinite(value):
            raise ArithmeticError(f"the loss is {value} at step {step}: lower the learning rate")
        if step % 200 == 0 or last:
            outside = held_out_loss(model, held_out, recipe.width)
            log.append({"step": step, "loss": value, "held_out": outside})
            _keep(work, model, optimizer, recipe, step + 1, log)
        yield PretrainStep(step, recipe.steps, value, outside)


def _optimizer(model: GPTModel, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


# --- checkpoint ----------------------------------------------------------------------------------


def _keep(
    work: Path,
    model: GPTModel,
    optimizer: torch.optim.AdamW,
    recipe: Recipe,
    step: int,
    log: list[dict],
) -> None:
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{place}.{name}": value for name, value in state.items()}
    about = json.dumps({"step": step, "recipe": asdict(recipe), "log": log})
    fresh = work / "checkpoint.new"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, fresh, {"about": about})
    fresh.replace(work / "checkpoint.safetensors")


def read_checkpoint(work: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and facts (step, recipe, log) of the checkpoint in `work`."""
    path = work / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {})["about"])
    return load_file(path), about


def _restore(
    work: Path, model: GPTModel, optimizer: torch.optim.AdamW, recipe: Recipe
) -> tuple[int, list[dict]]:
    if not (work / "checkpoint.safetensors").is_file():
        return 0, []
    tensors, about = read_checkpoint(work)
    kept = dict(about["recipe"])
    if kept | {"tokens": recipe.tokens} != asdict(recipe):
        raise ValueError(f"work: {work} holds a checkpoint of another recipe, {kept}")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, place, slot = name.split(".")
            state.setdefault(int(place), {})[slot] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return about["step"], about["log"]
