"""Laws of the training loop, on the bundled model's shape with random weights and few messages."""

import json
import shutil
import time
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load, save

from lora_gpt.config import MODELS, BadValue, RunConfig
from lora_gpt.core import classify, tokenizer, training
from lora_gpt.core.adapter import CONFIG_FILE, WEIGHTS_FILE
from lora_gpt.core.classify import Classifier
from lora_gpt.core.data import Message, read_messages
from lora_gpt.core.lora import prepare
from lora_gpt.core.machine import choose_device
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.split import split
from lora_gpt.core.training import Part, Trainer, _metadata, epoch_order, rate, train
from lora_gpt.events import Adapter, Checkpoint, Finished, Started, Step, Validation

CHECKPOINT = "checkpoint.safetensors"
QUICK = RunConfig().changed(
    init="random", epochs=1, max_steps=6, batch_size=4, validate_every=3, checkpoint_every=3
)


@pytest.fixture(autouse=True)
def _few_messages(monkeypatch, tmp_path):
    """A file of 60 messages instead of the bundled ones: the laws hold for any."""
    lines = [f"spam\tClaim prize number {n} now at win{n}.info, reply YES" for n in range(30)]
    lines += [f"ham\tSee you at {n} o'clock near the {n}th gate, love Ann" for n in range(30)]
    path = tmp_path / "few.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setitem(FEW, "data", str(path))


FEW = {"data": ""}


def few(**changes):
    return QUICK.changed(keep_apart=False, **FEW, **changes)


def steps_of(events):
    return [event for event in events if isinstance(event, Step)]


def losses(config, checkpoint=None):
    return [step.loss for step in steps_of(train(config, checkpoint))]


def kept(config, checkpoint=None):
    """The events of a training, and {(step, name): contents} of the files that they carry: written
    when they come, as a run folder does."""
    events, files = [], {}
    with TemporaryDirectory() as folder:
        for event in train(config, checkpoint):
            events.append(event)
            for name, write in getattr(event, "files", {}).items():
                write(Path(folder, name))
                files[event.step, name] = Path(folder, name).read_bytes()
    return events, files


def first_checkpoint():
    """The file of a training of `few`, stopped there."""
    with TemporaryDirectory() as folder:
        event = next(event for event in train(few()) if isinstance(event, Checkpoint))
        event.files[CHECKPOINT](Path(folder, CHECKPOINT))
        return Path(folder, CHECKPOINT).read_bytes()


def test_the_same_seed_gives_the_same_losses():
    """Bit for bit, dropout included; another seed gives others."""
    config = few(dropout=0.2)
    first = losses(config)
    assert first == losses(config)
    assert first != losses(replace(config, seed=43))


def test_stop_and_resume_equals_never_stopped():
    """What comes after a checkpoint does not depend on whether there was a break."""
    config = few(dropout=0.1)
    whole, files = kept(config)
    rest, later = kept(config, files[3, CHECKPOINT])
    quiet = {
        "seconds": 0.0,
        "tokens_per_second": 0.0,
        "messages_per_second": 0.0,
        "seconds_left": 0.0,
    }
    assert [replace(s, **quiet) for s in steps_of(rest)] == [
        replace(s, **quiet) for s in steps_of(whole)[3:]
    ]
    assert all(files[6, name] == later[6, name] for name in (WEIGHTS_FILE, CONFIG_FILE))
    ends = [next(e for e in events if isinstance(e, Finished)).test for events in (whole, rest)]
    assert ends[0] == ends[1]


def test_a_resumed_run_keeps_its_precision(monkeypatch):
    """A machine that is busy today must not change the numbers of a run that began yesterday."""
    monkeypatch.setattr("lora_gpt.core.training.choose_precision", lambda name, step: "bfloat16")
    whole, files = kept(few())
    monkeypatch.setattr("lora_gpt.core.training.choose_precision", lambda name, step: "float32")
    rest = list(train(few(), files[3, CHECKPOINT]))
    assert [s.loss for s in steps_of(rest)] == [s.loss for s in steps_of(whole)[3:]]
    starts = [e.precision for e in whole + rest if isinstance(e, Started)]
    assert starts == ["bfloat16", "bfloat16"]


