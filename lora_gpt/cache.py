"""Things that are slow to make, kept for the next who asks."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The last `size` values by key, each made once, however many threads ask at the same time.

    Fewer are kept where `fits` says of them that they are too much together; the newest always is.
    Whoever waits for one key does not hold up those who ask for another: a download of hours must
    not silence a classifier that is ready.
    """

    def __init__(self, size: int, fits: Callable[[Collection[Value]], bool] = lambda _: True):
        self._size, self._fits = size, fits
        self._lock = threading.Lock()
        # A lock goes with the last who makes or waits, also where making fails.
        self._making: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, from `make` the first time. What `make` raises is raised here."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            value = make()
            with self._lock:
                self._kept[key] = value
                while len(self._kept) > 1 and not self._has_room():
                    self._kept.popitem(last=False)
            return value

    def _has_room(self) -> bool:
        return len(self._kept) <= self._size and self._fits(self._kept.values())
