"""`train`: one run as a generator of plain events.

Knows nothing of threads, files, pages or stopping: whoever consumes the events decides. Everything
random is a function of the seed and the step, never of what happened before, so a run that goes on
from a checkpoint sees what one that was never stopped sees.
"""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from lora_gpt.config import MODELS, BadValue, DataConfig, RunConfig, TrainingConfig
from lora_gpt.core import tensor_file, tokenizer
from lora_gpt.core.adapter import adapter_files
from lora_gpt.core.baseline import linear_baseline
from lora_gpt.core.classify import Classifier, logits_in_parts, logits_of
from lora_gpt.core.cost import peak_memory_mb, reset_peak_memory
from lora_gpt.core.data import Message, read_messages
from lora_gpt.core.evaluation import Metrics, measure
from lora_gpt.core.lora import prepare
from lora_gpt.core.machine import (
    BlockStep,
    choose_device,
    choose_precision,
    compute_in,
    keep_freed_memory,
)
from lora_gpt.core.model import GPTModel
from lora_gpt.core.optimizer_step import PackedStep, RecordedStep
from lora_gpt.core.split import Split, split
from lora_gpt.core.weights import load_base
from lora_gpt.events import (
    Adapter,
    Checkpoint,
    Event,
    Finished,
    Progress,
    Started,
    Step,
    Validation,
)


def rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate of `step`: a linear rise over the warm-up, then the schedule."""
    peak, warmup = training.effective_learning_rate, round(training.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.schedule == "constant":
        return peak
    done = torch.tensor((step - warmup) / max(1, steps - warmup))
    if training.schedule == "linear":
        return peak * float(1 - done)
    return peak * float((1 + torch.cos(torch.pi * done)) / 2)


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch (from 0) goes through `size` messages."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=generator).tolist()


@dataclass(frozen=True)
class Part:
    """Messages with their tokens and their labels (1 for spam)."""

    messages: Sequence[Message]
    sequences: list[list[int]]
    labels: Tensor

    @classmethod
    def of(cls, messages: Sequence[Message], classifier: Classifier) -> "Part":
        labels = torch.tensor([int(message.is_spam) for message in messages])
        return cls(messages, classifier.encode([m.text for m in messages]), labels)

    def __len__(self) -> int:
        return len(self.messages)

    def digest(self) -> str:
        """A fingerprint of the messages and their labels, in their order."""
        told = json.dumps([(message.text, message.is_spam) for message in self.messages])
        return hashlib.sha256(told.encode()).hexdigest()

    def look(self, model: GPTModel) -> tuple[float, float]:
        """Mean loss and accuracy of `model` on this part."""
        logits = logits_of(model, self.sequences)
        loss = F.cross_entropy(logits, self.labels).item()
        return loss, (logits.argmax(-1) == self.labels).float().mean().item()

    def measured(
        self, model: GPTModel, stage: str, clock: Callable[[], float]
    ) -> Generator[Progress, None, Metrics]:
        """Everything about `model` on this part; yields Progress under `stage`, in tokens."""
        total, begun = sum(map(len, self.sequences)), clock()
        yield Progress(stage, 0, total)
        going = logits_in_parts(model, self.sequences)
        while True:
            try:
                done = next(going)
            except StopIteration as end:
                logits = end.value
                break
            yield Progress(stage, done, total, (clock() - begun) / done * (total - done))
        loss = F.cross_entropy(logits, self.labels).item()
        return measure(self.messages, F.softmax(logits, -1)[:, 1].tolist(), loss)


class Trainer:
    """The state of a run: model, optimizer, and what the running numbers need."""

    def __init__(self, model: GPTModel, config: RunConfig, train: Part):
        self.model, self.config, self.train = model, config, train
        self.device = model.tok_emb.weight.device
        training = config.training
        self.per_epoch = training.steps_per_epoch(len(train))
        self.steps = training.steps(len(train))
        parts = (model, train.sequences, train.labels, training.clip, training.weight_decay)
        if self.device.type == "cuda":
            self._one: PackedStep = RecordedStep(*parts, batch_size=training.batch_size)
        else:
            self._one = PackedStep(*parts)
        self.trained, self.optimizer = self._one.trained, self._one.optimizer
        self.step, self.seconds, self.right, self.seen = 0, 0.0, 0, 0
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=10)
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self) -> list[int]:
        """Places in the training part of the messages of this step."""
        size, batch = self.config.training.batch_size, self.step % self.per_epoch
        return self._order_of(self.step)[batch * size : (batch + 1) * size]

    def _order_of(self, step: int) -> list[int]:
        epoch = step // self.per_epoch
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.train), self.config.seed, epoch))
        return self._order[1]

    def record(self) -> Iterator[Progress]:
        """On a GPU, record what the batches of this epoch need; nothing to do elsewhere."""
        if isinstance(self._one, RecordedStep):
            self.model.train()
            size, order = self.config.training.batch_size, self._order_of(self.step)
            batches = (order[at : at + size] for at in range(0, self.per_epoch * size, size))
            for done, total in self._one.prepare(batches):
                yield Progress("recording the steps on the GPU", done, total)

    @property
    def recorded(self) -> bool:
        """Whether steps are played from recordings."""
        return isinstance(self._one, RecordedStep) and not self._one.refused

    def advance(self, clock: Callable[[], float]) -> Step:
        """One step of the optimizer."""
        begun = clock()
        epoch, batch = divmod(self.step, self.per_epoch)
        if batch == 0:
            self.right = self.seen = 0
        places, training = self.batch(), self.config.training
        self.model.train()
        now_rate = rate(training, self.step, self.steps)
        outcome = self._one(places, now_rate, self.config.seed * 1_000_003 + self.step)
        if not math.isfinite(outcome.loss) or not math.isfinite(outcome.gradient_norm):
            raise ArithmeticError(
                f"learning_rate: the loss became {outcome.loss} and its gradient"
                f" {outcome.gradient_norm} at step {self.step}; a rate below"
                f" {training.effective_learning_rate:g} keeps them finite"
            )
        count = sum(len(self.train.sequences[place]) for place in places)
        self.right += outcome.right
        self.seen += len(places)
        self.step += 1
        spent = clock() - begun
        self.seconds += spent
        self._recent.append((spent, count, len(places)))
        recent = sum(seconds for seconds, _, _ in self._recent) or 1e-9
        return Step(
            step=self.step - 1,
            epoch=epoch + 1,
            batch=batch + 1,
            loss=outcome.loss,
            accuracy=self.right / self.seen,
            learning_rate=now_rate,
            gradient_norm=outcome.gradient_norm,
            tokens=count,
            messages=len(places),
            seconds=self.seconds,
            tokens_per_second=sum(n for _, n, _ in self._recent) / recent,
            messages_per_second=sum(n for _, _, n in self._recent) / recent,
            seconds_left=recent / len(self._recent) * (self.steps - self.step),
        )

    def values(self) -> list[Tensor]:
        """A copy of what is trained, as it is now."""
        return [parameter.detach().clone() for parameter in self.trained]

    @contextmanager
    def at(self, values: list[Tensor]) -> Iterator[None]:
        """Put earlier `values` in place for a while."""
        now = [parameter.data for parameter in self.trained]
        for parameter, value in zip(self.trained, values, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self.trained, now, strict=True):
                parameter.data = value

    # --- checkpoint ------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        tensors = {f"model.{name}": p.detach() for name, p in self._named().items()}
        for place, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{place}.{slot}": value for slot, value in state.items()}
        numbers: dict[str, float | str] = {"step": self.step, "seconds": self.seconds}
        numbers |= {"right": self.right, "seen": self.seen}
        numbers |= {"half_precision": self.model.half_precision, "messages": self.train.digest()}
        about = {"numbers": json.dumps(numbers), "config": json.dumps(_recipe(self.config))}
        return Checkpoint(
            self.step,
            {"checkpoint.safetensors": lambda path: tensor_file.write(path, tensors, about)},
        )

    def restore(self, contents: bytes) -> None:
        """Go on from a checkpoint of the same run on the same messages. Raises BadValue for another
        one, or for a file that is not whole."""
        try:
            tensors, about = load_bytes(contents), _metadata(contents)
            numbers, kept = json.loads(about["numbers"]), json.loads(about["config"])
            if _recipe(RunConfig.from_json(kept)) != _recipe(self.config):
                raise BadValue("checkpoint", "must come from a run with the same config", kept)
            if numbers.get("messages", self.train.digest()) != self.train.digest():
                rule = "must come from a run on these messages: the file of messages has changed"
                raise BadValue("checkpoint", rule, self.config.data.data)
            self._check(tensors, numbers)
            # What the run began with, however fast this machine is today.
            compute_in(self.model, "bfloat16" if numbers.get("half_precision") else "float32")
            with torch.no_grad():
                for name, parameter in self._named().items():
                    parameter.copy_(tensors[f"model.{name}"])
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("adam."):
                    _, place, slot = name.split(".")
                    state.setdefault(int(place), {})[slot] = value
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
            self.step, self.seconds = numbers["step"], numbers["seconds"]
            self.right, self.seen = numbers["right"], numbers["seen"]
        except BadValue:
            raise
        except (
            SafetensorError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise BadValue("checkpoint", "must be a whole checkpoint file", str(error)) from error

    def _check(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks a part of this run, before anything is changed: torch
        trusts what it is given, and a step on tensors of other shapes ends the process."""
        expected = {f"model.{name}": p.shape for name, p in self._named().items()}
        for place, parameter in enumerate(self.trained):
            slots = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            expected |= {f"adam.{place}.{slot}": torch.Size(s) for slot, s in slots.items()}
        for name in sorted(expected.keys() | tensors.keys()):
            found, shape = tensors.get(name), expected.get(name)
            if found is None or found.shape != shape or found.dtype != torch.float32:
                needed = "nothing" if shape is None else f"float32 of shape {tuple(shape)}"
                got = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
                rule = f"must hold what this run trains: {needed} under {name}"
                raise BadValue("checkpoint", rule, got)
            if not found.isfinite().all():
                rule = f"must hold what this run trains: finite numbers under {name}"
                raise BadValue("checkpoint", rule, "others")
        step, others = numbers["step"], [numbers[name] for name in ("seconds", "right", "seen")]
        if type(step) is not int or not 0 <= step <= self.steps:
            raise BadValue("checkpoint", f"must be of a step from 0 to {self.steps}", step)
        if not all(0 <= number < math.inf for number in others):
            rule = "must hold seconds, right and all answers so far, none below 0"
            raise BadValue("checkpoint", rule, others)

    def _named(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the model."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def _recipe(config: RunConfig) -> dict:
    """What must agree between a run and its checkpoint: all but the place of the data, since a run
    folder may be moved between stop and resume."""
    return json.loads(json.dumps(config.changed(data="moved").to_json()))


def _metadata(contents: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory: eight bytes of length, then JSON."""
    size = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + size])["__metadata__"]


# --- the run -------------------------------------------------------------------------------------


def train(
    config: RunConfig,
    checkpoint: bytes | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Train as `config` says and yield what happens, from reading the messages to the test.

    `checkpoint` is the file of an earlier `Checkpoint` event of the same config; the run goes on
    there. Raises BadValue, DataError, WeightsError, AdapterError or TokenizerUnavailableError, each
    with a sentence for people, before the first step, and ArithmeticError when the loss is not
    finite.
    """
    begun = clock()
    keep_freed_memory()
    reset_peak_memory()
    device = choose_device(config.training.device)
    yield Progress("reading the messages", 0, 1)
    messages = tuple(read_messages(config.data))
    # Whose place does not matter: every run has its own copy of an uploaded file.
    parts = _divided(messages, replace(config.data, data="read"), config.seed)
    encoding = tokenizer.load(MODELS[config.model].encoding)
    base = yield from load_base(config)
    model = prepare(base, config.training.method, config.lora, config.seed).to(device)
    classifier = Classifier(model, encoding, config.training.max_tokens)
    trainer = Trainer(model, config, Part.of(parts.train, classifier))
    if checkpoint is not None:
        trainer.restore(checkpoint)
        begun -= trainer.seconds  # as if the steps before had been taken in one go with the rest
    else:
        step = BlockStep.of(config, [*map(len, trainer.train.sequences)], device)
        compute_in(model, choose_precision(config.training.precision, step))
    yield from trainer.record()
    validation = Part.of(parts.validation, classifier) if parts.validation else None
    yield _started(trainer, parts)
    yield from _steps(trainer, validation, clock)
    yield Adapter(trainer.step, adapter_files(model, config))
    test = Part.of(parts.test, classifier)
    yield from _conclusion(trainer, parts, validation, test, begun, clock)


@lru_cache(maxsize=2)
def _divided(messages: tuple[Message, ...], config: DataConfig, seed: int) -> Split:
    """`split`, of which the next run in this process need not wait: most differ by other knobs."""
    return split(messages, config, seed)


def _started(trainer: Trainer, parts: Split) -> Started:
    return Started(
        steps=trainer.steps,
        steps_per_epoch=trainer.per_epoch,
        train_size=len(parts.train),
        validation_size=len(parts.validation),
        test_size=len(parts.test),
        leaked_test_messages=parts.leaked,
        near_test_messages=parts.near,
        trainable=sum(p.numel() for p in trainer.trained),
        total=sum(p.numel() for p in trainer.model.parameters()),
        device=str(trainer.device),
        precision="bfloat16" if trainer.model.half_precision else "float32",
        threads=torch.get_num_threads(),
        first_step=trainer.step,
        recorded=trainer.recorded,
    )


def _steps(
    trainer: Trainer, validation: Part | None, clock: Callable[[], float]
) -> Iterator[Event]:
    training = trainer.config.training
    while trainer.step < trainer.steps:
        first = trainer.step == 0
        untrained = trainer.values() if first and validation else None
        yield trainer.advance(clock)
        if validation and untrained:
            # The first loss does not wait for this look at where it all began.
            with trainer.at(untrained):
                seen = validation.look(trainer.model)
            yield Validation(0, *seen)
        step, last = trainer.step, trainer.step == trainer.steps
        at_epoch = step % trainer.per_epoch == 0
        due = training.validate_every and step % training.validate_every == 0
        if validation and (due or at_epoch or last):
            yield Validation(step, *validation.look(trainer.model))
        if step % training.checkpoint_every == 0 or last:
            yield trainer.checkpoint()


def _conclusion(
    trainer: Trainer,
    parts: Split,
    validation: Part | None,
    test: Part,
    begun: float,
    clock: Callable[[], float],
) -> Iterator[Event]:
    found: dict[str, Metrics] = {}
    for name, part in (("train", trainer.train), ("validation", validation), ("test", test)):
        if part is not None:
            stage = f"measuring the {name} part"
            found[name] = yield from part.measured(trainer.model, stage, clock)
    yield Progress("fitting the linear baseline", 0, 1)
    baseline = linear_baseline(parts, trainer.config.seed)
    yield Finished(
        steps=trainer.step,
        train_seconds=trainer.seconds,
        seconds=clock() - begun,
        train_accuracy=found["train"].accuracy,
        validation=found["validation"].to_json() if "validation" in found else None,
        test=found["test"].to_json(),
        baseline=baseline.to_json(),
        peak_memory_mb=peak_memory_mb(trainer.device),
    )
