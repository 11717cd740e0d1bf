"""Run folders: where a run's config, events, checkpoint and adapter stand.

A folder is the only meeting point of training and page, and holds plain files alone: `config.json`,
`owner.json`, `events.jsonl`, `checkpoint.safetensors`, `adapter_model.safetensors`,
`adapter_config.json`, `log.txt` and, where a file of messages was uploaded, that file. Two lock
files say who is at it: `claim.lock` is held by whoever trains, `queue.lock` by the queue that the
run waits in. The system lets go of them when a process dies, so a dead one never looks alive.
Knows nothing of torch, processes or pages.
"""

import errno
import hmac
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lora_gpt.config import BadValue, RunConfig
from lora_gpt.events import (
    Adapter,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Stopped,
    Validation,
    Write,
    from_json,
    to_json,
)

CONFIG, OWNER, EVENTS, LOG = "config.json", "owner.json", "events.jsonl", "log.txt"
CHECKPOINT = "checkpoint.safetensors"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
UPLOADS = ("messages.csv", "messages.tsv", "messages.txt")
_STOP, _CLAIM, _QUEUE = "stop", "claim.lock", "queue.lock"
NOBODY = ("", "command line")
"""Owners that nobody can be: of runs that were not started from a page, as they are kept now and
as they once were."""
MOST_NAME = 60
"""Characters that are kept of the name of an uploaded file."""
ABANDONED = 3600
"""Seconds after which a folder that is still being made is not any more."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Status = Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]


class StoreError(OSError):
    """A run folder cannot be read, written or taken. One sentence for people."""


class RunNotFound(StoreError):
    """No run has this id."""


@dataclass(frozen=True)
class Run:
    """One run folder. `created` is in seconds since 1970; `owner` is one of NOBODY where it was not
    started from a page."""

    path: Path
    config: RunConfig
    """As stored: an uploaded file is named relative to the folder, see `local_config`."""
    owner: str
    created: float
    upload: str = ""
    """What the uploaded file was called where it came from; empty where there is none."""

    @property
    def id(self) -> str:
        return self.path.name

    def owned_by(self, owner: str) -> bool:
        return _is_owner(self.owner, owner)

    def local_config(self) -> RunConfig:
        """The config as it can be trained here: an uploaded file by its full path."""
        data = self.config.data.data
        if data in UPLOADS and (self.path / data).is_file():
            return self.config.changed(data=str((self.path / data).resolve()))
        return self.config

    def told_config(self) -> RunConfig:
        """The config as people are told of it: an uploaded file under its own name."""
        named = self.upload and self.config.data.data in UPLOADS
        return self.config.changed(data=self.upload) if named else self.config

    def repeats(self, config: RunConfig, messages: bytes | None) -> bool:
        """Whether `config`, with `messages` as the content of its file, is this run again."""
        same = config if messages is None else config.changed(data=self.config.data.data)
        return self.config == same and self.uploaded() == messages

    def uploaded(self) -> bytes | None:
        """The content of the uploaded file; None for a data set known by name."""
        data = self.config.data.data
        return _contents(self.path / data) if data in UPLOADS else None

    # --- events ----------------------------------------------------------------------------------

    def append(self, event: Event) -> None:
        """Write one event. Raises StoreError where the folder takes no more."""
        line = to_json(event) + "\n"
        with _writing(self.path), (self.path / EVENTS).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A crash may have torn the last line: the next one must not be glued to it.
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())

    def since(self, offset: int = 0) -> tuple[list[Event], int]:
        """The events written since `offset` (bytes), and the offset to ask from next time.

        A line that is still being written is left for the next time; a torn one is skipped.
        """
        try:
            with (self.path / EVENTS).open("rb") as file:
                file.seek(max(0, offset))
                written = file.read()
        except OSError:
            return [], max(0, offset)
        whole = written[: written.rfind(b"\n") + 1]
        found = [_parsed(line) for line in whole.split(b"\n")]
        return [event for event in found if event is not None], max(0, offset) + len(whole)

    def length(self) -> int:
        """Bytes of events so far."""
        try:
            return (self.path / EVENTS).stat().st_size
        except OSError:
            return 0

    def keep(self, event: Event) -> None:
        """Write an event, and before it the files that it carries, each whole or not at all.

        A finished run is never resumed: its checkpoint, the largest file of the folder, goes.
        """
        if isinstance(event, Checkpoint | Adapter):
            for name, write in event.files.items():
                if name not in (CHECKPOINT, *ADAPTER):
                    raise ValueError(f"files: must be {CHECKPOINT}, {ADAPTER}; got {name!r}")
                with _writing(self.path):
                    _replace(self.path / name, write)
        self.append(event)
        if isinstance(event, Finished):
            with suppress(OSError):  # it takes room and does no harm
                (self.path / CHECKPOINT).unlink(missing_ok=True)

    def checkpoint(self) -> bytes | None:
        """The last checkpoint, if there is one."""
        return _contents(self.path / CHECKPOINT)

    def checkpoint_step(self) -> int:
        """Number of steps that the last checkpoint stands for; 0 without one."""
        if not (self.path / CHECKPOINT).is_file():
            return 0
        steps = [event.step for event in self.since()[0] if isinstance(event, Checkpoint)]
        return steps[-1] if steps else 0

    def adapter_paths(self) -> list[Path]:
        """Where the finished adapter's two files are; empty before it is written."""
        paths = [self.path / name for name in ADAPTER]
        return paths if all(path.is_file() for path in paths) else []

    def adapter_files(self) -> dict[str, bytes]:
        """The finished adapter's two files by name; empty before it is written."""
        found = {name: _contents(self.path / name) for name in ADAPTER}
        whole = {name: contents for name, contents in found.items() if contents is not None}
        return whole if len(whole) == len(ADAPTER) else {}

    def log(self, text: str) -> None:
        """Add lines to `log.txt`. Raises StoreError."""
        with _writing(self.path), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")

    # --- state -----------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether a process is training this run now."""
        return _is_locked(self.path / _CLAIM)

    @property
    def reserved(self) -> bool:
        """Whether a living queue keeps this run: it waits, or is being trained."""
        return _is_locked(self.path / _QUEUE)

    @property
    def status(self) -> Status:
        """Where the run stands. 'interrupted' has neither an end nor a living process."""
        if self.held:
            return "running"
        match self._turning_point():
            case Finished():
                return "finished"
            case Stopped():
                return "stopped"
            case Failed():
                return "failed"
            case Queued() | Resumed() if self.reserved:
                return "queued"
        return "interrupted"

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end and nobody asked for more, also while it is held."""
        return isinstance(self._turning_point(), Finished)

    def claim(self) -> "_Held":
        """A context in which this process alone trains the run. StoreError if another one does."""
        return _Held(self.path / _CLAIM, f"run: must not be trained twice at once; got {self.id}")

    def reserve(self) -> "_Held":
        """A context in which this process has the run in its queue. StoreError if another does."""
        return _Held(self.path / _QUEUE, f"run: must stand in one queue at a time; got {self.id}")

    def request_stop(self) -> None:
        """Ask whoever trains the run to stop after the event at hand."""
        with _writing(self.path):
            (self.path / _STOP).touch()

    def stop_requested(self) -> bool:
        return (self.path / _STOP).exists()

    def clear_stop(self) -> None:
        with _writing(self.path):
            (self.path / _STOP).unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove the folder for good. Raises StoreError for a run that is queued or running."""
        if self.held or self.reserved:
            raise StoreError(f"run: must be stopped before it is deleted; got {self.status}")
        gone = self.path.with_name(f".deleted-{self.id}-{secrets.token_hex(4)}")
        with _writing(self.path):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _turning_point(self) -> Event | None:
        """The last event that is more than news on the way, read from the end of the file."""
        with_news = (Progress, Validation, Checkpoint, Adapter)
        try:
            with (self.path / EVENTS).open("rb") as file:
                size, block = file.seek(0, os.SEEK_END), 1 << 16
                while True:
                    start = file.seek(max(0, size - block))
                    lines = file.read(size - start).split(b"\n")
                    # The first line is cut unless it begins the file; the last has no end yet.
                    for line in reversed(lines[1 if start else 0 : -1]):
                        event = _parsed(line)
                        if event is not None and not isinstance(event, with_news):
                            return event
                    if not start:
                        return None
                    block *= 8
        except OSError:
            return None


