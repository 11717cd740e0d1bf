"""The one room that joins core, store and jobs: what the page and the command line may ask for.

Every question is answered with plain frozen values; every refusal is a `ValueError` or `OSError`
whose text is a sentence for people. Knows nothing of gradio.
"""

import csv
import io
import os
import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from lora_gpt.cache import Cache
from lora_gpt.classifiers import TURN, Classifiers
from lora_gpt.config import (
    DATA_SOURCES,
    MODELS,
    BadValue,
    LoRAConfig,
    RunConfig,
    twin_of,
)
from lora_gpt.core import cost, insight, structure, tokenizer
from lora_gpt.core.classify import Verdict, spam_probabilities
from lora_gpt.core.data import DataError, Message, read_messages, read_texts, texts_of_lines
from lora_gpt.core.evaluation import Metrics, measure
from lora_gpt.core.machine import choose_device
from lora_gpt.core.split import Split, split
from lora_gpt.core.training import train
from lora_gpt.core.weights import check_at_hand
from lora_gpt.events import Event, Finished, Started
from lora_gpt.jobs import Jobs
from lora_gpt.report import write_report
from lora_gpt.store import ADAPTER, CONFIG, EVENTS, Run, RunNotFound, RunStore, StoreError
from lora_gpt.words import run_label
from lora_gpt.worker import carry_out

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
SAMPLE = "sample"
"""The name under which the first bundled run is found."""
SAMPLE_RUNS: dict[str, dict[str, Any]] = {
    "lora-rank-8": {},
    "lora-rank-1": {"rank": 1, "alpha": 2.0},
    "head-only": {"method": "head"},
    "random-start": {"init": "random"},
}
"""The runs that ship trained, on the bundled messages: what each changes in the default run."""
Divided = tuple[list[Message], Split] | DataError | BadValue
Ends = tuple[Started | None, Finished | None, str]
MOST_TEXTS, MOST_CHARACTERS, MOST_STRENGTH = 2_000, 20_000, 10


@dataclass(frozen=True)
class Preview:
    """What the page shows of a data set before training. Lengths are in tokens of the model."""

    spam: int
    ham: int
    train: tuple[int, int]
    """Spam and ham in the training part."""
    validation: tuple[int, int]
    test: tuple[int, int]
    leaked: int
    near: int
    spam_lengths: tuple[int, ...]
    ham_lengths: tuple[int, ...]
    samples: tuple[Message, ...]
    """A few of each class, spam first."""


@dataclass(frozen=True)
class Plan:
    """What a run will do and roughly cost here, before it starts."""

    steps: int
    steps_per_epoch: int
    trainable: int
    total: int
    seconds: float
    memory_mb: float
    device: str
    precision: str = "float32"


@dataclass(frozen=True)
class Look:
    """What is new in a run: events from where the caller was, and where to ask from next time."""

    events: tuple[Event, ...]
    offset: int
    status: str
    """queued, running, finished, stopped, failed or interrupted."""
    position: int = 0
    """Place in the queue, 1 for the next; 0 when it does not wait."""


@dataclass(frozen=True)
class RunSummary:
    """One line of a list of runs."""

    id: str
    label: str
    status: str
    created: float
    """Seconds since 1970."""
    config: RunConfig
    started: Started | None = None
    finished: Finished | None = None
    problem: str = ""
    """What is wrong with the end of a run, which then has no `finished`."""


def default_runs() -> Path:
    """Where runs are kept without an option: LORA_GPT_RUNS, else the user's own data folder."""
    named = os.environ.get("LORA_GPT_RUNS")
    return Path(named) if named else platformdirs.user_data_path("lora_gpt", False) / "runs"


