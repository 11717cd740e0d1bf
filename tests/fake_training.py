"""Stands in for `core.training.train` in tests of the queue; the worker process finds it by name.

What it does is written in the config's `weights`; it makes `max_steps` steps.
"""

import atexit
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lora_gpt.config import BadValue, RunConfig
from lora_gpt.events import Adapter, Checkpoint, Event, Finished, Progress, Started, Step, Write

PARTS = (0, 0, 0, 0, 0)  # sizes of the parts, leaks
SPEED = (0.0, 0.0, 0.0)  # tokens and messages a second, seconds left
FAULTS = {
    "bad value": BadValue("rank", "must be smaller", 8),
    "surprise": RuntimeError("a fault that nobody foresaw"),
    "memory": MemoryError(),
    "device memory": RuntimeError("out of memory. Tried to allocate 2 GiB"),
    "not finite": ArithmeticError("learning_rate: must be lower; got 1"),
    "overflow": OverflowError("too large"),
}


def writes(contents: bytes) -> Write:
    """What an event carries for a file of `contents`."""

    def write(path: Path) -> None:
        path.write_bytes(contents)

    return write


def linger(until: Path) -> None:
    while not until.exists():
        time.sleep(0.01)


def train(config: RunConfig, checkpoint: bytes | None = None) -> Iterator[Event]:
    first, last = int(checkpoint or b"0"), config.training.max_steps
    print("training prints to standard output")
    if config.weights == "lingers":
        atexit.register(linger, Path(config.data.data))
        raise RuntimeError("a fault after which the process is long in ending")
    yield Progress("loading", 0, 1)
    yield Started(last, last, *PARTS, 1, 2, f"process {os.getpid()}", 1, first)
    for step in range(first, last):
        if config.weights == "slow":
            time.sleep(0.02)
        if step == 2 and config.weights in FAULTS:
            raise FAULTS[config.weights]
        if step == 2 and config.weights == "exit":
            os._exit(3)
        yield Step(step, 1, step + 1, 0.5, 0.9, 1e-3, 1.0, 10, 8, 0.1, *SPEED)
        if (step + 1) % 2 == 0:
            yield Checkpoint(step + 1, {"checkpoint.safetensors": writes(str(step + 1).encode())})
    about = Path(config.data.data).read_bytes() if Path(config.data.data).is_file() else b"-"
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": about}
    yield Adapter(last, {name: writes(contents) for name, contents in files.items()})
    torch_is_here = {"torch": "torch" in sys.modules}
    yield Finished(last, 0.1, 0.2, 1.0, None, torch_is_here, {}, 1.0)
