"""One stage of a run: its shards, what makes them the same bytes after a kill, and the record at its end."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rheostat.errors import CorruptShard
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import AnyRecord, Record
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

_logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")


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
        work: Callable[[Sequence[_Item], int], Sequence[Record]],
        *,
        key: Callable[[_Item], str],
        row_type: type[Record],
        shard_size: int,
        seed: int,
        label: str = "",
        unit: str = "items",
        progress: ProgressDisplay = null_progress,
        prefix: str = "shard",
    ) -> None:
        """Compute the rows of `items`, a shard at a time, skipping shards that are on disk and readable.

        `work(items, seed)` gives the rows of one shard; its seed derives from `seed` and the items' `key`s,
        so that a run that was killed and resumed ends with the bytes of an uninterrupted one. An unreadable
        shard is set aside as `*.corrupt` and done again. `shard_size` belongs among the
        stage's inputs. Raises `StorageError`; whatever `work` raises passes.
        """
        assert self._writable, self.name
        if self.done:
            return
        shards = [items[start : start + shard_size] for start in range(0, len(items), shard_size)]
        keys = [content_key([key(item) for item in shard]) for shard in shards]
        paths = [self._shard_path(prefix, index) for index in range(len(shards))]
        for surplus in sorted(set(self._shard_paths(prefix)) - set(paths)):
            with storage_errors(surplus):
                surplus.unlink()
        finished = [self._is_finished(*each, row_type) for each in zip(paths, keys, strict=True)]
        before = sum(len(shard) for shard, is_finished in zip(shards, finished, strict=True) if is_finished)
        with progress.task(label or self.name, len(items), unit=unit, done=before) as advance:
            for shard, shard_key, path, is_finished in zip(shards, keys, paths, finished, strict=True):
                if not is_finished:
                    rows = work(shard, derive_seed(seed, shard_key))
                    write_bytes(path, encode_shard(rows, row_type, key=shard_key))
                    advance(len(shard))

    def write(self, rows: Sequence[Record], row_type: type[Record], *, prefix: str = "shard") -> None:
        """Write rows that are computed at once as a single shard."""
        assert self._writable and not self.done, self.name
        write_bytes(self._shard_path(prefix, 0), encode_shard(rows, row_type, key="whole"))

    def read(self, row_type: type[AnyRecord], *, prefix: str = "shard") -> list[AnyRecord]:
        """The rows of all shards, in order; raises `CorruptShard` where one is not what was written."""
        expected: Mapping[str, Any] | None = self._record()["shards"] if self.done else None
        names = (
            [path.name for path in self._shard_paths(prefix)]
            if expected is None
            else sorted(name for name in expected if name.rpartition("-")[0] == prefix)
        )
        rows: list[AnyRecord] = []
        for name in names:
            path = self.path / name
            data = _shard_bytes(path, expected[name]["sha256"] if expected else None)
            rows += decode_shard(data, row_type, path=path).rows
        return rows

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
