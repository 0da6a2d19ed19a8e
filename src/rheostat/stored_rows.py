"""Stored rows as a sequence of which one shard at a time is in memory."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar, overload

_Row = TypeVar("_Row")


class StoredRows(Sequence[_Row]):
    """The rows of shards, each given as its number of rows and what reads it; the shard last read is held."""

    def __init__(self, shards: Sequence[tuple[int, Callable[[], list[_Row]]]]) -> None:
        self._readers = [read for _, read in shards]
        self._ends = list(accumulate(count for count, _ in shards))
        self._held: tuple[int, list[_Row]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> _Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Row]: ...
    def __getitem__(self, index: int | slice) -> _Row | list[_Row]:
        places = range(len(self))[index]
        return self._row(places) if isinstance(places, int) else [self._row(place) for place in places]

    def __iter__(self) -> Iterator[_Row]:
        return (row for shard in range(len(self._readers)) for row in self._shard(shard))

    def _row(self, place: int) -> _Row:
        shard = bisect_right(self._ends, place)
        return self._shard(shard)[place - (self._ends[shard - 1] if shard else 0)]

    def _shard(self, shard: int) -> list[_Row]:
        if self._held[0] != shard:
            self._held = (shard, self._readers[shard]())
        return self._held[1]
