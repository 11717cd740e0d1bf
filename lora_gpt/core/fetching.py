"""What small downloads share: how long a server may be silent, how soon one is tried again.

The page asks at every move of a knob; a network that is not there must not hold it up.
"""

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache

TIMEOUTS = (5, 30)
"""Seconds to connect, and to wait for more of an answer."""

_TRYING = threading.Lock()


@contextmanager
def faults_of_this_minute(*what: Hashable) -> Iterator[list[Exception]]:
    """Why `what` could not be had in this minute so far: empty for who tries first, to be filled by
    who fails. One thread at a time."""
    with _TRYING:
        yield _faults(int(time.monotonic() / 60), *what)


@lru_cache(maxsize=16)
def _faults(minute: int, *what: Hashable) -> list[Exception]:
    return []