def test_a_checkpoint_from_before_a_knob_was_there_still_fits():
    """A new version knows more knobs; what a run of the old one lacks has its default."""
    contents = first_checkpoint()
    with_knob, about = load(contents), json.loads(_metadata(contents)["config"])
    numbers = json.loads(_metadata(contents)["numbers"])
    del about["training"]["precision"], numbers["half_precision"]
    old = save(with_knob, {"numbers": json.dumps(numbers), "config": json.dumps(about)})
    assert len(losses(few(), old)) == 3


def test_a_checkpoint_of_another_run_is_refused():
    contents = first_checkpoint()
    with pytest.raises(BadValue, match="same config"):
        list(train(few(rank=4), contents))
    with pytest.raises(BadValue, match="whole checkpoint"):
        list(train(few(), contents[:1000]))


def test_a_checkpoint_of_other_messages_is_refused(tmp_path):
    """A file that was edited between stop and resume is split anew: what was trained on would stand
    in the test part."""
    contents = first_checkpoint()
    path = Path(FEW["data"])
    path.write_text(path.read_text("utf-8").replace("gate", "door"), encoding="utf-8")
    with pytest.raises(BadValue, match="the file of messages has changed"):
        list(train(few(), contents))


def _broken(contents, about=(), drop=None, **changes):
    """`changes` are functions of tensors; `bias` is the head's, `adam_0_step` is adam.0.step."""
    tensors, told = load(contents), dict(_metadata(contents))
    if drop:
        tensors = {n: value for n, value in tensors.items() if not n.startswith(drop)}
    for name, change in changes.items():
        key = "model.out_head.bias" if name == "bias" else name.replace("_", ".", 2)
        tensors[key] = change(tensors.get(key))
    return save(tensors, told | dict(about))


def test_a_checkpoint_that_is_not_whole_is_refused():
    """Nothing trained, other shapes, no numbers, a step that is none: a sentence, no traceback, and
    never fresh weights that go on in the middle of a run."""
    contents = first_checkpoint()
    numbers = json.loads(_metadata(contents)["numbers"])
    for broken, rule in (
        (_broken(contents, drop="model."), "must hold what this run trains"),
        (_broken(contents, bias=lambda bias: bias[:1].clone()), "must hold what this run trains"),
        (
            _broken(contents, bias=lambda bias: bias * float("nan")),
            "must hold what this run trains",
        ),
        (_broken(contents, [("numbers", "[]")]), "must be a whole checkpoint"),
        (
            _broken(contents, [("numbers", json.dumps(numbers | {"step": -3}))]),
            "must be of a step from 0 to 6",
        ),
        (_broken(contents, drop="adam.0.exp_avg"), r"under adam\.0\.exp_avg; got 'nothing'"),
        (
            _broken(contents, adam_0_exp_avg=lambda m: m[:1].clone()),
            r"\(384, 8\) under adam\.0\.exp",
        ),
        (_broken(contents, adam_1_exp_avg_sq=lambda m: m.half()), r"got 'torch\.float16 of shape"),
        (
            _broken(contents, adam_1_step=lambda step: step.long()),
            r"got 'torch\.int64 of shape \(\)'",
        ),
        (
            _broken(contents, adam_1_step=lambda step: step[None]),
            r"got 'torch\.float32 of shape \(1,\)",
        ),
        (_broken(contents, adam_99_step=lambda _: torch.ones(())), r"nothing under adam\.99\.step"),
        (_broken(contents, [("numbers", json.dumps(numbers | {"step": 2.5}))]), "got 2.5"),
        (_broken(contents, [("numbers", json.dumps(numbers | {"seen": -4}))]), "none below 0"),
    ):
        with pytest.raises(BadValue, match=rule):
            list(train(few(), broken))


