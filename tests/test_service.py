"""What the page and the command line may ask for, on tiny trainings in this process."""

import csv
import dataclasses
import io
import json
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from lora_gpt import classifiers as classifiers_room
from lora_gpt import service as service_room
from lora_gpt.classifiers import Classifiers
from lora_gpt.config import MODELS, BadValue, RunConfig
from lora_gpt.core import insight, tokenizer
from lora_gpt.core.adapter import AdapterError
from lora_gpt.core.classify import Classifier, Verdict
from lora_gpt.core.data import DataError, read_messages
from lora_gpt.core.lora import lora_layers
from lora_gpt.core.structure import StageCount
from lora_gpt.core.tokenizer import TokenizerUnavailableError
from lora_gpt.core.training import train
from lora_gpt.events import Adapter, Finished, Started, Step, Stopped, Validation
from lora_gpt.jobs import Jobs, JobsError
from lora_gpt.service import (
    MOST_CHARACTERS,
    MOST_TEXTS,
    SAMPLE,
    SAMPLE_RUNS,
    Service,
    verdicts_csv,
)
from lora_gpt.store import ADAPTER, NOBODY, Run, RunNotFound, RunStore, StoreError
from lora_gpt.worker import carry_out

HERE = Path(__file__).parent
TEXTS = ["Claim your prize now", "See you at 4, love Ann", "ok"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A few short messages are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of 60 messages."""
    lines = [f"spam\tClaim prize number {n} now at win{n}.info, reply YES" for n in range(30)]
    lines += [f"ham\tSee you at {n} o'clock near the {n}th gate, love Ann" for n in range(30)]
    path = tmp_path_factory.mktemp("data") / "few.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(few):
    """A run of four steps from random weights."""
    return RunConfig().changed(
        init="random", data=str(few), keep_apart=False, max_steps=4, batch_size=4, rank=2
    )


@pytest.fixture(scope="module")
def house(tiny, tmp_path_factory):
    """(a service, three runs): LoRA, LoRA from another seed's split, and the head alone."""
    service = Service(tmp_path_factory.mktemp("runs"), samples=tmp_path_factory.mktemp("none"))
    runs = []
    for changes in ({}, {"rank": 4}, {"method": "head"}):
        run_id, events = service.run_here(tiny.changed(learning_rate=0.01, **changes))
        assert isinstance(list(events)[-1], Finished)
        runs.append(run_id)
    yield service, runs
    service.close()


@pytest.fixture
def service(tmp_path):
    """A service without runs."""
    made = Service(tmp_path / "runs", samples=tmp_path / "samples")
    yield made
    made.close()


@pytest.fixture
def queue(service, monkeypatch):
    """A service whose worker makes believe: runs called 'slow' last until they are stopped."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    service.jobs.close()
    service.jobs = Jobs(service.store, train="fake_training:train")
    return service


def model_of(service, run_id):
    """The model that answers for a run."""
    with service._classifiers.of(service.find(run_id)) as classifier:
        return classifier.model


def wait_for(service, run_id, *statuses, seconds=60):
    latest = time.monotonic() + seconds
    while (status := service.since(run_id).status) not in statuses:
        assert time.monotonic() < latest, f"{run_id} is {status}"
        time.sleep(0.02)
    # Its end is written before the queue lets go of it.
    while service.find(run_id).reserved:
        assert time.monotonic() < latest
        time.sleep(0.02)


# --- before a run --------------------------------------------------------------------------------


def test_preview(service, tiny, few):
    """Sizes and classes of every part, the length of every message, a few of each class."""
    seen = service.preview(tiny, samples=2)
    assert (seen.spam, seen.ham) == (30, 30)
    parts = [seen.train, seen.validation, seen.test]
    assert [sum(part) for part in parts] == [42, 6, 12]
    assert [sum(column) for column in zip(*parts, strict=True)] == [30, 30]
    assert seen.leaked == 0 and seen.near > 0
    assert (len(seen.spam_lengths), len(seen.ham_lengths)) == (30, 30)
    assert min(seen.spam_lengths + seen.ham_lengths) > 5
    assert [message.is_spam for message in seen.samples] == [True, True, False, False]
    assert set(seen.samples) <= set(read_messages(tiny.data))


def test_a_changed_file_is_read_again(service, tiny, tmp_path):
    """What was kept belongs to the file as it was."""
    path = tmp_path / "own.tsv"
    lines = [f"{label}\tmessage {n} of {label}" for label in ("spam", "ham") for n in range(20)]
    path.write_text("\n".join(lines), encoding="utf-8")
    config = tiny.changed(data=str(path))
    assert service.preview(config).spam == 20
    path.write_text("\n".join([*lines, "spam\tone more"]), encoding="utf-8")
    os.utime(path, (1, 1))
    assert service.preview(config).spam == 21


def test_plan(service, tiny):
    """Steps and trained share as the run will have them, and a cost that is a number."""
    plan = service.plan(tiny.changed(max_steps=0, epochs=3))
    assert (plan.steps, plan.steps_per_epoch) == (30, 10)
    assert plan.trainable == 4 * 2 * (4 * 768 + 2 * 1920) + 2 * 384 + 2
    assert plan.seconds > 0 and plan.memory_mb > 10 and plan.device in ("cpu", "cuda", "mps")
    assert service.plan(tiny).steps == 4


def test_a_plan_is_what_the_run_does(house, tiny):
    """The numbers of the plan stand again in the run's first event."""
    service, (run, *_) = house
    plan = service.plan(tiny)
    started = service.summary(run).started
    assert (plan.steps, plan.steps_per_epoch) == (started.steps, started.steps_per_epoch)
    assert (plan.trainable, plan.total) == (started.trainable, started.total)


def test_a_plan_that_cannot_be_done_is_refused(service, tiny):
    with pytest.raises(BadValue, match="batch_size: must be at most 42"):
        service.plan(tiny.changed(batch_size=43))


def test_structure_is_passed_on(service, tiny):
    """The page asks here and nowhere else."""
    node = service.tree("gpt2", "lora", tiny.lora)
    assert node.parameters == service.counts("gpt2", tiny.lora)[1].total
    assert service.printed(node).startswith("GPTModel(")
    layer = next(each for each in node.walk() if each.type == "LoRALayer")
    assert service.arithmetic(layer) == "2 × (768 + 768) = 3,072"
    assert service.memory(StageCount("base", 1, 2)).total == 8 + 4 + 8


# --- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "refusal", "says"),
    [
        ({"data": "nowhere.csv"}, DataError, "not there"),
        ({"batch_size": 43}, BadValue, "batch_size: must be at most 42"),
        ({"text_column": "body"}, DataError, "text_column"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(
    service, tiny, changes, refusal, says
):
    """The page shows the sentence; no folder is left behind."""
    for begin in (lambda config: service.start(config, "ada"), service.run_here):
        with pytest.raises(refusal, match=says):
            begin(tiny.changed(**changes))
    assert service.runs() == [] and not service.store.root.exists()


@pytest.mark.parametrize("missing", ["tokenizer", "model.safetensors"])
def test_what_cannot_be_fetched_is_refused_before_there_is_a_run(
    service, tiny, tmp_path, monkeypatch, missing
):
    """Without a network GPT-2 cannot be trained; random weights need the tokenizer alone."""

    def load(name):
        if missing == "tokenizer":
            raise TokenizerUnavailableError("The tokenizer is not on this machine")
        return mini

    mini = tokenizer.load("mini")
    monkeypatch.setattr(tokenizer, "load", load)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    huggingface_hub.close_session()
    gpt2 = tiny.changed(model="gpt2", init="pretrained")
    for begin in (lambda config: service.start(config, "ada"), service.run_here):
        with pytest.raises(OSError, match=f"{missing}.* is not on this machine"):
            begin(gpt2)
    assert service.runs() == [] and not service.store.root.exists()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mine.csv", b"PK\x03\x04\0\0", "mine.csv: must be a text file"),
        ("mine.csv", b"spam\tone\nham\ttwo\n", "at least 10 messages of each class"),
        ("mine.xlsx", None, r"data: must be a file ending in \.csv"),
    ],
)
def test_a_bad_upload_is_refused_before_there_is_a_run(
    service, tiny, few, tmp_path, name, content, says
):
    upload = tmp_path / name
    upload.write_bytes(few.read_bytes() if content is None else content)
    with pytest.raises(ValueError, match=says):
        service.start(tiny, "ada", upload)
    assert service.runs() == []


def test_a_file_is_refused_without_reading_it_again(service, tiny, tmp_path, monkeypatch):
    """Every knob that moves asks for a plan and a preview, and a refusal may take seconds."""
    path, read = tmp_path / "few.tsv", []
    path.write_text("spam\tone\nham\ttwo\n", encoding="utf-8")
    config = tiny.changed(data=str(path))
    monkeypatch.setattr(
        "lora_gpt.service.read_messages", lambda data: read.append(data) or read_messages(data)
    )
    for ask in (service.preview, service.plan, service.preview):
        with pytest.raises(ValueError, match="at least 10 messages of each class"):
            ask(config)
    assert len(read) == 1
    path.write_text("".join(f"spam\tone{n}\nham\ttwo{n}\n" for n in range(20)), encoding="utf-8")
    os.utime(path, (1, 1))
    assert service.preview(config).spam == 20


def test_an_upload_is_kept_in_the_run(queue, tiny, few, tmp_path):
    """The run can be trained again when the upload is gone."""
    upload = tmp_path / "Mine.TSV"
    upload.write_bytes(few.read_bytes())
    run_id = queue.start(tiny, "ada", upload)
    upload.unlink()
    run = queue.find(run_id)
    assert (run.path / "messages.tsv").read_bytes() == few.read_bytes()
    assert run.config.data.data == "messages.tsv"
    assert len(read_messages(run.local_config().data)) == 60
    assert ", Mine.TSV, seed 42" in queue.summary(run_id).label
    report = queue.report(run_id)
    assert "--data Mine.TSV " in report and "| Messages | Mine.TSV |" in report
    wait_for(queue, run_id, "finished")


def test_a_double_click_starts_one_run(queue, tiny):
    """Asked again while it is under way, the first is meant; others have their own."""
    slow = tiny.changed(weights="slow", max_steps=500)
    first = queue.start(slow, "ada")
    assert queue.start(slow, "ada") == first
    other = queue.start(slow, "bob")
    assert other != first and queue.start(slow.changed(seed=1), "ada") not in (first, other)
    assert len(queue.runs()) == 3 and len(queue.runs("ada")) == 2
    for run in queue.runs():
        queue.stop(run.id, "bob" if run.id == other else "ada")


def test_a_run_that_is_being_stopped_is_not_started_again(queue, tiny):
    """Start, Stop, Start: the third click means a new run."""
    run = queue.store.create(tiny, "ada")
    with run.claim():
        assert queue.start(tiny, "ada") == run.id
        run.request_stop()
        again = queue.start(tiny, "ada")
    assert again != run.id
    wait_for(queue, again, "finished")


def test_the_twin_differs_in_its_starting_weights_alone(service, tiny, few):
    """The newest of one's own; not another's, not one of other messages or of another rank."""

    def run(config, owner, messages=None):
        return service.store.create(config, owner, messages, "own.tsv").id

    pretrained, own = tiny.changed(init="pretrained"), few.read_bytes()
    mine = run(tiny, "ada")
    run(pretrained, "bob")
    run(pretrained.changed(rank=3), "ada")
    assert service.twin(mine, "ada") is None and service.twin(mine, "") is None
    twin = run(pretrained, "ada")
    assert service.twin(mine, "ada") == twin and service.twin(twin, "ada") == mine
    uploaded = run(tiny, "ada", own)
    run(pretrained, "ada", own.replace(b"Ann", b"Eve"))
    assert service.twin(uploaded, "ada") is None
    same = run(pretrained, "ada", own)
    assert service.twin(uploaded, "ada") == same


def test_a_full_queue_leaves_no_run(queue, tiny):
    """The refusal says what to do, and nothing that nobody asked for stays."""
    slow = tiny.changed(weights="slow", max_steps=500)
    started = [queue.start(slow.changed(seed=seed), "ada") for seed in range(3)]
    with pytest.raises(JobsError, match="queue: at most"):
        for seed in range(3, 6):
            started.append(queue.start(slow.changed(seed=seed), "ada"))
    assert {run.id for run in queue.runs()} == set(started)
    while queue.since(started[0]).position:  # until the worker has taken it
        time.sleep(0.01)
    places = [queue.since(run).position for run in started]
    assert places == [*range(len(started))]


def test_a_full_disk_leaves_no_run(queue, tiny, monkeypatch):
    """The folder could be made, and its first event not written."""

    def full(self, event):
        raise StoreError("run folder: needs free disk space")

    monkeypatch.setattr(Run, "append", full)
    with pytest.raises(StoreError, match="needs free disk space"):
        queue.start(tiny, "ada")
    assert queue.runs() == []


def test_only_the_owner_may_stop_resume_and_delete(queue, tiny):
    """Others may look; for all else the run is not theirs, also without any name."""
    run = queue.start(tiny.changed(weights="slow", max_steps=500), "ada")
    asked = (queue.stop, queue.resume, queue.delete)
    for stranger in ("bob", "", *NOBODY):
        assert not queue.owns(run, stranger)
        for ask in asked:
            with pytest.raises(RunNotFound, match="only the browser that started run"):
                ask(run, stranger)
    assert queue.owns(run, "ada") and queue.since(run).status in ("queued", "running")
    with pytest.raises(OSError, match="must be stopped before it is deleted"):
        queue.delete(run, "ada")
    queue.stop(run, "ada")
    wait_for(queue, run, "stopped")
    queue.resume(run, "ada")
    queue.stop(run, "ada")
    wait_for(queue, run, "stopped")
    queue.delete(run, "ada")
    with pytest.raises(RunNotFound):
        queue.since(run)


def test_a_service_begins_with_a_clean_folder(tmp_path):
    """What a killed process left half deleted is not kept for ever."""
    (tmp_path / ".deleted-abc").mkdir()
    Service(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner", NOBODY)
def test_nobody_can_claim_to_be_the_command_line(service, tiny, owner):
    """Its runs, of now and of before, are listed for itself and for no page."""
    run, _ = service.run_here(tiny)
    (service.find(run).path / "owner.json").write_text(json.dumps({"owner": owner}))
    for stranger in NOBODY:
        assert service.runs(stranger) == [] and not service.owns(run, stranger)
        for ask in (service.stop, service.resume, service.delete):
            with pytest.raises(RunNotFound, match="only the browser that started run"):
                ask(run, stranger)
    assert [each.id for each in service.runs()] == [run]
    _, rest = service.resume_here(run)
    assert isinstance(list(rest)[-1], Finished)


def test_a_run_without_owner_is_nobodys(house, service):
    """One that was copied in can be looked at and not deleted from a page."""
    elsewhere, (run, *_) = house
    service.store.root.mkdir(parents=True)
    shutil.copytree(elsewhere.find(run).path, service.store.root / run)
    (service.store.root / run / "owner.json").unlink()
    assert service.summary(run).status == "finished"
    assert not service.owns(run, "")
    with pytest.raises(RunNotFound):
        service.delete(run, "")
    assert service.classify(run, TEXTS) == elsewhere.classify(run, TEXTS)


def test_from_start_to_verdict_with_the_real_worker(service, tiny):
    """A process of its own trains, the page asks for what is new, the run then classifies."""
    service.jobs.close()
    service.jobs = Jobs(service.store, threads=1)
    run = service.start(tiny, "ada")
    events, offset, latest = [], 0, time.monotonic() + 90
    while not any(isinstance(event, Finished) for event in events):
        assert time.monotonic() < latest
        look = service.since(run, offset)
        assert look.offset >= offset and look.status in ("queued", "running", "finished")
        events, offset = [*events, *look.events], look.offset
        time.sleep(0.05)
    assert [event.step for event in events if isinstance(event, Step)] == [0, 1, 2, 3]
    wait_for(service, run, "finished")
    assert service.since(run, offset).events == ()
    assert [each.id for each in service.runs("ada")] == [run]
    assert [verdict.text for verdict in service.classify(run, TEXTS)] == TEXTS


# --- runs ----------------------------------------------------------------------------------------


def test_looks_deliver_only_what_is_new(service, tiny):
    """Each event once and in order, however often is asked."""
    run, events = service.run_here(tiny)
    seen, made, offset = [], [], 0
    for event in events:
        made.append(event)
        look = service.since(run, offset)
        assert look.status == ("finished" if isinstance(event, Finished) else "running") or (
            isinstance(event, Finished) and look.status == "running"
        )
        assert service.since(run, look.offset).events == ()
        seen, offset = [*seen, *look.events], look.offset
    assert seen == made == list(service.since(run).events)
    assert {type(event) for event in seen} >= {Started, Step, Validation, Adapter, Finished}
    assert service.since(run, offset).status == "finished"


def test_a_run_that_was_left_can_be_resumed_here(service, tiny):
    """From its last checkpoint, in the same folder; a finished one cannot."""
    run, events = service.run_here(tiny.changed(checkpoint_every=2))
    for event in events:
        if isinstance(event, Step) and event.step == 2:
            break
    events.close()
    assert service.since(run).status == "interrupted"
    again, rest = service.resume_here(run)
    assert again == run
    rest = list(rest)
    assert [event.step for event in rest if isinstance(event, Step)] == [2, 3]
    assert isinstance(rest[-1], Finished) and service.since(run).status == "finished"
    with pytest.raises(BadValue, match="must not be finished to be resumed"):
        service.resume_here(run)


def test_a_run_that_another_process_trains_is_not_resumed_here(service, tiny):
    """And what it was asked, to stop, is left for it to hear."""
    run = service.store.create(tiny)
    with run.claim():
        run.request_stop()
        with pytest.raises(StoreError, match="must not be trained twice"):
            service.resume_here(run.id)
        assert run.stop_requested()


def test_a_stop_from_elsewhere_ends_a_run_here(service, tiny):
    """The command line's runs hear the same request as a worker's."""
    run, events = service.run_here(tiny)
    for event in events:
        if isinstance(event, Started):
            service.jobs.stop(run)
    assert event == Stopped(0) and service.since(run).status == "stopped"


def test_summaries(house, tiny):
    """Newest first, each with its words, its start and its end."""
    service, runs = house
    found = service.runs()
    assert [each.id for each in found] == runs[::-1]
    assert service.runs("bob") == []
    assert [each.label for each in found] == [
        f"mini, {method}, random start, few.tsv, seed 42, {rate}at most 4 steps,"
        " keep duplicates apart off, batch size 4"
        for method, rate in (
            ("head only", ""),
            ("LoRA r 4", "rate 0.01, "),
            ("LoRA r 2", "rate 0.01, "),
        )
    ]
    for each in found:
        assert each.status == "finished" and each.finished.steps == 4
        assert each.started.train_size == 42


def test_a_run_that_is_deleted_meanwhile_spoils_no_list(service, tiny, monkeypatch):
    """Between finding the runs and reading them."""
    kept, gone = (service.store.create(tiny) for _ in range(2))
    found = service.store.runs()
    gone.delete()
    monkeypatch.setattr(service.store, "runs", lambda owner: found)
    assert kept.id in [each.id for each in service.runs()]


def test_a_finished_run_is_read_once(house, monkeypatch):
    """For however many lists it stands in."""
    service, _ = house
    found = service.runs()
    monkeypatch.setattr(Run, "since", lambda *_: pytest.fail("was read again"))
    assert service.runs() == found


def test_the_path_of_the_data_is_kept_whole(service, few, tiny, monkeypatch):
    """A run of the command line can be resumed from another folder."""
    monkeypatch.chdir(few.parent)
    run, events = service.run_here(tiny.changed(data="few.tsv"))
    events.close()
    assert service.find(run).config.data.data == str(few.resolve())


def test_an_unknown_run(service):
    """One sentence, whatever was asked."""
    for ask in (
        lambda: service.since("abc"),
        lambda: service.classify("abc", TEXTS),
        lambda: service.report("abc"),
        lambda: service.since("../../etc"),
        lambda: service.find(SAMPLE),
        lambda: service.stop("abc", "ada"),
    ):
        with pytest.raises(RunNotFound, match="run: must be the id of a run"):
            ask()


def test_a_run_without_adapter_says_so(service, tiny):
    """What stands in its folder so far can be read; there is nothing to classify with."""
    run, events = service.run_here(tiny)
    next(events)
    events.close()
    for ask in (
        lambda: service.classify(run, TEXTS),
        lambda: service.adapter_archive(run, Path("nowhere")),
        lambda: service.updates(run),
    ):
        with pytest.raises(RunNotFound, match="has no adapter yet"):
            ask()
    assert "Not known yet" in service.report(run)
    assert len(service.classify_before(run, TEXTS)) == 3


def test_an_archive_is_made_once_and_never_in_memory(samples, tmp_path, monkeypatch):
    """That of a run that trained every parameter is as large as the model."""
    shutil.copytree(samples / "lora-rank-8", tmp_path / "run")
    service, cache = Service(tmp_path, samples=samples), tmp_path / "cache"
    monkeypatch.setattr(Run, "adapter_files", lambda run: pytest.fail("was read whole"))
    path = service.adapter_archive("run", cache)
    with zipfile.ZipFile(path) as archive:
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
    made = path.stat().st_ino
    assert service.adapter_archive("run", cache).stat().st_ino == made
    service.find("run").append(Stopped(4))
    later = service.adapter_archive("run", cache)
    assert later != path and later.name == path.name
    monkeypatch.setattr(zipfile.ZipFile, "write", Mock(side_effect=OSError(28, "No space left")))
    service.find("run").append(Stopped(5))
    with pytest.raises(OSError, match="No space left"):
        service.adapter_archive("run", cache)
    assert not [*cache.rglob("*.part")] and len([*cache.rglob("*.zip")]) == 2
    service.close()


def test_the_archive_holds_adapter_and_report(house, tmp_path):
    """The two files as they were written, and the lab report."""
    service, (run, *_) = house
    with zipfile.ZipFile(service.adapter_archive(run, tmp_path)) as archive:
        assert sorted(archive.namelist()) == sorted([*ADAPTER, "report.md"])
        for name in ADAPTER:
            assert archive.read(name) == service.find(run).adapter_files()[name]
        assert archive.read("report.md").decode() == service.report(run)
    report = service.report(run)
    assert f"run {run}" in report and "Not known yet" not in report
    assert f"| classifier | {service.summary(run).started.trainable:,} |" in report


# --- classification ------------------------------------------------------------------------------


def test_classify(house):
    """A verdict for each text that is not blank, in order, the same each time."""
    service, (run, *_) = house
    found = service.classify(run, [TEXTS[0], " ", f"  {TEXTS[1]}\n", TEXTS[2]])
    assert [each.text for each in found] == TEXTS
    assert all(isinstance(each, Verdict) and 0 <= each.p_spam <= 1 for each in found)
    assert service.classify(run, TEXTS) == found


def test_classify_agrees_with_the_test_of_the_run(house):
    """What the training measured is what the classifier says, message by message."""
    service, runs = house
    for run in runs:
        finished = service.summary(run).finished
        parts = service._divided(service.find(run).config)[1]
        said = service.classify(run, [message.text for message in parts.test])
        right = sum(
            (verdict.label == "spam") == message.is_spam
            for verdict, message in zip(said, parts.test, strict=True)
        )
        assert right == finished.test["tn"] + finished.test["tp"]
        for wrong in finished.test["misclassified"]:
            (again,) = [verdict for verdict in said if verdict.text == wrong["text"]]
            assert again.p_spam == pytest.approx(wrong["p_spam"], abs=1e-5)


def test_strength_0_differs_and_1_is_what_was_trained(house):
    """And the next question is answered at full strength again."""
    service, (run, *_) = house
    trained = service.classify(run, TEXTS)
    silent = service.classify(run, TEXTS, 0.0)
    assert [each.p_spam for each in silent] != [each.p_spam for each in trained]
    assert service.classify(run, TEXTS, 1.0) == trained == service.classify(run, TEXTS)


@pytest.mark.parametrize("strength", [-0.1, 10.1, float("nan"), float("inf"), "loud", None])
def test_a_strength_that_is_none_is_refused(house, strength):
    service, (run, *_) = house
    with pytest.raises(BadValue, match="strength: must be a number from 0 to 10"):
        service.classify(run, TEXTS, strength)


def test_before_training(house, tiny):
    """The base under the untrained head of the run's seed: B is 0, so LoRA says nothing yet."""
    service, (first, *_) = house
    before = service.classify_before(first, TEXTS)
    assert before != service.classify(first, TEXTS)
    assert [each.text for each in before] == TEXTS
    assert before == service.classify_before(first, TEXTS)
    model = service._classifiers.before(service.find(first)).model
    assert all(not layer.lora.B.any() for _, layer in lora_layers(model))
    losses = [e.loss for e in service.since(first).events if isinstance(e, Validation)]
    parts = service._divided(tiny)[1]
    said = service.classify_before(first, [message.text for message in parts.validation])
    chances = [
        v.p_spam if m.is_spam else 1 - v.p_spam for v, m in zip(said, parts.validation, strict=True)
    ]
    assert -torch.tensor(chances).log().mean() == pytest.approx(losses[0], abs=1e-4)


def test_a_finished_run_is_not_resumed_whoever_finished_it(house, service, tiny, monkeypatch):
    """Also where it came to its end between the look at it and the claim on it."""
    elsewhere, (run, *_) = house
    with pytest.raises(BadValue, match="must not be finished"):
        elsewhere.resume_here(run)
    before = (elsewhere.find(run).path / "events.jsonl").read_bytes()
    assert [*carry_out(elsewhere.find(run), train)] == []
    assert (elsewhere.find(run).path / "events.jsonl").read_bytes() == before
    waiting = service.store.create(tiny)
    with waiting.reserve(), pytest.raises(BadValue, match="must not wait in the queue"):
        service.resume_here(waiting.id)


def test_weights_in_a_folder_are_found_from_anywhere(service, few, tmp_path, monkeypatch):
    """A relative path is kept whole; a file called like a data set is not that data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").touch()
    (tmp_path / "bundled").write_text("label,text\n", encoding="utf-8")
    monkeypatch.setattr(service, "_check", lambda config: None)
    run_id, _ = service.run_here(RunConfig().changed(weights="base"))
    config = service.find(run_id).config
    assert config.weights == str(tmp_path / "base") and config.data.data == "bundled"


def test_attributions(house):
    """A weight for each word, at full strength whatever was asked before."""
    service, (run, *_) = house
    text = "  Claim your\nprize "
    expected = service.attributions(run, text)
    assert [word.text for word in expected] == ["Claim", "your", "prize"]
    service.classify(run, TEXTS, 0.0)
    assert service.attributions(run, text) == expected
    whole = service.classify(run, [text])[0].p_spam  # what the verdict above the words says
    for word in expected:
        assert word.without == pytest.approx(whole - word.weight, abs=1e-6)


def test_the_strength_curve(house):
    """From 0 to 2 in tenths; the model is at strength 1 afterwards."""
    service, (run, *_) = house
    curve = service.strength_curve(run, TEXTS[0])
    assert [point for point, _ in curve] == [step / 10 for step in range(21)]
    said = dict(curve)
    for strength in (0.0, 1.0, 2.0):
        verdict = service.classify(run, TEXTS[:1], strength)[0]
        assert said[strength] == pytest.approx(verdict.p_spam, abs=1e-6)
    service.strength_curve(run, TEXTS[0])
    assert {layer.strength for _, layer in lora_layers(model_of(service, run))} == {1.0}


def test_updates(house):
    """One for each adapted layer, as many singular values as the rank; none without LoRA."""
    service, (first, second, head) = house
    adapted = 6 * MODELS["mini"].config.n_layers
    assert [len(each.spectrum) for each in service.updates(first)] == [2] * adapted
    assert [len(each.spectrum) for each in service.updates(second)] == [4] * adapted
    assert all(each.size > 0 for each in service.updates(first))
    assert service.updates(head) == []


def test_evaluate(house, tiny):
    """All messages of a file, with the run's own tokenizer and length."""
    service, (run, *_) = house
    service.classify(run, TEXTS, 0.0)
    metrics = service.evaluate(run, tiny)
    assert metrics.size == 60 and metrics.tn + metrics.fp + metrics.fn + metrics.tp == 60
    assert metrics == service.evaluate(run, tiny)


def test_classify_a_file(house, tmp_path):
    """In the order of the file; what is no text is refused."""
    service, (run, *_) = house
    path = tmp_path / "own.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    assert service.classify_file(run, path) == service.classify(run, TEXTS)
    path.write_bytes(b"\0\1\2" * 50)
    with pytest.raises(DataError, match=r"own\.txt: must be a text file"):
        service.classify_file(run, path)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "text: must not be empty"),
        (["", " \n"], "text: must not be empty"),
        (["a"] * (MOST_TEXTS + 1), "text: must be at most 2,000 at once; got 2001"),
        (["ok", "a" * (MOST_CHARACTERS + 1)], "at most 20,000 characters long"),
    ],
)
def test_limits_on_texts(house, texts, says):
    """Refused before anything is computed, whoever asks."""
    service, (run, *_) = house
    for ask in (service.classify, service.classify_before):
        with pytest.raises(BadValue, match=says):
            ask(run, texts)
    if len(texts) < 3:
        for ask in (service.attributions, service.strength_curve):
            with pytest.raises(BadValue, match="text: must"):
                ask(run, texts[-1] if texts else "")


