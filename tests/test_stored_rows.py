"""Stored rows are the list they stand for, with one shard in memory; what is written at once is cut into shards."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import stage as stage_module
from rheostat.records import Response
from rheostat.rundir import RunDirectory
from rheostat.stored_rows import StoredRows

indices = st.one_of(st.none(), st.integers(-12, 12))


def rows_of(shards: list[list[int]], reads: list[int] | None = None) -> StoredRows[int]:
    def reader(place: int) -> Callable[[], list[int]]:
        def read() -> list[int]:
            if reads is not None:
                reads.append(place)
            return shards[place]

        return read

    return StoredRows([(len(shard), reader(place)) for place, shard in enumerate(shards)])


@given(
    st.lists(st.lists(st.integers(), max_size=4), max_size=4),
    indices,
    indices,
    st.sampled_from([None, 1, 2, 3, -1]),
)
def test_stored_rows_are_their_list(
    shards: list[list[int]], start: int | None, stop: int | None, step: int | None
) -> None:
    whole = [row for shard in shards for row in shard]
    stored = rows_of(shards)
    assert list(stored) == whole and len(stored) == len(whole)
    assert stored[start:stop:step] == whole[start:stop:step]
    assert [stored[index] for index in range(-len(whole), len(whole))] == whole * 2
    with pytest.raises(IndexError):
        stored[len(whole)]


def test_slices_in_order_read_each_shard_once() -> None:
    """Shards of 3 and slices of 2: the slice 2..3 ends one shard and begins the next."""
    reads: list[int] = []
    stored = rows_of([[0, 1, 2], [3, 4, 5]], reads)
    assert [stored[start : start + 2] for start in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]
    assert reads == [0, 1]


@pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4])])
def test_what_is_written_at_once_is_cut_into_shards(
    count: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "WHOLE_ROWS", 4)
    rows = [Response("p", index, "text", 1, "stop") for index in range(count)]
    with RunDirectory.open(tmp_path / "run", create=True) as run:
        stage = run.stage("s", inputs={})
        assert stage.write(iter(rows), Response) == count
        assert [len(shard) for shard in stage.shards(Response)] == sizes
        stage.finish({})
        assert stage.read(Response) == rows
        assert list(stage.stored(Response)) == rows
