"""What this machine does best: the device, the precision of matrix products, how memory is kept.

Time and precision are measured, not looked up: a block of the chosen model does its part of a
training step here and now. Knows nothing of weights, messages or the course of a run.
"""

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import nn

from lora_gpt.config import BadValue, GPTConfig, LoRAConfig, RunConfig
from lora_gpt.core.lora import (
    SideBySide,
    lay_side_by_side,
    lora_layers,
    mark_trainable,
    replace_linear_with_lora,
)
from lora_gpt.core.model import GPTModel
from lora_gpt.core.packed_weight import PackedWeight
from lora_gpt.core.packing import Packing
from lora_gpt.core.recording import recorded_or_plain

ROWS = 32
"""Tokens in bfloat16 on a CPU come in multiples of this: the library compiles a kernel for each new
shape, which takes longer than the product itself."""
WORTH_IT = 1.25
"""How many times faster bfloat16 must be to be chosen: a smaller gain is not worth its rounding."""
LARGE = 20_000_000
"""Parameters in the blocks from which on the choice is made at all. A smaller model trains in
seconds and keeps float32, the same on every machine."""


def choose_device(name: str) -> torch.device:
    """'auto' -> the fastest device here. Raises BadValue for one that this machine lacks."""
    here = {"cpu": True, "mps": torch.backends.mps.is_available()}
    here["cuda"] = torch.cuda.is_available()
    if name == "auto":
        return torch.device(next(each for each in ("cuda", "mps", "cpu") if here[each]))
    if not here.get(name):
        found = ", ".join(each for each, is_here in here.items() if is_here)
        raise BadValue("device", f"must be one that this machine has ({found})", name)
    return torch.device(name)


MOST_ROWS = 2048
"""Most tokens that a block is timed on, if one message has no more: a batch of gigabytes must not
be laid out for an estimate, and from here on time grows with the tokens."""


@dataclass(frozen=True)
class BlockStep:
    """What one block does in one step of a training: enough to time it, without the model."""

    cfg: GPTConfig
    lora: LoRAConfig
    method: str
    tokens: int
    batch: int
    device: torch.device

    @classmethod
    def of(cls, config: RunConfig, lengths: Sequence[int], device: torch.device) -> "BlockStep":
        """That of `config` on an average batch of messages of `lengths` tokens."""
        training, cfg = config.training, config.architecture
        tokens = max(1, round(training.batch_size * sum(lengths) / max(1, len(lengths))))
        return cls(cfg, config.lora, training.method, tokens, training.batch_size, device)

    def seconds(self, precision: str) -> float:
        """Seconds that it takes here and now, the best of some tries: forward, and back too unless
        the head alone is trained.

        Asked again after a minute only: other work on the machine comes and goes. Raises BadValue
        where the memory does not suffice.
        """
        return _seconds_in_this_minute(int(time.monotonic() / 60), self, precision)


@lru_cache(maxsize=64)
def _seconds_in_this_minute(minute: int, step: BlockStep, precision: str) -> float:
    width = max(1, min(step.cfg.context_length, round(step.tokens / step.batch)))
    sequences = min(step.batch, max(1, MOST_ROWS // width))
    try:
        return step.batch / sequences * _seconds_of_a_block(step, precision, [width] * sequences)
    except RuntimeError as error:
        # torch's own kinds differ by device, so they are known by their words.
        if "memory" not in str(error) or "alloc" not in str(error):
            raise
        rule = "must be small enough for the memory of this machine"
        raise BadValue("batch_size", rule, step.batch) from error


def _seconds_of_a_block(step: BlockStep, precision: str, lengths: list[int]) -> float:
    """Seconds for sequences of `lengths` tokens, forward, and back where a block is trained."""
    cfg, lora, device = step.cfg, step.lora, step.device
    with torch.device(device):
        model = GPTModel(replace(cfg, n_layers=1, vocab_size=1))
        if step.method == "lora":
            rank = min(lora.rank, cfg.emb_dim)
            replace_linear_with_lora(model, rank, lora.alpha, lora.targets, lora.dropout)
    mark_trainable(model, step.method)
    compute_in(model, precision)
    packing = Packing(lengths, device, model.multiple)

    trains_blocks = step.method != "head"
    x = torch.randn(packing.rows, cfg.emb_dim, device=device, requires_grad=trains_blocks)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=model.half_precision):
            y = model.trf_blocks[0](x, packing)
        if trains_blocks:
            y.sum().backward()

    # As training does it there.
    play = recorded_or_plain(work) if device.type == "cuda" else work

    def once() -> float:
        begun = time.perf_counter()
        play()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return min(once() for _ in range(6))  # the first ones warm up


def choose_precision(name: str, step: BlockStep) -> str:
    """'auto' -> 'float32' or 'bfloat16', by which of them takes this machine less time for the
    model of `step`, whatever its knobs."""
    if name != "auto":
        return name
    if step.device.type != "cpu":
        on_cuda = step.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return "bfloat16" if on_cuda else "float32"
    if 12 * step.cfg.emb_dim**2 * step.cfg.n_layers < LARGE:
        return "float32"
    return _choice_of_this_process(step.cfg, step.device)


@cache
def _choice_of_this_process(cfg: GPTConfig, device: torch.device) -> str:
    step = BlockStep(cfg, LoRAConfig(), "lora", 256, 8, device)
    gain = step.seconds("float32") / step.seconds("bfloat16")
    return "bfloat16" if gain >= WORTH_IT else "float32"


def compute_in(model: GPTModel, precision: str) -> GPTModel:
    """Let the blocks of `model` multiply in `precision`, in place, and return it.

    In bfloat16 the frozen linear layers are kept in it: half the bytes to read, and nothing to
    convert in a step. What is trained, the shortcuts, LayerNorms and the head stay float32.
    """
    on_cpu = model.tok_emb.weight.device.type == "cpu"
    model.half_precision = precision == "bfloat16"
    if model.half_precision:
        model.multiple = ROWS if on_cpu else 1
        for module in model.trf_blocks.modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
                module.weight.data = module.weight.data.contiguous()  # a file may lie across
    lay_side_by_side(model)
    if model.half_precision and on_cpu and PackedWeight.works_here(torch.bfloat16):
        for block in model.trf_blocks:
            together = block.get_submodule("att").side_by_side
            alone = {layer for _, layer in lora_layers(block)}
            if isinstance(together, SideBySide):
                together.keep_packed()
                alone -= set(together.layers)
            for layer in alone:
                layer.keep_packed()
    return model


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step, where it is glibc.

    By default it gives large blocks back to the system at once and gets them again, zeroed page by
    page, thousands of times a step. What is free now, of an earlier and maybe larger training, goes
    back.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    mallopt(mmap_threshold, largest)
    mallopt(trim_threshold, largest)
    malloc_trim(0)
