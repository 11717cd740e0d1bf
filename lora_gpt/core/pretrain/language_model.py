"""Step 3: next-token training of the bundled model, resumable, with a held-out loss.

Every step is a function of (seed, step) alone, so a run that was stopped and resumed sees what one
that was never stopped would have seen. The learning rate warms up, stays, and falls to 0 over the
end of a stage, so that a longer training can branch off before the fall. A stage starts from the
weights of the one before, with more blocks where its recipe says so, and keeps a checkpoint of its
own.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_gpt.config import MODELS, GPTConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel, Packing, initialise
from lora_gpt.core.pretrain.corpus import SOURCES, STAGES, read_documents


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside the text."""

    tokens: int
    stage: str = "prose"
    n_layers: int = MODELS["mini"].config.n_layers
    rows: int = 24
    width: int = 256
    learning_rate: float = 2e-3
    matrix_rate: float = 3e-3
    """Learning rate of Muon, which trains the blocks' matrices; AdamW trains everything else."""
    warmup_steps: int = 150
    fall: float = 0.2
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def rates(self) -> tuple[float, float]:
        """The full learning rates, in the order of the optimizers."""
        return self.matrix_rate, self.learning_rate

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.rows * self.width))

    def share_of_rate(self, step: int) -> float:
        """What the learning rates are multiplied by at `step`, 0 to 1."""
        rising = min(1.0, (step + 1) / self.warmup_steps)
        falling = min(1.0, (self.steps - step) / max(1.0, self.steps * self.fall))
        return rising * falling


RECIPES: dict[str, dict[str, float]] = {
    "prose": {"n_layers": 4},
    "messages": {
        "n_layers": 4,
        "learning_rate": 1.5e-3,
        "warmup_steps": 100,
        "fall": 0.7,
        "seed": 1,
    },
    "deeper": {"learning_rate": 1.5e-3, "warmup_steps": 100, "fall": 0.8, "seed": 2},
}
"""What each stage sets in its recipe: a small model learns fast, a larger one learns more."""


def recipe_of(stage: str, tokens: int) -> Recipe:
    """The recipe that the bundled model was made by."""
    return Recipe(tokens, stage, **RECIPES[stage])  # type: ignore[arg-type]


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
    """Rows of tokens drawn from the sources by their shares; the same step draws the same rows.

    A row begins where a line or a document does, as everything does that the model will classify:
    its first positions never learn to read the middle of a sentence.
    """

    def __init__(self, streams: dict[str, Tensor], recipe: Recipe):
        shares = STAGES[recipe.stage]
        self.streams = [streams[name] for name in shares]
        self.begins = [line_begins(stream, recipe.width + 1) for stream in self.streams]
        self.shares = torch.tensor([*shares.values()])
        self.recipe = recipe

    def rows(self, step: int) -> Tensor:
        """(rows, width + 1) tokens."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        count, width = self.recipe.rows, self.recipe.width + 1
        chosen = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        rows = []
        for place in chosen.tolist():
            stream, begins = self.streams[place], self.begins[place]
            anywhere = torch.randint(len(stream) - width + 1, (1,), generator=generator)
            start = begins[int(torch.searchsorted(begins, anywhere)) % len(begins)]
            rows.append(stream[start : start + width])
        return torch.stack(rows).long()


def line_begins(stream: Tensor, width: int) -> Tensor:
    """Places in `stream` where a line or a document begins and `width` tokens are left."""
    encoding = tokenizer.load("mini")
    (line_break,) = encoding.encode_ordinary("\n")
    ends = (stream == line_break) | (stream == encoding.eot_token)
    begins = torch.cat([torch.zeros(1, dtype=torch.long), ends.nonzero().flatten() + 1])
    return begins[begins <= len(stream) - width]


def language_loss(model: GPTModel, rows: Tensor, packing: Packing | None = None) -> Tensor:
    """Mean cross-entropy of every next token of `rows` (B, T+1); `packing` is that of (B, T)."""
    tokens, following = rows[:, :-1], rows[:, 1:]
    packing = packing or Packing([tokens.shape[1]] * len(tokens))
    logits = F.linear(model.hidden_states(tokens.flatten(), packing), model.tok_emb.weight)
    return F.cross_entropy(logits.float(), following.flatten())


def held_out_losses(model: GPTModel, streams: dict[str, Tensor], width: int) -> dict[str, float]:
    """Mean loss over the held-out text of each source, at most 16 rows of it, evenly spread."""
    found = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for name, stream in streams.items():
            span = min(width + 1, len(stream))
            begins = line_begins(stream, span)
            spread = torch.linspace(0, len(begins) - 1, min(16, len(begins))).long()
            rows = torch.stack([stream[i : i + span] for i in begins[spread].tolist()]).long()
            found[name] = language_loss(model, rows).item()
    return found


def held_out_loss(
    model: GPTModel, streams: dict[str, Tensor], width: int, stage: str = "prose"
) -> float:
    """Mean loss over the held-out text: each source by its share of the stage."""
    shares = STAGES[stage]
    losses = held_out_losses(model, {name: streams[name] for name in shares}, width)
    return sum(share * losses[name] for name, share in shares.items())


def pretrain(
    work: Path, recipe: Recipe, cfg: GPTConfig | None = None, compiled: bool = False
) -> Iterator[PretrainStep]:
    """Train in `work`, which holds the encoded sources; goes on from a checkpoint that lies there.

    Yields every step; writes a checkpoint every 200 steps and at the end. `compiled` lets
    torch.compile fuse what it can: the same mathematics, faster, where there is a C++ compiler.
    Raises ValueError for a checkpoint of another recipe, or where the stage before is missing.
    """
    cfg = replace(cfg or MODELS["mini"].config, n_layers=recipe.n_layers)
    mixture = Mixture(load_file(work / "tokens.train.safetensors"), recipe)
    held_out = load_file(work / "tokens.held_out.safetensors")
    model = initialise(GPTModel(cfg), recipe.seed)
    model.out_head.weight = model.tok_emb.weight  # tied: half the parameters of a small model
    optimizers = _optimizers(model, recipe)
    start, log = _restore(work, model, optimizers, recipe)
    packing = Packing([recipe.width] * recipe.rows)

    def objective(rows: Tensor) -> Tensor:
        return language_loss(model, rows, packing)

    if compiled:
        objective = torch.compile(objective)
    for step in range(start, recipe.steps):
        for optimizer, rate in zip(optimizers, recipe.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.share_of_rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(mixture.rows(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        last, value, outside = step + 1 == recipe.steps, loss.item(), None
        if not math.isfinite(value):
            raise ArithmeticError(f"the loss is {value} at step {step}: lower the learning rate")
        if step % 200 == 0 or last:
            outside = held_out_loss(model, held_out, recipe.width, recipe.stage)
            log.append({"step": step, "loss": value, "held_out": outside})
            _keep(work, model, optimizers, recipe, step + 1, log)
        yield PretrainStep(step, recipe.steps, value, outside)


def _optimizers(model: GPTModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and vectors.

    Source: Jordan 2024, "Muon: An optimizer for hidden layers in neural networks"; the rate is
    scaled as in Liu et al. 2025, "Muon is Scalable for LLM Training", so that an entry of a matrix
    moves as far as AdamW would move it.
    """
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    hidden = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in hidden]
    muon, adamw = recipe.rates
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=muon,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=adamw, betas=(0.9, 0.95), fused=True),
    ]


