"""Step 3: next-token training of the bundled model, resumable, with a held-out loss.

Every step is a function of (seed, step) alone, so a run that was stopped and resumed sees what one
that was never stopped would have seen. The learning rate warms up and stays; it falls over the last
stage alone, whose text is nearest to what the model is for (Hu et al. 2024, "MiniCPM", section 4).
A stage starts from the weights of the one before and keeps a checkpoint of its own.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lora_gpt.config import MODELS, GPTConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packing import Packing
from lora_gpt.core.pretrain.corpus import SOURCES, STAGES, read_documents
from lora_gpt.core.recording import recorded_or_plain, undone

DRAWING = 4
"""Processes that draw rows for a GPU."""
EVERY = 500
"""Steps from one checkpoint, with a look at the held-out text, to the next."""


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside the text."""

    tokens: int
    stage: str = "prose"
    rows: int = 96
    width: int = 256
    learning_rate: float = 3e-3
    matrix_rate: float = 6e-3
    """Learning rate of Muon, which trains the blocks' matrices; AdamW trains everything else."""
    warmup_steps: int = 200
    fall: float = 0.0
    """Share of the steps, at the end, over which the rates fall to 0."""
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
    "prose": {},
    "messages": {"fall": 1.0, "seed": 1},
}
"""What each stage sets in its recipe."""


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


class Mixture(Dataset):
    """Rows of tokens by step, drawn from the sources by their shares; the same step draws the same.

    A row begins where a line or a document does, as everything does that the model will classify:
    its first positions never learn to read the middle of a sentence.
    """

    def __init__(self, streams: dict[str, Tensor], recipe: Recipe):
        shares = STAGES[recipe.stage]
        self.streams = [streams[name] for name in shares]
        self.begins = [line_begins(stream, recipe.width + 1) for stream in self.streams]
        self.shares = torch.tensor([*shares.values()])
        self.recipe = recipe

    def __getitem__(self, step: int) -> Tensor:
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

    def rows_from(self, start: int, device: torch.device) -> Iterable[Tensor]:
        """The rows of every step from `start` on. Other processes draw ahead for a GPU, which would
        wait otherwise; on a CPU they would take its time."""
        on_gpu = device.type == "cuda"
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.recipe.steps),
            num_workers=DRAWING if on_gpu else 0,
            pin_memory=on_gpu,
        )


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
    packing = packing or Packing([tokens.shape[1]] * len(tokens), rows.device)
    logits = F.linear(model.hidden_states(tokens.flatten(), packing), model.tok_emb.weight)
    return F.cross_entropy(logits.float(), following.flatten())


def held_out_losses(model: GPTModel, streams: dict[str, Tensor], width: int) -> dict[str, float]:
    """Mean loss over the held-out text of each source, at most 16 rows of it, evenly spread."""
    found, device = {}, model.tok_emb.weight.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for name, stream in streams.items():
            span = min(width + 1, len(stream))
            begins = line_begins(stream, span)
            spread = torch.linspace(0, len(begins) - 1, min(16, len(begins))).long()
            rows = torch.stack([stream[i : i + span] for i in begins[spread].tolist()]).long()
            found[name] = language_loss(model, rows.to(device)).item()
    return found


def held_out_loss(
    model: GPTModel, streams: dict[str, Tensor], width: int, stage: str = "prose"
) -> float:
    """Mean loss over the held-out text: each source by its share of the stage."""
    shares = STAGES[stage]
    losses = held_out_losses(model, {name: streams[name] for name in shares}, width)
    return sum(share * losses[name] for name, share in shares.items())


def pretrain(
    work: Path,
    recipe: Recipe,
    cfg: GPTConfig | None = None,
    compiled: bool = False,
    device: str = "cpu",
) -> Iterator[PretrainStep]:
    """Train in `work`, which holds the encoded sources; goes on from a checkpoint that lies there.

    Yields every step; writes a checkpoint every `EVERY` steps and at the end. `compiled` lets
    torch.compile fuse what it can: the same mathematics, faster, where there is a compiler.
    Raises ValueError for a checkpoint of another recipe, or where the stage before is missing.
    """
    mixture = Mixture(load_file(work / "tokens.train.safetensors"), recipe)
    held_out = load_file(work / "tokens.held_out.safetensors")
    place = torch.device(device)
    model = initialise(GPTModel(cfg or MODELS["mini"].config), recipe.seed).to(place)
    model.out_head.weight = model.tok_emb.weight  # tied: half the parameters of a small model
    optimizers = _optimizers(model, recipe)
    start, log = _restore(work, model, optimizers, recipe)
    packing = Packing([recipe.width] * recipe.rows, place)
    trained = list(model.parameters())
    # What changes from step to step stands here, so that a GPU can play one recording of a step.
    read = torch.zeros(recipe.rows, recipe.width + 1, dtype=torch.long, device=place)
    share = torch.zeros((), device=place)

    def objective(rows: Tensor) -> Tensor:
        return language_loss(model, rows, packing)

    if compiled:
        objective = torch.compile(objective)

    def advance() -> Tensor:
        with torch.autocast(place.type, torch.bfloat16):
            loss = objective(read)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        before = [parameter.detach().clone() for parameter in trained]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Both move in proportion to their rates, so a share of the rate is that share of the way.
        with torch.no_grad():
            for parameter, begun in zip(trained, before, strict=True):
                parameter.copy_(begun.lerp(parameter, share))
        return loss.detach()

    if place.type == "cuda":
        with undone(trained, optimizers):
            advance = recorded_or_plain(advance)
    for step, rows in enumerate(mixture.rows_from(start, place), start):
        read.copy_(rows, non_blocking=True)
        share.fill_(recipe.share_of_rate(step))
        loss = advance()
        last, value, outside = step + 1 == recipe.steps, loss.item(), None
        if not math.isfinite(value):
            raise ArithmeticError(f"the loss is {value} at step {step}: lower the learning rate")
        if step % EVERY == 0 or last:
            outside = held_out_loss(model, held_out, recipe.width, recipe.stage)
            log.append({"step": step, "loss": value, "held_out": outside})
            _keep(work, model, optimizers, recipe, step + 1, log, place.type)
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
        torch.optim.AdamW(
            groups,
            lr=adamw,
            betas=(0.9, 0.95),
            fused=True,
            capturable=model.tok_emb.weight.device.type == "cuda",
        ),
    ]


# --- checkpoint ----------------------------------------------------------------------------------


def _keep(
    work: Path,
    model: GPTModel,
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
    log: list[dict],
    device: str,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for place, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{place}.{k}": value for k, value in state.items()}
    facts = {"step": step, "device": device, "recipe": asdict(recipe), "log": log}
    about = json.dumps(facts)
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
        _fill(model, read_checkpoint(work, before)[0])


def _fill(model: GPTModel, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
