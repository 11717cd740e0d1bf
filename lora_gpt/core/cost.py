"""What a training costs in memory and time, before it starts and after it ended.

Memory of weights, gradients and optimizer follows from the counts. Time is measured, not looked up:
one block of the chosen model does a forward and a backward pass here and now.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from lora_gpt.config import GPTConfig, LoRAConfig, RunConfig
from lora_gpt.core.lora import mark_trainable, replace_linear_with_lora
from lora_gpt.core.model import GPTModel, Packing
from lora_gpt.core.structure import StageCount, tree

MB = 1024 * 1024
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds for as long as it lasts; what a batch needs comes on top."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def memory_of(count: StageCount) -> Memory:
    """Single precision; AdamW keeps two numbers for every trained parameter."""
    return Memory(FLOAT * count.total, FLOAT * count.trainable, 2 * FLOAT * count.trainable)


@dataclass(frozen=True)
class Estimate:
    """What a run will roughly cost on this machine."""

    steps: int
    tokens_per_step: float
    seconds: float
    memory_mb: float


def estimate(config: RunConfig, lengths: Sequence[int], device: torch.device) -> Estimate:
    """The cost of training on messages of `lengths` tokens; loading and evaluation are left out."""
    training, cfg = config.training, config.architecture
    steps = len(lengths) // training.batch_size * training.epochs
    steps = min(steps, training.max_steps) if training.max_steps else steps
    tokens = training.batch_size * sum(lengths) / max(1, len(lengths))
    asked = (cfg, config.lora, training.method, max(1, round(tokens)), training.batch_size, device)
    of_a_step = _of_this_minute(int(time.monotonic() / 60), asked)
    root = tree(config.model, "classifier", config.lora, training.method)
    held = memory_of(StageCount("classifier", root.trainable, root.parameters))
    # Kept for the backward pass, measured over the sizes: about 24 numbers a feature, token, block.
    passing = 24 * FLOAT * cfg.emb_dim * tokens * cfg.n_layers
    return Estimate(
        steps=steps,
        tokens_per_step=tokens,
        seconds=steps * of_a_step * cfg.n_layers,
        memory_mb=(held.total + passing) / MB,
    )


@lru_cache(maxsize=64)
def _of_this_minute(minute: int, asked: tuple) -> float:
    """`block_seconds`, asked again after a minute: other work on the machine comes and goes."""
    return block_seconds(*asked)


def block_seconds(
    cfg: GPTConfig, lora: LoRAConfig, method: str, tokens: int, batch: int, device: torch.device
) -> float:
    """Seconds that one block takes for one step on `tokens` tokens, the best of three tries."""
    with torch.device(device):
        model = GPTModel(replace(cfg, n_layers=1, vocab_size=1))
        if method == "lora":
            replace_linear_with_lora(
                model, min(lora.rank, cfg.emb_dim), lora.alpha, lora.targets, lora.dropout
            )
    mark_trainable(model, method)
    width = max(1, min(cfg.context_length, round(tokens / batch)))
    packing = Packing([width] * batch, device)
    best = float("inf")
    for _ in range(3):
        x = torch.randn(packing.rows, cfg.emb_dim, device=device, requires_grad=True)
        begun = time.perf_counter()
        model.trf_blocks[0](x, packing).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best


# --- what it did take ----------------------------------------------------------------------------


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system allows it: a warm worker runs many trainings."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # refused in some containers; the peak is then that of the process
            return


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak since the reset, in MiB: of the allocator on CUDA, resident of the process elsewhere.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MB
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
    return None
