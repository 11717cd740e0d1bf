"""What a training costs in memory and time, before it starts and after it ended.

Memory of weights, gradients and optimizer follows from the counts. Time is measured, not looked up:
see `machine`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_gpt.config import RunConfig
from lora_gpt.core.classify import BATCH_TOKENS
from lora_gpt.core.machine import BlockStep, choose_precision
from lora_gpt.core.optimizer_step import seconds_of_update
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


PROGRAM, COMPILED = 430 * MB, 250 * MB
"""What the process of a run takes besides: everything imported, with PyTorch's working
space; and what the library keeps of the products that it compiles for 16 bits."""
TRAINED, ASKED = 24, 28
"""Numbers for each feature and token: kept for the backward pass, in every block, and in use at
once while a batch of BATCH_TOKENS is evaluated. What one has freed serves the other by half. All
were measured over sizes, batches and methods; `benchmarks/plan.py` compares."""


@dataclass(frozen=True)
class Estimate:
    """What a run will roughly cost on this machine."""

    steps: int
    seconds: float
    """Of the training steps alone."""
    memory_mb: float
    """Most of its process, or of the allocator on CUDA, as `peak_memory_mb`."""
    precision: str


def estimate(config: RunConfig, lengths: Sequence[int], device: torch.device) -> Estimate:
    """The cost of training on messages of `lengths` tokens."""
    training, cfg = config.training, config.architecture
    steps = training.steps(len(lengths))
    step = BlockStep.of(config, lengths, device)
    precision = choose_precision(training.precision, step)
    root = tree(config.model, "classifier", config.lora, training.method, config.shape)
    in_blocks = step.seconds(precision) * cfg.n_layers
    of_a_step = in_blocks + seconds_of_update(root.trainable, device)
    held = memory_of(StageCount("classifier", root.trainable, root.parameters))
    blocks = 0 if training.method == "head" else cfg.n_layers  # the backward pass ends at the head
    less, more = sorted([TRAINED * step.tokens * blocks, ASKED * BATCH_TOKENS])
    memory = held.total + FLOAT * cfg.emb_dim * (more + less / 2)
    if device.type != "cuda":
        memory += PROGRAM
    if device.type == "cpu" and precision == "bfloat16":
        # The file stays mapped beside the weights that are laid out from it, once each way.
        memory += COMPILED + FLOAT * 12 * cfg.emb_dim**2 * cfg.n_layers
    return Estimate(steps, steps * of_a_step, memory / MB, precision)


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