class RunStore:
    """All run folders under `root`, which is made when the first run is."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time):
        self.root, self._clock = Path(root), clock

    def create(
        self,
        config: RunConfig,
        owner: str = "",
        messages: bytes | None = None,
        name: str = "messages.csv",
    ) -> Run:
        """A new folder for a run. `messages` is the content of an uploaded file called `name`.

        Raises BadValue for a file of another kind than CSV, TSV or TXT, StoreError where the disk
        is full or closed to us; no half-made folder is left behind.
        """
        if messages is not None:
            kept_as = f"messages{Path(name).suffix.lower()}"
            if kept_as not in UPLOADS:
                raise BadValue("data", "must be a file ending in .csv, .tsv or .txt", name)
            config = config.changed(data=kept_as)
        run_id = secrets.token_hex(9)
        # Under a name that no id has, until it is whole.
        fresh = self.root / f".new-{run_id}"
        with _writing(self.root):
            try:
                fresh.mkdir(parents=True)
                if messages is not None:
                    (fresh / config.data.data).write_bytes(messages)
                about = {"owner": owner, "created": self._clock()}
                about |= {"upload": name} if messages is not None else {}
                (fresh / OWNER).write_text(json.dumps(about), encoding="utf-8")
                stored = json.dumps(config.to_json(), indent=2)
                (fresh / CONFIG).write_text(stored + "\n", encoding="utf-8")
                fresh.rename(self.root / run_id)
            except OSError:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
        return self.open(run_id)

    def open(self, run_id: str) -> Run:
        """The run with this id. Raises RunNotFound, or StoreError for a broken folder."""
        if not isinstance(run_id, str) or not _ID.fullmatch(run_id):
            rule = "must be the id of a run: at most 64 letters, digits, - and _"
            raise RunNotFound(f"run: {rule}; got {run_id!r}")
        path, reading = self.root / run_id, CONFIG
        try:
            config = RunConfig.from_json(json.loads((path / CONFIG).read_text(encoding="utf-8")))
            reading = OWNER
            about = _about(path)
            created = float(about.get("created", (path / CONFIG).stat().st_mtime))
            if not math.isfinite(created):
                raise BadValue("created", "must be a time in seconds", created)
            upload = _own_name(str(about.get("upload", "")))
            return Run(path, config, str(about.get("owner", "")), created, upload)
        except (FileNotFoundError, NotADirectoryError):
            rule = "must be the id of a run that is still there"
            raise RunNotFound(f"run: {rule}; got {run_id!r}") from None
        # JSON may be nested too deeply, and a number in it longer than any float.
        except (
            ValueError,
            TypeError,
            AttributeError,
            OSError,
            RecursionError,
            OverflowError,
        ) as error:
            raise StoreError(f"run: {run_id} must hold a readable {reading}; {error}") from error

    def runs(self, owner: str | None = None) -> list[Run]:
        """Every run, or every run of `owner`, newest first; of broken folders tells `broken`.

        Of other people's runs nothing is read but whose they are.
        """
        found = []
        for name in self._names():
            try:
                if owner is None or _is_owner(_owner(self.root / name), owner):
                    found.append(self.open(name))
            except StoreError:
                continue
        return sorted(found, key=lambda run: run.created, reverse=True)

    def broken(self) -> dict[str, str]:
        """What is wrong with each folder that holds a run and cannot be read, by its name."""
        found = {}
        for name in self._names():
            try:
                self.open(name)
            except RunNotFound:
                continue
            except StoreError as error:
                found[name] = str(error)
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.root.iterdir())
        except OSError:
            return []

    def stamp(self) -> int:
        """A number that changes when any run is made or deleted."""
        try:
            return self.root.stat().st_mtime_ns
        except OSError:
            return 0

    def sweep(self) -> None:
        """Remove what processes left that were killed while they made or deleted a folder."""
        for gone in self.root.glob(".deleted-*"):
            shutil.rmtree(gone, ignore_errors=True)
        for fresh in self.root.glob(".new-*"):
            with suppress(OSError):  # another process may just have made it whole
                if self._clock() - fresh.stat().st_mtime > ABANDONED:
                    shutil.rmtree(fresh, ignore_errors=True)


def _about(folder: Path) -> dict[str, Any]:
    """What `owner.json` says; a run that was trained elsewhere may come without it."""
    try:
        return json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _own_name(name: str) -> str:
    """The file's name in `name`, whatever a stranger wrote there: printable, without folders, and
    short, with its ending."""
    file = "".join(filter(str.isprintable, re.split(r"[/\\]", name)[-1])).strip()
    cut = len(file) > MOST_NAME
    return f"{file[: MOST_NAME - 8]}…{file[-7:]}" if cut else file


def _owner(folder: Path) -> str:
    """Whose run it is; nobody's where the folder does not say."""
    try:
        return str(_about(folder).get("owner", ""))
    except (ValueError, AttributeError, OSError, RecursionError):
        return ""


