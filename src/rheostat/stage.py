"""One stage of a run: its shards, what makes them the same bytes after a kill, and the record at its end."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rheostat.errors import CorruptShard
from rheostat.executors.local import LOCAL
from rheostat.plugins import Executor
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import AnyRecord, Record
from rheostat.shard_work import Compute, EncodedWork, InThisProcess, ShardTask, ShardWork
from rheostat.storage import (
    corrupt,
    decode_shard,
    encode_shard,
    read_object,
    sha256,
    storage_errors,
    write_bytes,
    write_json,
)
from rheostat.stored_rows import StoredRows

_logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")

WHOLE_ROWS = 16_384
"""Rows of a shard of what is written at once: what is in memory as Python objects meanwhile."""


def content_key(ids: Sequence[str]) -> str:
    """SHA-256 over some items' ids: what a shard is a function of, beside the stage's inputs."""
    digest = hashlib.sha256()
    for each in ids:
        data = each.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def derive_seed(seed: int, key: str) -> int:
    """The seed of one piece of work, in [0, 2^63), from the run's seed and the piece's key."""
    return int(sha256(f"{seed}:{key}".encode())[:16], 16) >> 1


class Stage:
    """One stage's folder: shards of rows, other files of its own, and `done.json` at the end."""

    def __init__(self, name: str, path: Path, fingerprint: str, *, writable: bool) -> None:
        self.name = name
        self.path = path
        self.fingerprint = fingerprint
        self._writable = writable

    @property
    def done(self) -> bool:
        """Whether the stage has finished for its inputs."""
        return self._record().get("fingerprint") == self.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given."""
        assert self.done, f"stage {self.name} has not finished"
        summary: dict[str, Any] = self._record()["summary"]
        return summary

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the stage: the digest and row count of every shard, and a summary (JSON values)."""
        assert self._writable, self.name
        shards = {}
        for path in sorted(self.path.glob("*.parquet")):
            data = path.read_bytes()
            shards[path.name] = {"sha256": sha256(data), "bytes": len(data), "rows": _rows(data, path)}
        write_json(
            self.path / "done.json",
            {"stage": self.name, "fingerprint": self.fingerprint, "shards": shards, "summary": dict(summary)},
        )

    def map(
        self,
        items: Sequence[_Item],
        work: ShardWork[_Item] | Compute[_Item],
        *,
        key: Callable[[_Item], str],
        row_type: type[Record],
        shard_size: int,
        seed: int,
        label: str = "",
        unit: str = "items",
        progress: ProgressDisplay = null_progress,
        prefix: str = "shard",
        executor: Executor = LOCAL,
    ) -> int:
        """Compute the rows of `items`, a shard at a time, skipping shards that are on disk and readable.

        `work` is opened where `executor` runs it and then gives the rows of a shard from its items and its seed; a
        plain function `(items, seed) -> rows` runs in this process only. The seed derives from `seed` and the items'
        `key`s, so that a run that was killed and resumed, and one on a cluster, ends with the bytes of an uninterrupted
        one here. An unreadable shard is set aside as `*.corrupt` and done again. `shard_size` belongs among the stage's
        inputs, the executor does not. Gives how many rows it computed. Raises `StorageError`; whatever `work` raises
        passes.
        """
        assert self._writable, self.name
        if self.done:
            return 0
        starts = range(0, len(items), shard_size)
        paths = [self._shard_path(prefix, index) for index in range(len(starts))]
        for surplus in sorted(set(self._shard_paths(prefix)) - set(paths)):
            with storage_errors(surplus):
                surplus.unlink()
        missing: list[tuple[int, str]] = []
        for start, path in zip(starts, paths, strict=True):
            shard_key = content_key([key(item) for item in items[start : start + shard_size]])
            if not self._is_finished(path, shard_key, row_type):
                missing.append((start, shard_key))
        if not missing:
            return 0

        def tasks() -> Iterator[ShardTask[_Item]]:
            for start, shard_key in missing:
                yield ShardTask(items[start : start + shard_size], shard_key, derive_seed(seed, shard_key))

        lengths = [min(shard_size, len(items) - start) for start, _ in missing]
        opens = work if isinstance(work, ShardWork) else InThisProcess(self.name, work)
        computed = 0
        with progress.task(
            label or self.name, len(items), unit=unit, done=len(items) - sum(lengths)
        ) as advance:
            for place, encoded in executor.map(EncodedWork(opens, row_type), tasks()):
                write_bytes(paths[missing[place][0] // shard_size], encoded.data)
                computed += encoded.rows
                advance(lengths[place])
        return computed

    def write(self, rows: Iterable[Record], row_type: type[Record], *, prefix: str = "shard") -> int:
        """Write rows that are computed at once, a shard per `WHOLE_ROWS` of them; gives how many there were."""
        assert self._writable and not self.done, self.name
        remaining = iter(rows)
        count = 0
        for index in itertools.count():
            whole = list(itertools.islice(remaining, WHOLE_ROWS))
            if index and not whole:
                return count
            write_bytes(self._shard_path(prefix, index), encode_shard(whole, row_type, key="whole"))
            count += len(whole)
        raise AssertionError

    def read(self, row_type: type[AnyRecord], *, prefix: str = "shard") -> list[AnyRecord]:
        """The rows of all shards, in order; raises `CorruptShard` where one is not what was written."""
        return list(self.rows(row_type, prefix=prefix))

    def rows(self, row_type: type[AnyRecord], *, prefix: str = "shard") -> Iterator[AnyRecord]:
        """The rows that `read` gives, one shard in memory at a time."""
        return itertools.chain.from_iterable(self.shards(row_type, prefix=prefix))

    def shards(self, row_type: type[AnyRecord], *, prefix: str = "shard") -> Iterator[list[AnyRecord]]:
        """The rows of each shard, in order, read as they are asked for; raises `CorruptShard`."""
        expected: Mapping[str, Any] | None = self._record()["shards"] if self.done else None
        for name in self._names(expected, prefix):
            yield self._read(name, expected[name]["sha256"] if expected else None, row_type)

    def stored(self, row_type: type[AnyRecord], *, prefix: str = "shard") -> "StoredRows[AnyRecord]":
        """The rows of a finished stage as a sequence that reads a shard when a row of it is asked for."""
        assert self.done, self.name
        expected = self._record()["shards"]
        return StoredRows(
            [
                (expected[name]["rows"], partial(self._read, name, expected[name]["sha256"], row_type))
                for name in self._names(expected, prefix)
            ]
        )

    def verify(self) -> None:
        """Open a finished stage again where a shard of it is gone or not what was written."""
        if not self.done:
            return
        damaged = False
        for name, written in self._record()["shards"].items():
            path = self.path / name
            try:
                _shard_bytes(path, written["sha256"])
            except CorruptShard as error:
                damaged = True
                _set_aside(path, error)
        if damaged:
            with storage_errors(self.path):
                (self.path / "done.json").unlink()

    def _is_finished(self, path: Path, key: str, row_type: type[Record]) -> bool:
        if not path.exists():
            return False
        try:
            shard = decode_shard(_shard_bytes(path, None), row_type, path=path)
            if shard.key != key:
                raise corrupt(path, "it holds the rows of other items")
        except CorruptShard as error:
            _set_aside(path, error)
            return False
        return True

    def _names(self, expected: Mapping[str, Any] | None, prefix: str) -> list[str]:
        """The shards of a prefix: those on record, or before there is a record those on disk."""
        if expected is None:
            return [path.name for path in self._shard_paths(prefix)]
        return sorted(name for name in expected if name.rpartition("-")[0] == prefix)

    def _read(self, name: str, digest: str | None, row_type: type[AnyRecord]) -> list[AnyRecord]:
        path = self.path / name
        return decode_shard(_shard_bytes(path, digest), row_type, path=path).rows

    def _record(self) -> dict[str, Any]:
        record = read_object(self.path / "done.json")
        return record if {"fingerprint", "shards", "summary"} <= set(record) else {}

    def _shard_path(self, prefix: str, index: int) -> Path:
        return self.path / f"{prefix}-{index:05d}.parquet"

    def _shard_paths(self, prefix: str) -> list[Path]:
        return sorted(path for path in self.path.glob("*.parquet") if path.stem.rpartition("-")[0] == prefix)


def _shard_bytes(path: Path, expected: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise corrupt(path, error.strerror or str(error)) from error
    if expected is not None and sha256(data) != expected:
        raise corrupt(path, "its SHA-256 is not the recorded one")
    return data


def _set_aside(path: Path, error: CorruptShard) -> None:
    _logger.warning("%s; it is computed anew", error.message)
    if path.exists():
        with storage_errors(path):
            path.replace(path.with_name(path.name + ".corrupt"))


def _rows(data: bytes, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise corrupt(path, str(error)) from error
