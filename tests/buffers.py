"""What the key-value buffer of a generation reserves, and whether it is let go, for tests."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from transformers import DynamicCache

from rheostat.engines._slots import SlotCache


@contextmanager
def free_without_the_collector() -> Iterator[list[weakref.ref[torch.Tensor]]]:
    """Asserts at the end that all buffers reserved meanwhile are free, without the collector; gives references to them.

    A buffer may be most of a device's memory, and the next one follows at once.
    """
    held: list[weakref.ref[torch.Tensor]] = []
    reserve = SlotCache.reserve

    def noting(cache: SlotCache, like: DynamicCache, rows: int, columns: int, used: int) -> None:
        reserve(cache, like, rows, columns, used)
        held.extend(weakref.ref(layer.keys) for layer in cache.layers)

    gc.collect()
    gc.disable()
    try:
        with mock.patch.object(SlotCache, "reserve", noting):
            yield held
        assert held
        assert all(each() is None for each in held)
    finally:
        gc.enable()
