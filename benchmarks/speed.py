"""An epoch of GPT-2 124M beside `transformers` + `peft`: time in alternating rounds, and memory.

    python benchmarks/speed.py --rounds 5
    python benchmarks/speed.py --rounds 5 --batches 149 --device cuda --contestants ours-16 \
        grouped-16 dynamic-16 labs-16 ours grouped dynamic

Random weights, rank 8, alpha 16, all linear layers, batches of 8, the labs' split of the SMS Spam
Collection (seed 42). In every round each contestant takes some batches of its epoch, spread evenly
over their lengths; what they took, divided by their real tokens and times the real tokens of the
epoch, is the time of an epoch. Medians are over rounds, ratios over pairs of one round. Memory is
the peak of a process of its own above that of an interpreter with torch imported; on a GPU neither
it nor the share of the rate of products is looked at. What `ours` does there before its first step
(recording) is told on a line of its own.

Contestants: `ours` (random batches, packed rows) and peft with batches of like length (`grouped`,
which makes batches of one class), random batches padded to their longest (`dynamic`), and every
message padded to the longest of all, as the labs do (`labs`). Frozen weights are float32; `-16` at
the end of a name keeps them, and multiplies, in bfloat16.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lora_gpt  # noqa: F401, before torch: it says how threads wait

# isort: split
import torch

from lora_gpt.config import RunConfig, preset
from lora_gpt.core import tokenizer
from lora_gpt.core.classify import Classifier
from lora_gpt.core.cost import peak_memory_mb
from lora_gpt.core.data import read_messages
from lora_gpt.core.lora import prepare
from lora_gpt.core.machine import compute_in, keep_freed_memory
from lora_gpt.core.model import GPTModel
from lora_gpt.core.split import split
from lora_gpt.core.training import Part, Trainer
from lora_gpt.core.weights import load_base

CONTESTANTS = ("ours", "ours-16", "grouped", "grouped-16", "dynamic", "labs")
ALL = (*CONTESTANTS, "dynamic-16", "labs-16")
BATCH = 8
Run = Callable[[int], tuple[float, int]]
"""Some batches -> seconds that they took and real tokens in them."""


def finished(generator):
    """The value that a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def lab_messages(config: RunConfig):
    """The training part of the labs' split."""
    return split(read_messages(config.data), config.data, config.seed).train


# --- ours ----------------------------------------------------------------------------------------


def ours(config: RunConfig) -> Run:
    """Our own trainer, on the batches of the first epoch."""
    model: GPTModel = finished(load_base(config))
    keep_freed_memory()
    device = torch.device(config.training.device)
    model = prepare(model, "lora", config.lora, config.seed).to(device)
    compute_in(model, config.training.precision)
    classifier = Classifier(model, tokenizer.load("gpt2"))
    trainer = Trainer(model, config, Part.of(lab_messages(config), classifier))
    begun = time.perf_counter()
    if shapes := sum(1 for _ in trainer.record()):
        spent = time.perf_counter() - begun
        print(f"ours, {config.training.precision}: {shapes - 1} shapes recorded in {spent:.1f} s")
    order = by_length([sum(len(trainer.train.sequences[p]) for p in b) for b in epoch(trainer)])

    def run(count: int) -> tuple[float, int]:
        seconds, tokens = 0.0, 0
        for place in evenly(order, count):
            trainer.step = place
            before = time.perf_counter()
            step = trainer.advance(time.perf_counter)
            seconds += time.perf_counter() - before
            tokens += step.tokens
        return seconds, tokens

    return run


def epoch(trainer: Trainer) -> list[list[int]]:
    """The batches of the first epoch."""
    found = []
    for step in range(trainer.per_epoch):
        trainer.step = step
        found.append(trainer.batch())
    return found


# --- theirs --------------------------------------------------------------------------------------