class Service:
    """Everything behind the page. One per process; safe to use from many threads."""

    def __init__(self, runs: Path, workers: int = 1, samples: Path = SAMPLES):
        self.store, self.samples = RunStore(runs), RunStore(samples)
        self.jobs = Jobs(self.store, workers=workers)
        self._classifiers = Classifiers()
        self._starting = threading.Lock()
        self._data: Cache[Divided] = Cache(8)
        self._ends: Cache[Ends] = Cache(500)
        self.store.sweep()

    def close(self) -> None:
        """End the workers; what they were doing stays in its folder."""
        self.jobs.close()

    # --- structure -------------------------------------------------------------------------------

    def tree(
        self, model: str, stage: str, lora: LoRAConfig, method: str = "lora"
    ) -> structure.Node:
        return structure.tree(model, stage, lora, method)

    def counts(
        self, model: str, lora: LoRAConfig, method: str = "lora"
    ) -> list[structure.StageCount]:
        return structure.counts(model, lora, method)

    def arithmetic(self, node: structure.Node) -> str:
        """How the count of a node comes about: '8 × (768 + 768) = 12,288'."""
        return structure.arithmetic(node)

    def printed(self, node: structure.Node) -> str:
        """What `print(model)` writes in a notebook."""
        return structure.printed(node)

    def memory(self, count: structure.StageCount) -> cost.Memory:
        return cost.memory_of(count)

    # --- before a run ----------------------------------------------------------------------------

    def preview(self, config: RunConfig, samples: int = 4) -> Preview:
        """Balance, lengths and examples of the messages that `config` would train on."""
        messages, parts = self._divided(config)
        encoding = tokenizer.load(MODELS[config.model].encoding)

        def both(part: Sequence[Message]) -> tuple[int, int]:
            spam = sum(message.is_spam for message in part)
            return spam, len(part) - spam

        lengths = [len(encoding.encode_ordinary(message.text)) for message in messages]
        spam = [n for n, m in zip(lengths, messages, strict=True) if m.is_spam]
        ham = [n for n, m in zip(lengths, messages, strict=True) if not m.is_spam]
        shown = [m for m in parts.train if m.is_spam][:samples]
        shown += [m for m in parts.train if not m.is_spam][:samples]
        return Preview(
            len(spam),
            len(ham),
            both(parts.train),
            both(parts.validation),
            both(parts.test),
            parts.leaked,
            parts.near,
            tuple(spam),
            tuple(ham),
            tuple(shown),
        )

    def plan(self, config: RunConfig) -> Plan:
        """Steps, trained share, and an estimate of time and memory measured on this machine."""
        self._check(config)
        _, parts = self._divided(config)
        device = choose_device(config.training.device)
        encoding = tokenizer.load(MODELS[config.model].encoding)
        longest = tokenizer.longest_message(
            encoding, config.architecture.context_length, config.training.max_tokens
        )
        lengths = [len(tokenizer.encode(encoding, m.text, longest)) for m in parts.train]
        expected = cost.estimate(config, lengths, device)
        method = config.training.method
        root = structure.tree(config.model, "classifier", config.lora, method, config.shape)
        return Plan(
            expected.steps,
            config.training.steps_per_epoch(len(lengths)),
            root.trainable,
            root.parameters,
            expected.seconds,
            expected.memory_mb,
            str(device),
            expected.precision,
        )

    def _divided(self, config: RunConfig) -> tuple[list[Message], Split]:
        """The messages and their split, or why there are none, kept for the next question about the
        same data: to refuse a file may take as long as to divide it."""
        path = Path(config.data.data)
        stamp = path.stat().st_mtime_ns if path.is_file() else 0

        def divide() -> Divided:
            try:
                messages = read_messages(config.data)
                return messages, split(messages, config.data, config.seed)
            except (DataError, BadValue) as refusal:
                if not stamp:  # a download may be had the next time
                    raise
                return refusal.with_traceback(None)  # which holds all that was read

        found = self._data.get((config.data, config.seed, stamp), divide)
        if isinstance(found, Exception):
            raise found
        return found

    # --- runs ------------------------------------------------------------------------------------

    def start(self, config: RunConfig, owner: str, upload: Path | None = None) -> str:
        """Make a run folder, queue it and return its id. The data are read once before, so that a
        bad file is refused here and not in the worker. Asked twice while the first run is under
        way, as by a double click, it returns the first: the second would only repeat it."""
        if upload is not None:
            config = config.changed(data=str(upload))
        self._check(config)
        check_at_hand(config)
        contents = upload.read_bytes() if upload else None
        with self._starting:
            for run in self.store.runs(owner):
                under_way = run.status in ("queued", "running") and not run.stop_requested()
                if run.repeats(config, contents) and under_way:
                    return run.id
            run = self.store.create(config, owner, contents, upload.name if upload else "")
            try:
                self.jobs.submit(run.id)
            # A full queue or disk must not leave a run that nobody asked for.
            except (ValueError, OSError):
                with suppress(OSError):  # of the two refusals the first one counts
                    run.delete()
                raise
        return run.id

    def owns(self, run_id: str, owner: str) -> bool:
        """Whether `owner` started the run, and so may stop, resume and delete it."""
        return self.find(run_id).owned_by(owner)

    def twin(self, run_id: str, owner: str) -> str | None:
        """The id of a run that differs from `run_id` in its starting weights alone: the newest of
        `owner`, else a bundled one."""
        run = self.find(run_id)
        wanted, messages = twin_of(run.config), run.uploaded()
        if wanted is None:
            return None
        others = [*self.store.runs(owner), *self.samples.runs()]
        return next((each.id for each in others if each.repeats(wanted, messages)), None)

    def run_here(self, config: RunConfig) -> tuple[str, Iterator[Event]]:
        """Make a run folder and train in this process: its id, and the events as they come."""
        # Files and folders are found again from wherever the run is resumed or asked.
        path, weights = Path(config.data.data), Path(config.weights)
        if config.data.data not in DATA_SOURCES and path.is_file():
            config = config.changed(data=str(path.resolve()))
        if config.weights and weights.exists():
            config = config.changed(weights=str(weights.resolve()))
        self._check(config)
        check_at_hand(config)
        run = self.store.create(config)
        return run.id, carry_out(run, train)

    def resume_here(self, run_id: str) -> tuple[str, Iterator[Event]]:
        """Go on with a run in this process. Raises StoreError where another one trains it."""
        run = self.store.open(run_id)
        if run.reserved:
            rule = "must not wait in the queue of a server to be resumed here"
            raise BadValue("run", rule, run_id)
        with run.claim():  # another process may train it, and have been asked to stop
            if run.is_finished:
                raise BadValue("run", "must not be finished to be resumed", run_id)
            run.clear_stop()
        return run.id, carry_out(run, train)

    def _check(self, config: RunConfig) -> None:
        """Refuse what the worker would refuse, before there is a run."""
        _, parts = self._divided(config)
        tokenizer.load(MODELS[config.model].encoding)
        choose_device(config.training.device)
        config.training.steps_per_epoch(len(parts.train))

    def make_samples(self, out: Path = SAMPLES) -> Iterator[Event]:
        """Train the runs that ship and put them in `out`, without owners and checkpoints."""
        for name, changes in SAMPLE_RUNS.items():
            run_id, events = self.run_here(RunConfig().changed(**changes))
            yield from events
            run, folder = self.store.open(run_id), out / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in (CONFIG, EVENTS, *ADAPTER):
                shutil.copy(run.path / file, folder / file)

    def stop(self, run_id: str, owner: str) -> None:
        self._own(run_id, owner)
        self.jobs.stop(run_id)

    def resume(self, run_id: str, owner: str) -> None:
        self._own(run_id, owner)
        self.jobs.resume(run_id)

    def delete(self, run_id: str, owner: str) -> None:
        self._own(run_id, owner).delete()

    def _own(self, run_id: str, owner: str) -> Run:
        """The run, if `owner` started it; otherwise it is as if it did not exist."""
        run = self.store.open(run_id)
        if not run.owned_by(owner):
            raise RunNotFound(f"run: only the browser that started run {run_id} may do this")
        return run

    def find(self, run_id: str) -> Run:
        """A run by id, or a bundled one by name; SAMPLE is the first of those."""
        if run_id == SAMPLE:
            return self.samples.open(next(iter(SAMPLE_RUNS)))
        try:
            return self.samples.open(run_id)
        except RunNotFound:
            return self.store.open(run_id)

    def since(self, run_id: str, offset: int = 0) -> Look:
        """What `run_id` has said since `offset` (0: from the beginning)."""
        run = self.find(run_id)
        status = run.status  # before the events: a run that ends meanwhile is seen next time
        events, reached = run.since(offset)
        return Look(tuple(events), reached, status, self.jobs.position(run_id) or 0)

    def runs(self, owner: str | None = None) -> list[RunSummary]:
        """The runs of `owner` (None: of everybody), newest first."""
        return [self._summary(run) for run in self.store.runs(owner)]

    def stamp(self) -> int:
        """A number that changes when a run is made or deleted, whosever it is."""
        return self.store.stamp()

    def is_at(self, statuses: Mapping[str, str]) -> bool:
        """Whether every run, by its id, still has this status."""
        try:
            return all(self.store.open(id).status == status for id, status in statuses.items())
        except StoreError:
            return False

    def sample_runs(self) -> list[RunSummary]:
        """The bundled trained runs."""
        there = {run.id: run for run in self.samples.runs()}
        return [self._summary(there[name]) for name in SAMPLE_RUNS if name in there]

    def summary(self, run_id: str) -> RunSummary:
        return self._summary(self.find(run_id))

    def _summary(self, run: Run) -> RunSummary:
        """Of the folder as it was opened: one that is deleted meanwhile spoils no list."""
        status = run.status

        # A finished run stays as it is, and stands in every list.
        done, key = status == "finished", (run.path, run.length())
        ends = self._ends.get(key, lambda: _ends(run)) if done else _ends(run)
        label = run_label(run.told_config())
        return RunSummary(run.id, label, status, run.created, run.config, *ends)

    def adapter_archive(self, run_id: str, cache: Path) -> Path:
        """A zip of the adapter's files and the report, to use elsewhere, as a file under `cache`:
        the same one until the run goes on. It is never in memory, for it may hold all of GPT-2."""
        run = self.find(run_id)
        files = run.adapter_paths()
        if not files:
            raise RunNotFound(f"run: {run_id} has no adapter yet; it is kept when training ends")
        made = cache / f"{run.id}-{run.length()}" / f"lora_gpt-{run.id}.zip"
        if made.is_file():
            made.touch()  # whoever clears the cache sees that it is asked for
            return made
        report = self.report(run_id)
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_name(f"{secrets.token_hex(4)}.part")
        try:
            # As they are: trained numbers hardly get smaller.
            with zipfile.ZipFile(part, "w", strict_timestamps=False) as archive:
                for file in files:
                    archive.write(file, file.name)
                archive.writestr("report.md", report)
            part.replace(made)
        finally:
            part.unlink(missing_ok=True)
        return made

    def report(self, run_id: str) -> str:
        """The lab report of a run, in Markdown."""
        run = self.find(run_id)
        if problem := self._summary(run).problem:
            raise StoreError(problem)
        events, _ = run.since(0)
        config = run.told_config()
        method = config.training.method
        stages = structure.counts(config.model, config.lora, method, config.shape)
        return write_report(run.id, config, events, stages)

    # --- classification --------------------------------------------------------------------------

    def classify(self, run_id: str, texts: Sequence[str], strength: float = 1.0) -> list[Verdict]:
        """A verdict for each text, the adapter at `strength` (0: the base, 1: as trained).

        Raises BadValue for no text, too many, one too long, and a strength outside 0 to 10.
        """
        checked = _checked_texts(texts)
        if not isinstance(strength, int | float) or not 0 <= strength <= MOST_STRENGTH:
            raise BadValue("strength", f"must be a number from 0 to {MOST_STRENGTH}", strength)
        return self._classifiers.in_turn(self.find(run_id), strength).verdicts(checked)

    def classify_before(self, run_id: str, texts: Sequence[str]) -> list[Verdict]:
        """What the same model said before its training: the base under the untrained head."""
        checked = _checked_texts(texts)
        return self._classifiers.before(self.find(run_id)).verdicts(checked)

    def attributions(self, run_id: str, text: str) -> list[insight.Word]:
        checked = _checked_texts([text])[0]
        return insight.word_attributions(self._classifiers.in_turn(self.find(run_id)), checked)

    def strength_curve(self, run_id: str, text: str) -> list[tuple[float, float]]:
        """p_spam of `text` at strengths 0, 0.1, ... 2."""
        checked, strengths = _checked_texts([text])[0], [step / 10 for step in range(21)]
        run = self.find(run_id)
        return insight.strength_curve(lambda: self._classifiers.of(run), checked, strengths, TURN)

    def updates(self, run_id: str) -> list[insight.Update]:
        with self._classifiers.of(self.find(run_id)) as classifier:
            return insight.updates(classifier.model)

    def classify_lines(self, run_id: str, text: str) -> list[Verdict]:
        """A verdict for each message of a text, as if it stood in a text file."""
        return self.classify(run_id, texts_of_lines(text))

    def classify_file(self, run_id: str, path: Path) -> list[Verdict]:
        """A verdict for each message of a CSV, TSV or text file. Raises DataError for a bad one."""
        return self.classify(run_id, read_texts(path, MOST_TEXTS))

    def evaluate(self, run_id: str, config: RunConfig) -> Metrics:
        """The run's classifier on every message of `config.data`."""
        messages = read_messages(config.data)
        with self._classifiers.of(self.find(run_id)) as classifier:
            sequences = classifier.encode([message.text for message in messages])
            return measure(messages, spam_probabilities(classifier.model, sequences))


