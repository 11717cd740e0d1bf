"""Ctrl-C while a command starts: one line, whichever library was being imported."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code of what Ctrl-C ended: 128 and the number of the signal, as shells have it."""


@contextmanager
def starting() -> Iterator[None]:
    """A context, for imports that take seconds, in which Ctrl-C ends the process at once.

    Libraries that are imported may catch an exception and go on half made. Changes nothing where
    Ctrl-C is handled otherwise, as behind `nohup`, or in another thread than the first.
    """
    usual = signal.default_int_handler
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _end(*_: object) -> None:
    os.write(2, b"lora_gpt: interrupted\n")
    os._exit(INTERRUPTED)