def test_verdicts_come_from_a_model_that_only_answers(house, monkeypatch):
    """At full strength, where a second copy of the weights is not too large; it says the same, and
    the base that all runs share stays as it was."""
    service, (run, *_) = house
    base = service._classifiers._base(service.find(run).config)
    weights = [parameter.clone() for parameter in base.parameters()]
    fast, slow = service._classifiers.in_turn(service.find(run)), model_of(service, run)
    assert not [*lora_layers(fast.model)] and [*lora_layers(slow)]
    expected = service.classify(run, TEXTS)
    monkeypatch.setattr(classifiers_room, "ANSWERING_BYTES", 1000)
    beside = Classifiers().in_turn(service.find(run))
    assert [*lora_layers(beside.model)]
    for one, other in zip(beside.verdicts(TEXTS), expected, strict=True):
        assert one.p_spam == pytest.approx(other.p_spam, abs=1e-5)
    assert all(map(torch.equal, weights, base.parameters()))


def test_the_model_that_only_answers_does_so_at_full_strength(house):
    """Whatever was asked before the first question at full strength."""
    elsewhere, (run, *_) = house
    expected = elsewhere.classify(run, TEXTS)
    made = Classifiers()
    made.in_turn(elsewhere.find(run), 0.5).verdicts(TEXTS)
    assert made.in_turn(elsewhere.find(run)).verdicts(TEXTS) == expected