def test_the_time_of_a_resumed_run_holds_that_of_its_earlier_steps():
    """The whole run, with loading and measuring, never took less than its steps."""
    contents = first_checkpoint()
    numbers = json.loads(_metadata(contents)["numbers"]) | {"seconds": 1000.0}
    slow = _broken(contents, [("numbers", json.dumps(numbers))])
    (end,) = (event for event in train(few(), slow) if isinstance(event, Finished))
    assert end.seconds >= end.train_seconds > 1000


def test_events_come_in_order_and_add_up():
    """Started, then steps from 0, validation when it is due, adapter, end."""
    events = list(train(few()))
    started = next(event for event in events if isinstance(event, Started))
    assert [step.step for step in steps_of(events)] == list(range(6))
    assert [look.step for look in events if isinstance(look, Validation)] == [0, 3, 6]
    assert started.train_size + started.validation_size + started.test_size == 60
    assert started.trainable < started.total
    before_end = list(takewhile(lambda event: not isinstance(event, Finished), events))
    assert any(isinstance(event, Adapter) for event in before_end)
    assert isinstance(events[-1], Finished) and events[-1].test["size"] == started.test_size


def test_the_last_partial_batch_is_dropped():
    """42 messages in batches of 4 are ten steps an epoch, as the labs count."""
    started = next(e for e in train(few(max_steps=0)) if isinstance(e, Started))
    assert started.steps_per_epoch == started.train_size // 4 == started.steps


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_every_method_trains_what_it_says(method):
    """Only what the method names moves; the frozen rest is what it was."""
    config = few(method=method, learning_rate=0.01)
    model = prepare(initialise(GPTModel(config.architecture), 0), method, config.lora, 0)
    classifier = Classifier(model, tokenizer.load("mini"))
    parts = split(read_messages(config.data), config.data, config.seed)
    trainer = Trainer(model, config, Part.of(parts.train, classifier))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):  # B is 0 at first, and A moves once it is not
        trainer.advance(time.perf_counter)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    head = {"out_head.weight", "out_head.bias"}
    lora = {name for name in before if name.endswith(("lora.A", "lora.B"))}
    assert moved == {"head": head, "lora": head | lora, "full": set(before)}[method]


def test_training_learns():
    """Two clearly different classes are told apart after a few epochs from random weights."""
    config = few(max_steps=0, epochs=6, learning_rate=0.01)
    events = list(train(config))
    first, last = steps_of(events)[0].loss, steps_of(events)[-1].loss
    assert last < first / 2
    assert events[-1].test["accuracy"] > 0.9


def test_padding_changes_nothing():
    """A verdict does not depend on the messages beside it."""
    model = initialise(GPTModel(MODELS["mini"].config), 0)
    prepare(model, "lora", QUICK.lora, 0)
    classifier = Classifier(model.eval(), tokenizer.load("mini"))
    texts = ["ok", "see you at ten by the old gate, bring the blue folder please", "no " * 90]
    together = [verdict.p_spam for verdict in classifier.verdicts(texts)]
    alone = [classifier.verdicts([text])[0].p_spam for text in texts]
    assert together == pytest.approx(alone, abs=1e-6)


def test_an_infinite_loss_is_told_and_not_trained_on(monkeypatch):
    """The first step that is not finite ends the run, with the knob that helps."""

    def loud(model, *rest):
        prepared = prepare(model, *rest)
        with torch.no_grad():
            prepared.out_head.weight.mul_(1e38)
        return prepared

    monkeypatch.setattr("lora_gpt.core.training.prepare", loud)
    with pytest.raises(ArithmeticError, match="learning_rate"):
        list(train(few(method="full")))