# --- checkpoint ----------------------------------------------------------------------------------


def _keep(
    work: Path,
    model: GPTModel,
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
    log: list[dict],
) -> None:
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for place, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{place}.{k}": value for k, value in state.items()}
    about = json.dumps({"step": step, "recipe": asdict(recipe), "log": log})
    fresh = work / "checkpoint.new"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, fresh, {"about": about})
    fresh.replace(checkpoint_of(work, recipe.stage))


def checkpoint_of(work: Path, stage: str) -> Path:
    return work / f"checkpoint.{stage}.safetensors"


def stages_in(work: Path) -> list[str]:
    """The stages that have a checkpoint in `work`, in their order."""
    return [stage for stage in STAGES if checkpoint_of(work, stage).is_file()]


def read_checkpoint(work: Path, stage: str | None = None) -> tuple[dict[str, Tensor], dict]:
    """Tensors and facts (step, recipe, log) of a stage in `work`, of the last one if none is named.

    Raises FileNotFoundError where there is none.
    """
    stage = stage or next(reversed(stages_in(work)), next(iter(STAGES)))
    path = checkpoint_of(work, stage)
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {})["about"])
    return load_file(path), about


def _restore(
    work: Path, model: GPTModel, optimizers: list[torch.optim.Optimizer], recipe: Recipe
) -> tuple[int, list[dict]]:
    if recipe.stage not in stages_in(work):
        _start_from_the_stage_before(work, model, recipe.stage)
        return 0, []
    tensors, about = read_checkpoint(work, recipe.stage)
    kept = dict(about["recipe"])
    if kept | {"tokens": recipe.tokens} != asdict(recipe):
        raise ValueError(f"work: {work} holds a checkpoint of another recipe, {kept}")
    _fill(model, tensors)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, place, slot = name.split(".")
            states[int(number)].setdefault(int(place), {})[slot] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return about["step"], about["log"]


def _start_from_the_stage_before(work: Path, model: GPTModel, stage: str) -> None:
    """Fill `model` from the finished stage before; the first stage keeps its random start."""
    place = list(STAGES).index(stage)
    if place:
        before = list(STAGES)[place - 1]
        if before not in stages_in(work):
            raise ValueError(f"work: {work} must hold the stage {before} before {stage}")
        _fill(model, deepened(read_checkpoint(work, before)[0], model.cfg.n_layers))


def deepened(tensors: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The model in `tensors` with `n_layers` blocks; ValueError for fewer than it has.

    The new blocks stand evenly spread, each a copy of the one before it that adds nothing yet: what
    it writes to the shortcut is 0, so the deeper model computes what the shallower one did. Source:
    Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", for the copies;
    Bachlechner et al. 2021, "ReZero is All You Need", for the zeros.
    """
    block = re.compile(r"model\.trf_blocks\.(\d+)\.(.+)")
    found = [(name, match[1], match[2]) for name in tensors if (match := block.fullmatch(name))]
    before = 1 + max(int(number) for _, number, _ in found)
    if n_layers < before:
        raise ValueError(f"n_layers: must be at least {before}, what there is; got {n_layers}")
    grown = {name: value for name, value in tensors.items() if not block.fullmatch(name)}
    origins = [place * before // n_layers for place in range(n_layers)]
    for name, number, inner in found:
        copies = [place for place, origin in enumerate(origins) if origin == int(number)]
        for place in copies:
            silent = place != copies[0] and inner.startswith(("att.out_proj.", "ff.layers.2."))
            value = tensors[name]
            grown[f"model.trf_blocks.{place}.{inner}"] = value * 0 if silent else value
    return grown


def _fill(model: GPTModel, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