def test_the_base_is_shared_by_all_runs_of_a_model(house):
    """Two runs cost one base: the same storage under both, and neither hears the other."""
    service, (first, second, head) = house
    before = {run: service.classify(run, TEXTS) for run in (first, second, head)}
    models = [model_of(service, run) for run in (first, second, head)]
    models.append(service._classifiers.before(service.find(first)).model)
    for path in ("tok_emb.weight", "trf_blocks.3.norm1.scale"):
        assert len({model.get_parameter(path).data_ptr() for model in models}) == 1
    weights = {
        models[0].trf_blocks[0].att.W_query.linear.weight.data_ptr(),
        models[1].trf_blocks[0].att.W_query.linear.weight.data_ptr(),
        models[2].trf_blocks[0].att.W_query.weight.data_ptr(),
    }
    assert len(weights) == 1
    assert {run: service.classify(run, TEXTS) for run in before} == before


def test_a_long_question_lets_a_short_one_in(house, monkeypatch):
    """A file of hundreds of messages does not hold up a slider, and keeps its own strength."""
    service, (run, *_) = house
    many, order, answers = TEXTS * 100, [], {}
    expected = service.classify(run, many, 0.5)

    def ask(name, texts, strength):
        answers[name] = service.classify(run, texts, strength)
        order.append(name)

    long = threading.Thread(target=ask, args=("long", many, 0.5))
    long.start()
    while not service._classifiers._turn.locked():  # until it is under way
        time.sleep(0.001)
    ask("short", TEXTS[:1], 2.0)
    long.join()
    assert order == ["short", "long"] and answers["long"] == expected
    assert answers["short"] == service.classify(run, TEXTS[:1], 2.0)


