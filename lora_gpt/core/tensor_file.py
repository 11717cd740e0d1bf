"""Safetensors files and nothing else: opened with a memory map, written without a copy, refused in
plain words.

A pickle can run code when it is opened, so it is recognised by its first bytes and never read.
Large models come as several files and an index, which are read as one file. Knows nothing of
models: who asks says which tensors there must be.
"""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DTYPES = ("F32", "BF16", "F16")
INDEX = ".index.json"
"""How the name of an index of several files ends, as the Hugging Face Hub has it."""
LARGEST_INDEX = 2**24


class WeightsError(OSError):
    """Base weights are missing, out of reach or not what the model needs: one sentence that names
    what was looked at, the rule and what was found."""


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts with these (at least 9) bytes is a pickle or a zip of pickles."""
    # A safetensors header may begin with the same two bytes, as its length; its JSON then follows.
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return (pickled or start[:4] == b"PK\x03\x04") and start[8:9] != b"{"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The tensors of a safetensors file, or of an index and its files, on the CPU.

    They are read as from safetensors' `safe_open`. Raises WeightsError for anything else.
    """
    if not path.name.endswith(INDEX):
        with _opened_alone(path) as file:
            yield file
        return
    with ExitStack() as stack:
        parts = [path.with_name(name) for name in parts_of(path)]
        yield _Together(stack.enter_context(_opened_alone(part)) for part in parts)


def parts_of(index: Path) -> list[str]:
    """Names of the files that an index puts together; WeightsError for what is no index."""
    try:
        content = index.read_bytes() if index.stat().st_size <= LARGEST_INDEX else b""
        names = sorted(set(json.loads(content)["weight_map"].values()))
        # A plain name: an index from elsewhere must not lead out of its folder.
        plain = all(re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII) for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        names, plain = [], False
    if not names or not plain:
        raise WeightsError(
            f"{index}: must be the index of safetensors files beside it; got something else."
        )
    return names


class _Together:
    """Several open files, asked as one."""

    def __init__(self, files: Iterable[Any]):
        self._where: dict[str, Any] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                if name in self._where:
                    raise WeightsError(f"{name}: must stand in one of the files; got two.")
                self._where[name] = file

    def keys(self) -> list[str]:
        return [*self._where]

    def get_slice(self, name: str) -> Any:
        return self._where[name].get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)


@contextmanager
def _opened_alone(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise WeightsError(f"{path}: must be a safetensors file; got no file.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: must be a readable file; got {error.strerror}.") from error
    if is_pickle(start):
        raise WeightsError(
            f"{path}: must be a safetensors file, because a pickle can run code when it is opened;"
            " got a pickle."
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: must be a whole safetensors file, so download or copy it again; got"
            f" {path.stat().st_size:,} bytes that end early or are damaged ({error})."
        ) from error


def write(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    """Write `tensors`, with the words `about` them. Raises OSError where the file cannot be."""
    laid_out = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(laid_out, path, about)
        path.chmod(mode)  # the library leaves a file that its owner alone may read
    except SafetensorError as error:
        # The system's own number says whether the disk is full or closed to us.
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def check(file: Any, name: str, shape: tuple[int, ...], rows: int = 0) -> None:
    """Refuse a tensor of another shape or kind by its header alone, before anything is read.

    `rows` more than those of `shape` may be there.
    """
    found = file.get_slice(name)
    got = tuple(found.get_shape())
    longer = len(got) == len(shape) and got[0] <= shape[0] + rows and got[1:] == shape[1:]
    if got != shape and not (rows and longer and got[0] > shape[0]):
        raise WeightsError(f"{name}: must have shape {shape}; got {got}.")
    if found.get_dtype() not in DTYPES:
        raise WeightsError(f"{name}: must be {', '.join(DTYPES)}; got {found.get_dtype()}.")


def tensor(file: Any, name: str) -> Tensor:
    """One tensor as float32, mapped where the file holds that; WeightsError where it holds anything
    but finite numbers."""
    values = file.get_tensor(name).float()
    # One pass that keeps nothing: isfinite alone takes ten times as long, seconds for GPT-2.
    if not torch.isfinite(torch.stack(torch.aminmax(values))).all():
        strange = values[~torch.isfinite(values)][0].item()
        raise WeightsError(f"{name}: must hold finite numbers only; got {strange}.")
    return values