def test_the_schedules():
    """Each rises over the warm-up; cosine and linear end near 0, constant stays."""
    base = few(learning_rate=1.0, warmup_fraction=0.1).training
    for schedule, last in (("constant", 1.0), ("linear", 1 / 90), ("cosine", 0.0003)):
        training = replace(base, schedule=schedule)
        rates = [rate(training, step, 100) for step in range(100)]
        assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert max(rates) == 1.0
        assert rates[-1] == pytest.approx(last, abs=1e-4)


def test_every_epoch_has_its_own_order():
    """A permutation, different from epoch to epoch, equal for equal seeds."""
    first, second = epoch_order(50, 7, 0), epoch_order(50, 7, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == epoch_order(50, 7, 0)


def test_a_device_that_is_not_here_is_refused():
    if torch.cuda.is_available():
        pytest.skip("needs a CUDA device to be absent")
    with pytest.raises(BadValue, match=r"device: must be one that this machine has"):
        choose_device("cuda")


def test_too_few_messages_for_a_batch():
    with pytest.raises(BadValue, match="batch_size: must be at most"):
        list(train(few(batch_size=200)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_learns_the_same():
    """bf16 on the GPU follows the CPU's losses closely over the first steps."""
    here = losses(few(device="cpu"))
    there = losses(few(device="cuda"))
    assert there == pytest.approx(here, abs=0.05)


def test_a_part_measures_what_it_looks_at(monkeypatch):
    """Accuracy while training and accuracy at the end are the same measure; the latter takes long
    for a large model, so it tells how far it is."""
    model = prepare(initialise(GPTModel(MODELS["mini"].config), 0), "head", QUICK.lora, 0)
    classifier = Classifier(model, tokenizer.load("mini"))
    part = Part.of([Message(f"message {n}", n % 3 == 0) for n in range(12)], classifier)
    loss, accuracy = part.look(model)
    total, ticks = sum(map(len, part.sequences)), iter(range(99))
    monkeypatch.setattr(classify, "BATCH_TOKENS", total // 3)
    measured, said = part.measured(model, "measuring", lambda: float(next(ticks))), []
    with pytest.raises(StopIteration) as end:
        while True:
            said.append(next(measured))
    metrics = end.value.value
    assert (metrics.loss, metrics.accuracy) == pytest.approx((loss, accuracy))
    done = [each.done for each in said]
    assert done[0] == 0 and done[-1] == total and done == sorted({*done}) and len(done) > 3
    assert {(each.stage, each.total) for each in said} == {("measuring", total)}
    second = said[2]  # two batches took two seconds
    assert second.seconds_left == pytest.approx(2 * (total - second.done) / second.done)


def test_the_same_messages_are_divided_once(monkeypatch):
    """A run with another rank does not wait for it; another seed or another message does."""
    asked = []
    monkeypatch.setattr(training, "split", lambda *given: asked.append(given) or split(*given))
    training._divided.cache_clear()
    config = RunConfig()
    messages = tuple(read_messages(config.data))[-200:]
    first = training._divided(messages, config.data, 1)
    assert training._divided((*messages,), config.changed(rank=2).data, 1) is first
    assert len(asked) == 1
    training._divided(messages[1:], config.data, 1)
    assert training._divided(messages, config.data, 2) != first and len(asked) == 3
    training._divided.cache_clear()


def test_copies_of_an_uploaded_file_are_divided_once(monkeypatch, tmp_path):
    """Each run has its own, in its own folder."""
    asked = []
    monkeypatch.setattr(training, "split", lambda *given: asked.append(given) or split(*given))
    monkeypatch.setattr(training, "load_base", Mock(side_effect=InterruptedError))  # that is enough
    training._divided.cache_clear()
    for name in ("one", "two"):
        copy = Path(shutil.copy(FEW["data"], tmp_path / f"{name}.tsv"))
        with pytest.raises(InterruptedError):
            list(train(few().changed(data=str(copy))))
    assert len(asked) == 1
    training._divided.cache_clear()
