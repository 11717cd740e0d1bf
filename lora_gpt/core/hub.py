"""One file from the Hugging Face Hub, with progress: cached files never touch the network.

`huggingface_hub` does the download (HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are its own); here it
runs in a thread, so that the caller hears twice a second how far it is, and its faults become
sentences that say what to do. Knows nothing of models.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2  # what huggingface_hub speaks with: connections that break raise its errors
import huggingface_hub
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    XetDownloadError,
)

from lora_gpt.core.fetching import TIMEOUTS
from lora_gpt.core.tensor_file import WeightsError
from lora_gpt.events import Progress

INTERVAL = 0.5
"""Seconds between two words on the progress."""
INSTEAD = (
    "choose the bundled mini, or name a folder that holds model.safetensors, on the command line"
    " with --weights"
)


@dataclass(frozen=True)
class Hub:
    """Where files come from and where they are kept; None takes huggingface_hub's own."""

    endpoint: str | None = None
    cache_dir: Path | None = None

    def cached(self, repository: str, name: str) -> Path | None:
        """The file where it lies on this machine, if it does."""
        try:
            found = try_to_load_from_cache(repository, name, cache_dir=self.cache_dir)
        except HFValidationError as error:
            raise WeightsError(
                f"Weights from: must be a folder or a repository owner/name; got {repository!r}."
            ) from error
        return Path(found) if isinstance(found, str) else None

    def ask(self, repository: str, name: str) -> None:
        """Whether the file could be had now: one short question, and nothing is downloaded.

        Raises as `fetch` does.
        """
        with _faults_told(repository, name):
            address = hf_hub_url(repository, name, endpoint=self.endpoint)
            get_hf_file_metadata(address, timeout=TIMEOUTS[0])

    def fetch(self, repository: str, name: str, stage: str) -> Generator[Progress, None, Path]:
        """The file, downloaded unless it is cached; yields Progress in bytes under `stage`.

        Raises FileNotFoundError where the repository is there and the file is not, and
        WeightsError for every other fault.
        """
        if found := self.cached(repository, name):
            return found
        if "HF_HUB_VERBOSITY" not in os.environ:
            # Its warnings tell of every try; ours say how far it is and, at the end, what is wrong.
            huggingface_hub.logging.set_verbosity_error()
        meter = _Meter()
        options: dict[str, Any] = {
            "endpoint": self.endpoint,
            "cache_dir": self.cache_dir,
            "tqdm_class": meter.bar,
        }
        pool = ThreadPoolExecutor(1)
        future: Future[str] = pool.submit(lambda: hf_hub_download(repository, name, **options))
        try:
            while not wait([future], INTERVAL).done:
                yield meter.progress(stage)
        finally:
            meter.cancelled = True  # closing this generator ends the download at its next chunk
            pool.shutdown(wait=False)
        with _faults_told(repository, name):
            path = Path(future.result())
        size = path.stat().st_size
        yield Progress(stage, size, size, 0.0)
        _check(path, repository, name)
        return path


@contextmanager
def _faults_told(repository: str, name: str) -> Iterator[None]:
    """Turns what goes wrong with a file of the Hub into FileNotFoundError or WeightsError."""
    try:
        yield
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no {name}.") from error
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError, XetDownloadError) as error:
        raise WeightsError(explained(error, repository, name)) from error


def explained(error: BaseException, repository: str, name: str) -> str:
    """What went wrong, and what to do, in words for people."""
    if isinstance(error, GatedRepoError):
        return (
            f"Weights from: {repository} asks for a permission that this machine does not have;"
            f" log in with 'hf auth login', {INSTEAD}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "Weights from: must be a repository on the Hugging Face Hub that you may read; got"
            f" {repository!r}, which was not found. Check its name, {INSTEAD}."
        )
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{name} of {repository} does not fit on the disk of the cache. Make room there, let"
            f" HF_HOME name a place that has it, {INSTEAD}."
        )
    if isinstance(cause, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE forbids to download it"
    elif isinstance(cause, HfHubHTTPError):
        why = f"the Hub answered {cause.response.status_code}"
    elif isinstance(cause, httpx2.HTTPError) or isinstance(error, LocalEntryNotFoundError):
        why = "the Hub could not be reached"
    else:
        why = f"the download failed ({cause})"
    return (
        f"{name} of {repository} is not on this machine and {why}. Connect to the internet once"
        f" and try again, {INSTEAD}."
    )


def _check(path: Path, repository: str, name: str) -> None:
    """Compare a fresh download with the checksum under which the Hub keeps it.

    The cache names a large file by its SHA-256. Small files, and systems without links, have other
    names and are checked by length alone. A damaged file is removed; raises WeightsError for it.
    """
    kept = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", kept.name):
        return
    with kept.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != kept.name:
        path.unlink()
        kept.unlink()
        raise WeightsError(
            f"{name} of {repository} must have the checksum {kept.name[:12]}…, arrived damaged"
            f" ({found[:12]}…) and was removed. Try again, {INSTEAD}."
        )


class _CancelledError(RuntimeError):
    """Nobody waits for this download any more."""


class _Meter:
    """How far a download is, over all the progress bars that huggingface_hub makes for it."""

    def __init__(self) -> None:
        self.bars: list[_Bar] = []
        self.cancelled = False
        self.started = time.monotonic()

    def bar(self, **about: Any) -> "_Bar":
        self.bars.append(_Bar(self, about.get("total"), about.get("initial", 0)))
        return self.bars[-1]

    def progress(self, stage: str) -> Progress:
        done = max((bar.n for bar in self.bars), default=0)
        total = max((bar.total or 0 for bar in self.bars[:1]), default=0)
        seconds = time.monotonic() - self.started
        left = seconds / done * (total - done) if 0 < done <= total else None
        return Progress(stage, done, total, left)


class _Bar:
    """As much of tqdm's bar as huggingface_hub uses; draws nothing."""

    def __init__(self, meter: _Meter, total: int | None, initial: int):
        self.meter, self.total, self.n = meter, total, initial
        self.format_dict: dict[str, Any] = {}

    def update(self, more: int = 1) -> None:
        if self.meter.cancelled:
            raise _CancelledError("download: stopped")
        self.n += more

    def close(self) -> None: ...

    def refresh(self) -> None: ...

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