def _ends(run: Run) -> Ends:
    """How a run began and ended, and what is wrong with its end."""
    events, _ = run.since(0)
    started = [event for event in events if isinstance(event, Started)]
    finished = [event for event in events if isinstance(event, Finished)]
    first, last = started[-1] if started else None, finished[-1] if finished else None
    try:
        for measured in (last.test, last.baseline) if last else ():
            Metrics.from_json(measured)
    except BadValue as error:
        return (
            first,
            None,
            f"run: {run.id} must hold a readable {EVENTS}; {error.field} {error.rule}",
        )
    return first, last, ""


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """Messages with label and p_spam, as CSV.

    Cells that a spreadsheet would take for a formula are kept as text by a leading apostrophe.
    """
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["label", "p_spam", "text"])
    for each in verdicts:
        formula = each.text.lstrip()[:1] in ("=", "+", "-", "@")
        table.writerow([each.label, f"{each.p_spam:.4f}", ("'" if formula else "") + each.text])
    return written.getvalue()


def _checked_texts(texts: Sequence[str]) -> list[str]:
    given = [text.strip() for text in texts if text.strip()]
    if not given:
        raise BadValue("text", "must not be empty", "")
    if len(given) > MOST_TEXTS:
        raise BadValue("text", f"must be at most {MOST_TEXTS:,} at once", len(given))
    for text in given:
        if len(text) > MOST_CHARACTERS:
            rule = f"must be at most {MOST_CHARACTERS:,} characters long"
            raise BadValue("text", rule, f"{len(text):,} characters")
    return given