def test_a_turn_ends_after_some_tokens(house, monkeypatch):
    """Long messages are not many at a time: as many would hold up everybody else."""
    service, (run, *_) = house
    taken, answer = [], Classifier.probabilities

    def seen(self, sequences):
        taken.append(sum(map(len, sequences)))
        return answer(self, sequences)

    monkeypatch.setattr(Classifier, "probabilities", seen)
    texts = ["see you at ten by the old gate " * 40, "ok"] * 8
    found = service.classify(run, texts, 0.5)
    assert [each.text for each in found] == [text.strip() for text in texts]
    assert [each.p_spam for each in found[:2]] * 8 == pytest.approx([v.p_spam for v in found])
    assert len(taken) > 1 and max(taken) <= classifiers_room.TURN


def test_the_curve_of_a_long_message_is_asked_in_turns(house, monkeypatch):
    """Each holds others up no longer than a batch of verdicts does, and the curve is the same."""
    service, (run, *_) = house
    text, asked, answer = "see you at ten by the old gate " * 20, [], insight.spam_probabilities
    expected = service.strength_curve(run, text)

    def seen(model, sequences):
        assert service._classifiers._turn.locked()
        asked.append(sum(map(len, sequences)))
        return answer(model, sequences)

    monkeypatch.setattr(insight, "spam_probabilities", seen)
    monkeypatch.setattr("lora_gpt.service.TURN", 300)
    found = service.strength_curve(run, text)
    assert len(asked) > 1 and max(asked) <= 300
    assert [strength for strength, _ in found] == [strength for strength, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-6)