def theirs(config: RunConfig, kind: str) -> Run:
    """`transformers` + `peft` with AdamW, clipped at the same norm."""
    import transformers
    from peft import LoraConfig, TaskType, get_peft_model

    transformers.logging.set_verbosity_error()
    sequences, labels = sequences_of(config)
    torch.manual_seed(config.seed)
    base = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            num_labels=2, pad_token_id=50256, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, lora)
    if config.training.precision == "bfloat16":
        for parameter in model.parameters():  # as ours: what is frozen, in half the bytes
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    device, halved = config.training.device, config.training.precision == "bfloat16"
    model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    places = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0)).tolist()
    if kind == "grouped":
        places.sort(key=lambda place: len(sequences[place]))
    usable = len(places) // BATCH * BATCH
    batches = [places[i : i + BATCH] for i in range(0, usable, BATCH)]
    longest = max(map(len, sequences))
    order = by_length([sum(len(sequences[p]) for p in batch) for batch in batches])

    def step(batch: list[int]) -> None:
        rows = [sequences[place] for place in batch]
        width = longest if kind == "labs" else max(map(len, rows))
        tokens = torch.tensor([row + [50256] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        inputs = {"input_ids": tokens, "attention_mask": mask, "labels": labels[batch]}
        with torch.autocast(device, torch.bfloat16, enabled=halved):
            out = model(**{name: each.to(device) for name, each in inputs.items()})
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        out.loss.item()

    def run(count: int) -> tuple[float, int]:
        seconds, tokens = 0.0, 0
        for place in evenly(order, count):
            before = time.perf_counter()
            step(batches[place])
            seconds += time.perf_counter() - before
            tokens += sum(len(sequences[p]) for p in batches[place])
        return seconds, tokens

    return run


def sequences_of(config: RunConfig) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens and labels of the training part."""
    encoding, messages = tokenizer.load("gpt2"), lab_messages(config)
    sequences = [tokenizer.encode(encoding, message.text, 1024) for message in messages]
    return sequences, torch.tensor([int(message.is_spam) for message in messages])


# --- measuring -----------------------------------------------------------------------------------


def by_length(lengths: list[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def evenly(order: list[int], count: int) -> list[int]:
    """`count` places of `order`, from the middle of equal stretches of it."""
    return [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]


def product_rate(rows: int, precision: str) -> float:
    """Operations a second of the matrix products of a block on `rows` rows, the best of 9."""
    dtype = getattr(torch, precision)
    x, wide = torch.randn(rows, 768, dtype=dtype), torch.randn(rows, 3072, dtype=dtype)
    square, rise = torch.randn(768, 768, dtype=dtype), torch.randn(3072, 768, dtype=dtype)
    best = float("inf")
    for _ in range(9):
        begun = time.perf_counter()
        for _ in range(4):
            x @ square.T
        x @ rise.T
        wide @ rise
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * 768 * 768 * 12 / best


def needed(tokens: int, messages: int) -> float:
    """Operations of a step that nothing can spare: the frozen products forward and their input
    gradients, the last block beyond key and value for the last tokens alone, none below the
    first LoRA."""
    square = 2 * 768 * 768
    full = 11 * 12 * square * tokens + 2 * square * tokens + 10 * square * messages
    return 2 * full - 3 * square * tokens


def configured(name: str, device: str = "cpu") -> RunConfig:
    """The run of a contestant."""
    precision = "bfloat16" if name.endswith("-16") else "float32"
    return preset("lab").changed(
        model="gpt2", init="random", data="sms-spam", precision=precision, device=device
    )


def contestant(name: str, device: str = "cpu") -> Run:
    config, kind = configured(name, device), name.removesuffix("-16")
    return ours(config) if kind == "ours" else theirs(config, kind)


def main() -> None:
    """Measure, or with --memory-of be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=15, help="of each contestant in a round")
    parser.add_argument("--contestants", choices=ALL, nargs="*", default=[*CONTESTANTS])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory-of", choices=(*ALL, "nothing"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        if options.memory_of != "nothing":
            contestant(options.memory_of)(options.batches)
        print(peak_memory_mb(torch.device("cpu")))
        return
    sequences, _ = sequences_of(configured("ours"))
    total = sum(map(len, sequences)) * (len(sequences) // BATCH * BATCH) // len(sequences)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    if options.device == "cuda":
        print(torch.cuda.get_device_name())
    print(f"torch {torch.__version__}; {len(sequences)} messages, {total} tokens an epoch")
    runs = {name: contestant(name, options.device) for name in options.contestants}
    on_cpu = options.device == "cpu"

    def batches_of(name: str) -> int:
        return max(3, options.batches // 5) if name == "labs" and on_cpu else options.batches

    for name, run in runs.items():
        run(batches_of(name))  # warm: kernels for every shape are compiled
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    shares: dict[str, list[float]] = {name: [] for name in runs if name.startswith("ours")}
    for number in range(options.rounds):
        for name, run in runs.items():
            spent, tokens = run(batches_of(name))
            seconds[name].append(spent / tokens * total)
            if name in shares and on_cpu:
                precision = configured(name).training.precision
                rate = product_rate(total * BATCH // len(sequences), precision)
                floor = needed(total, len(sequences) // BATCH * BATCH) / rate
                shares[name].append(floor / seconds[name][-1])
        told = ", ".join(f"{name} {spent[-1]:.3g} s" for name, spent in seconds.items())
        print(f"round {number + 1}: {told}", flush=True)
    report(seconds, shares, on_cpu)


def memory(name: str) -> float:
    """Peak of a process that takes one round of `name`, MiB above one that only imports torch."""
    command = [sys.executable, __file__, "--batches", "15", "--memory-of"]
    peaks = [
        float(subprocess.check_output([*command, each], text=True).split()[-1])
        for each in (name, "nothing")
    ]
    return peaks[0] - peaks[1]


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times longer, the median over rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def report(seconds: dict[str, list[float]], shares: dict[str, list[float]], on_cpu: bool) -> None:
    """The table of the README and one line of JSON."""
    found = []
    heads = "".join(f" times {name} |" for name in shares)
    print(f"| | an epoch |{heads} memory |\n| --- | ---: |{' ---: |' * len(shares)} ---: |")
    for name, spent in seconds.items():
        ratios = [ratio(spent, seconds[own]) for own in shares]
        peak = memory(name) if on_cpu else None
        told = "".join(f" {each:.2f} |" for each in ratios)
        told += f" {peak:.0f} MB |" if peak is not None else " |"
        print(f"| {name} | {statistics.median(spent):.3g} s |{told}", flush=True)
        found.append({"name": name, "seconds": spent, "ratios": ratios, "memory_mb": peak})
    for name, share in shares.items() if on_cpu else ():
        print(f"{name}: {statistics.median(share):.0%} of the rate of products")
    print(json.dumps({"contestants": found, "shares": shares}))


if __name__ == "__main__":
    main()
