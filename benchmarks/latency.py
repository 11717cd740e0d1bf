"""How long people wait: for the first loss, for a verdict, for a thousand, for a redrawn tab.

    python benchmarks/latency.py --weights FOLDER

FOLDER holds GPT-2 124M (model.safetensors and config.json); without it, random weights are written
to a temporary folder first. Every number is the median of several tries, after one that warms up:

- start: from asking the service for a run to the first loss in its folder, with a warm worker;
- one message: a verdict of the classifier, all of the page's path but the drawing, at full strength
  (by a model that only answers) and at another (the adapter beside the base). The library compiles
  for each number of tokens once in a process; what a text takes that may have a new one is told
  too, without a try that warms up;
- thousand: tokens a second of classifying 1,000 bundled messages, and their share of the rate at
  which a training batch goes forward in the same round;
- tabs: what the Model and the Compare tab compute for GPT-2 XL when a knob moves.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lora_gpt  # noqa: F401, before torch: it says how threads wait

# isort: split
import torch
from safetensors.torch import save_file

from lora_gpt.config import MODELS, RunConfig
from lora_gpt.core import tokenizer
from lora_gpt.core.answering import for_answers
from lora_gpt.core.classify import Classifier, logits_of, pack
from lora_gpt.core.data import read_messages
from lora_gpt.core.lora import prepare
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.weights import load_base
from lora_gpt.events import Step
from lora_gpt.jobs import JobsError
from lora_gpt.service import Service
from lora_gpt.ui import compare_tab, model_tab


def once(work: Callable[[], object]) -> float:
    """Seconds of `work`."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median(work: Callable[[], object], tries: int) -> float:
    """Seconds of `work`, the first time left out."""
    return statistics.median([once(work) for _ in range(tries + 1)][1:])


def random_gpt2(folder: Path) -> Path:
    """Random weights of GPT-2's shape in a folder, under our names."""
    model = initialise(GPTModel(MODELS["gpt2"].config), 0)
    contents = {n: p.detach() for n, p in model.named_parameters() if n != "out_head.weight"}
    save_file(contents, folder / "model.safetensors", {"format": "pt"})
    return folder


def classifier_of(config: RunConfig) -> Classifier:
    """Untrained: it takes as long as a trained one. Its adapter stands beside the base."""
    loading = load_base(config)
    while True:
        try:
            next(loading)
        except StopIteration as end:
            base = end.value
            break
    model = prepare(base, "lora", config.lora, config.seed).eval()
    return Classifier(model, tokenizer.load(MODELS[config.model].encoding))


def to_first_loss(config: RunConfig, tries: int) -> float:
    """Seconds from asking for a run to its first step, the worker warm."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        spent = []
        try:
            for rank in range(4, 5 + tries):  # one knob is moved, and Start pressed again
                asked = config.changed(rank=rank, max_steps=1)
                service.plan(asked)  # the page shows it before Start is pressed
                begun = time.perf_counter()
                run_id = service.start(asked, "bench")
                while not any(isinstance(e, Step) for e in service.since(run_id).events):
                    time.sleep(0.005)
                spent.append(time.perf_counter() - begun)
                with suppress(JobsError):  # it may have come to its end by itself
                    service.stop(run_id, "bench")
                while service.find(run_id).status in ("queued", "running"):
                    time.sleep(0.05)
        finally:
            service.close()
    return statistics.median(spent[1:])


def one_message(
    trained: Classifier, answering: Classifier, texts: list[str], tries: int
) -> dict[str, float]:
    """Median seconds of a verdict of each kind, on four texts a try."""
    spent: dict[str, list[float]] = {}

    def note(kind: str, seconds: float) -> None:
        spent.setdefault(kind, []).append(seconds)

    answering.verdicts(texts[-1:])
    for text in texts[: 4 * tries]:
        note(
            "full strength, a length that may be new", once(lambda t=text: answering.verdicts([t]))
        )
    for text in texts[: 4 * tries]:  # in turn: the machine's speed changes from second to second
        note("full strength", median(lambda t=text: answering.verdicts([t]), 3))
        note("another strength", median(lambda t=text: trained.verdicts([t]), 3))
    return {kind: statistics.median(each) for kind, each in spent.items()}


def forward_rates(
    trained: Classifier, answering: Classifier, texts: list[str], rounds: int
) -> tuple[float, float]:
    """Tokens a second of classifying `texts`, and of the forward passes of training on them."""
    sequences = trained.encode(texts)
    tokens = sum(map(len, sequences))
    model, rates = trained.model, []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        logits_of(answering.model, sequences)
        many = tokens / (time.perf_counter() - begun)
        model.train()
        begun = time.perf_counter()
        for start in range(0, len(sequences), 8):
            batch = sequences[start : start + 8]
            model.last_logits(*pack(batch, torch.device("cpu"), model.multiple))
        rates.append((many, tokens / (time.perf_counter() - begun)))
        model.eval()
    return tuple(map(statistics.median, zip(*rates[1:], strict=True)))  # type: ignore[return-value]


def main() -> None:
    """Measure everything and print it, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a folder with GPT-2 124M")
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch")
    found: dict[str, float] = {}

    def tell(name: str, value: float, unit: str) -> None:
        found[name] = value
        print(f"{name}: {value:.3g} {unit}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or str(random_gpt2(Path(folder)))
        runs = {
            "mini": RunConfig(),
            "gpt2": RunConfig().changed(model="gpt2", weights=weights, device="cpu"),
        }
        texts = [message.text for message in read_messages(RunConfig().data)][:1000]
        for name, config in runs.items():
            tell(f"{name}: start to first loss", to_first_loss(config, options.tries), "s")
            classifier = classifier_of(config)
            answering = Classifier(for_answers(classifier.model), classifier.encoding)
            for what, spent in one_message(classifier, answering, texts, options.tries).items():
                tell(f"{name}: one message, {what}", 1000 * spent, "ms")
            rounds = 1 if name == "gpt2" else 3
            many, training = forward_rates(classifier, answering, texts, rounds)
            tell(f"{name}: 1,000 messages", many, "tokens/s")
            tell(f"{name}: share of the training forward's rate", many / training, "")
    service = Service(Path(tempfile.gettempdir()) / "lora_gpt-latency")
    xl = RunConfig().changed(model="gpt2-xl")

    def model() -> object:
        return model_tab.stage_of(service, "gpt2-xl", xl.lora, True, model_tab.FIRST)

    def compare() -> object:
        return compare_tab.costs_of(service, xl)

    tell("Model tab, XL", 1000 * median(model, 9), "ms")
    tell("Compare tab, XL", 1000 * median(compare, 9), "ms")
    service.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