def test_what_is_kept_ready_is_bounded_by_its_bytes(house, monkeypatch):
    """Tensors that several share are counted once; the newest stays whatever it takes."""
    service, runs = house
    made = Classifiers()
    base = made._base(service.find(runs[0]).config)
    size = sum(parameter.nbytes for parameter in base.parameters())
    for most, kept in ((2 * size, runs), (size // 2, runs[-1:])):
        monkeypatch.setattr(classifiers_room, "MOST_BYTES", most)
        made = Classifiers()
        for run in runs:
            made.in_turn(service.find(run), 0.5)
        assert [path.name for path, _ in made._made._kept] == kept


def test_packed_weights_count_among_those_bytes(house, monkeypatch):
    """They are no parameters, and two thirds of what a model that only answers takes."""
    service, (first, second, _) = house
    base = Classifiers()._base(service.find(first).config)
    size = sum(parameter.nbytes for parameter in base.parameters())
    blocks = sum(parameter.nbytes for parameter in base.trf_blocks.parameters())
    monkeypatch.setattr(classifiers_room, "MOST_BYTES", size + 3 * blocks // 2)
    made = Classifiers()
    for run in (first, second):
        made.in_turn(service.find(run))
    kept = [(path.name, kind) for path, kind in made._made._kept]
    assert kept == [(second, "after"), (second, "answering")]


def test_a_spoilt_adapter_is_refused(house, service):
    """In a sentence, and the other runs go on."""
    elsewhere, (run, *_) = house
    shutil.copytree(elsewhere.find(run).path, service.store.root / run)
    (service.store.root / run / "adapter_model.safetensors").write_bytes(b"\x80\x04" + b"x" * 50)
    with pytest.raises(AdapterError, match="pickle"):
        service.classify(run, TEXTS)
    assert service.classify_before(run, TEXTS)


# --- tables --------------------------------------------------------------------------------------


def test_a_table_keeps_the_order_and_every_sign():
    """What a spreadsheet or a program reads back is what was classified."""
    texts = ['one, "two"', "three\nfour", "ünïcödé 🎉", "plain", "a=1"]
    found = [Verdict(text, "ham", place / 10) for place, text in enumerate(texts)]
    rows = [*csv.reader(io.StringIO(verdicts_csv(found)))]
    assert rows[0] == ["label", "p_spam", "text"]
    assert rows[1:] == [["ham", f"{place / 10:.4f}", t] for place, t in enumerate(texts)]
    assert verdicts_csv([]) == "label,p_spam,text\n"


@pytest.mark.parametrize("text", ["=1+1", "+44 call", "-5% off", "@sum(a1)", " =1", "\t=cmd|'/c'"])
def test_a_table_holds_no_formula(text):
    """A spreadsheet shows such a cell as the text that it is."""
    (_, row) = csv.reader(io.StringIO(verdicts_csv([Verdict(text, "spam", 0.9)])))
    assert row == ["spam", "0.9000", f"'{text}"]


# --- samples -------------------------------------------------------------------------------------


@pytest.fixture
def samples(house, tmp_path):
    """A folder with one bundled run, as it ships: without owner, checkpoint and log."""
    service, (run, *_) = house
    folder = tmp_path / "samples" / next(iter(SAMPLE_RUNS))
    folder.mkdir(parents=True)
    for name in ("config.json", "events.jsonl", *ADAPTER):
        (folder / name).write_bytes((service.find(run).path / name).read_bytes())
    return folder.parent


def test_samples_are_found_by_name_and_as_the_sample(samples, tmp_path, house):
    """They answer like any run, are in nobody's list, and nobody may delete them."""
    elsewhere, (run, *_) = house
    service = Service(tmp_path / "runs", samples=samples)
    name = next(iter(SAMPLE_RUNS))
    assert service.find(SAMPLE).id == service.find(name).id == name
    assert [each.id for each in service.sample_runs()] == [name]
    assert service.sample_runs()[0].status == "finished" and service.runs() == []
    said = elsewhere.classify(run, TEXTS)
    assert service.classify(SAMPLE, TEXTS) == service.classify(name, TEXTS) == said
    assert model_of(service, SAMPLE) is model_of(service, name)
    assert service.since(SAMPLE).events == elsewhere.since(run).events
    for owner in ("ada", *NOBODY):
        assert not service.owns(name, owner)
        with pytest.raises(RunNotFound):
            service.delete(name, owner)
    service.close()


def test_samples_that_cannot_be_written_to(samples, tmp_path):
    """Looking at a bundled run leaves its folder as it is."""
    before = {path.name for path in samples.rglob("*")}
    service = Service(tmp_path / "runs", samples=samples)
    service.classify(SAMPLE, TEXTS)
    service.report(SAMPLE)
    service.adapter_archive(SAMPLE, tmp_path / "cache")
    assert {path.name for path in samples.rglob("*")} == before
    service.close()


def test_making_the_samples(service, tiny, tmp_path, monkeypatch):
    """Each is trained and copied without what only its making needed."""
    tiny_ones = {
        "lora-rank-8": dataclasses.asdict(tiny.data)
        | {"init": "random", "max_steps": 2, "batch_size": 4},
    }
    monkeypatch.setattr(service_room, "SAMPLE_RUNS", tiny_ones)
    out = tmp_path / "made"
    assert isinstance(list(service.make_samples(out))[-1], Finished)
    (folder,) = out.iterdir()
    assert folder.name == "lora-rank-8"
    assert {path.name for path in folder.iterdir()} == {"config.json", "events.jsonl", *ADAPTER}
    assert json.loads((folder / "config.json").read_text())["training"]["max_steps"] == 2
    assert RunStore(out).open("lora-rank-8").status == "finished"