def _is_owner(kept: str, claimed: str) -> bool:
    # A file that was copied in may hold half of a pair of characters, which no encoding has.
    one, other = (name.encode(errors="surrogatepass") for name in (kept, claimed))
    return kept not in NOBODY and hmac.compare_digest(one, other)


# --- locks and files -----------------------------------------------------------------------------


class _Held:
    """A lock file that is held from `__enter__` to `__exit__`, by any thread of this process."""

    def __init__(self, path: Path, refusal: str):
        self._path, self._refusal = path, refusal
        self._lock = FileLock(path, thread_local=False)

    def __enter__(self) -> None:
        # Looking whether a lock is held takes it for a moment: one refusal is not yet an answer.
        try:
            with _writing(self._path.parent):
                self._lock.acquire(timeout=1, poll_interval=0.01)
        except Timeout:
            raise StoreError(self._refusal) from None

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# Two threads that look at once would each take the other for a holder.
_LOOKING = threading.Lock()
BLINK = 0.005
"""Seconds; a look takes far less."""


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the lock: another process that only looks is gone a moment later."""
    if _is_taken(path):
        time.sleep(BLINK)
        return _is_taken(path)
    return False


def _is_taken(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with _LOOKING, FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # read-only or gone: nobody can hold it


def _parsed(line: bytes) -> Event | None:
    try:
        return from_json(line.decode())
    except ValueError:
        return None


def _contents(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _replace(path: Path, write: Write) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, never a part."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        write(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


_RULES = {
    errno.ENOSPC: "needs free disk space",
    errno.EDQUOT: "needs free disk space",
    errno.EACCES: "must be a folder that this program may write to",
    errno.EPERM: "must be a folder that this program may write to",
    errno.EROFS: "must be a folder that this program may write to",
    errno.ENOENT: "must still be there",
}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what the system says about `folder` into one sentence."""
    try:
        yield
    except (StoreError, Timeout):
        raise
    except OSError as error:
        rule = _RULES.get(error.errno or 0, "must be writable")
        raise StoreError(f"run folder: {rule}; got {folder} ({error.strerror})") from error
