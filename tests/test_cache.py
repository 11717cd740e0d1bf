"""Values made once and kept: how many, and what is left where making fails."""

import gc

import pytest

from lora_gpt.cache import Cache


def test_the_last_ones_are_kept():
    """Each is made once while it is kept; whoever was asked for longest ago goes first."""
    cache, made = Cache[str](2), []
    for key in "abacab":
        cache.get(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "b"]


def test_nothing_is_left_of_what_could_not_be_made():
    """Questions that cannot be answered are as many as there are bad files."""
    cache = Cache[int](2)
    for key in range(3):
        with pytest.raises(ZeroDivisionError):
            cache.get(key, lambda: 1 // 0)
    gc.collect()
    assert len(cache._making) == 0
    assert cache.get(0, lambda: 7) == 7
