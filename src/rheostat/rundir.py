"""The run directory: what it holds, who may write in it, what is still valid, and how a stage resumes.

```
RUN/
  rheostat.json      format, version
  config.yaml        the resolved recipe
  environment.json   versions, cores, device
  timings.jsonl      seconds and counts, appended; part of no fingerprint
  lock               held while a process works here
  generate/          a stage: its fingerprint in stage.json, shards, and done.json once it has finished
  train/exmate/      stages may be grouped
```

A stage is valid for exactly its inputs: their fingerprint (which takes in the fingerprints of the stages it reads)
is written first, and a folder that holds another one is removed. A shard's seed derives from the run's seed and
from the shard's content, so a run that was killed and resumed ends with the bytes of an uninterrupted one.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rheostat.errors import (
    CorruptShard,
    RunBusyError,
    RunDirectoryError,
    RunVersionError,
    StageMissing,
    StorageError,
)
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import AnyRecord, Record
from rheostat.storage import (
    TEMPORARY,
    corrupt,
    decode_shard,
    encode_shard,
    remove_leftovers,
    set_aside_and_remove,
    sha256,
    storage_errors,
    write_bytes,
    write_json,
    write_text,
)
from rheostat.version import __version__

FORMAT = 1
PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "pyarrow", "numpy", "scipy")

_logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of some inputs: sorted keys, no spaces, no NaN."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(text.encode("utf-8"))


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


def environment() -> dict[str, Any]:
    """Versions and cores of this machine; loads none of the packages."""
    versions: dict[str, str] = {"rheostat": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "platform": platform.platform(), "cores": os.cpu_count()}


class RunDirectory:
    """A run's folder, locked for this process unless it was opened for reading only; use it in a `with`."""

    def __init__(self, path: Path, *, read_only: bool, lock: int | None) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False, read_only: bool = False) -> Self:
        """Open a run directory, or with `create` start one in an empty or absent folder.

        `read_only` takes no lock and writes nothing. Raises `RunDirectoryError` (no run there, or a folder of
        something else), `RunVersionError`, `RunBusyError`, `StorageError`.
        """
        assert not (create and read_only)
        path = Path(path)
        if _holds_run(path, create=create):
            _check_manifest(path)
        if read_only:
            return cls(path, read_only=True, lock=None)
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            if _manifest(path).exists():
                _check_manifest(path)
            else:
                write_json(_manifest(path), {"format": FORMAT, "version": __version__, "created_by": "rheostat"})
            remove_leftovers(path)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, read_only=False, lock=lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def config_path(self) -> Path:
        """Where the resolved recipe is."""
        return self.path / "config.yaml"

    def write_config(self, text: str) -> None:
        """Write the resolved recipe."""
        write_text(self.config_path, text)

    def write_environment(self, **more: Any) -> None:
        """Write versions, cores and what else is given (the device)."""
        write_json(self.path / "environment.json", {**environment(), **more})

    def stage(self, name: str, *, inputs: Mapping[str, Any]) -> "Stage":
        """The stage `name` for these inputs, to be run or resumed.

        Results of other inputs are removed. Shards of a finished stage are verified: where one is not what was
        written, it is set aside as `*.corrupt` and the stage is open again.
        """
        assert self._lock is not None, "a run that is open for reading only computes nothing"
        folder = self._folder(name)
        outer = [parent for parent in folder.parents if (parent / "stage.json").exists()]
        assert not outer, f"stage {name} lies inside the stage {outer[0]}"
        mark = fingerprint({"stage": name, "inputs": inputs})
        known = _read_object(folder / "stage.json")
        inner = [each.parent.name for each in folder.glob("*/stage.json")]
        assert not inner, f"stage {name} has stages inside it: {inner}"
        if folder.exists() and known.get("fingerprint") != mark:
            if known:
                changed = _changed(known.get("inputs"), inputs)
                _logger.warning("%s: %s changed, so its former results are removed", name, changed)
            set_aside_and_remove(folder)
        if not folder.exists():
            with storage_errors(folder):
                folder.mkdir(parents=True)
            write_json(folder / "stage.json", {"stage": name, "fingerprint": mark, "inputs": inputs})
        stage = Stage(name, folder, mark, writable=True)
        stage.verify()
        return stage

    def finished(self, name: str) -> "Stage":
        """The finished stage `name`, for reading; raises `StageMissing` where it has not finished."""
        folder = self._folder(name)
        mark = _read_object(folder / "stage.json").get("fingerprint")
        stage = Stage(name, folder, str(mark), writable=False)
        if mark is None or not stage.done:
            raise StageMissing(
                f"the stage {name!r} has not finished in {self.path}",
                hint=f"run `rheostat {name.split('/')[0]} {self.path}` first, or `rheostat run` for all stages",
            )
        return stage

    def record_timing(self, stage: str, seconds: float, **counts: int | float) -> None:
        """Append what a stage took, in seconds, with counts of what it did."""
        path = self.path / "timings.jsonl"
        line = json.dumps({"stage": stage, "seconds": seconds, **counts}, allow_nan=False)
        with storage_errors(path), path.open("ab") as file:
            file.write(("\n" if _is_torn(path) else "").encode() + line.encode() + b"\n")

    def timings(self) -> list[dict[str, Any]]:
        """Every recorded timing, oldest first; a line torn by a kill is left out and logged."""
        path = self.path / "timings.jsonl"
        rows = []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                _logger.warning("%s line %d is torn and left out", path.name, number)
        return rows

    def _folder(self, name: str) -> Path:
        parts = name.split("/")
        assert parts and all(part and part not in (".", "..") and TEMPORARY not in part for part in parts), name
        return self.path.joinpath(*parts)


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

        `work(items, seed)` gives the rows of one shard; its seed derives from `seed` and the items' `key`s, and is
        the same however often the run was killed. An unreadable shard is set aside as `*.corrupt` and done again.
        `shard_size` belongs among the stage's inputs. Raises `StorageError`; whatever `work` raises passes.
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
        record = _read_object(self.path / "done.json")
        return record if {"fingerprint", "shards", "summary"} <= set(record) else {}

    def _shard_path(self, prefix: str, index: int) -> Path:
        return self.path / f"{prefix}-{index:05d}.parquet"

    def _shard_paths(self, prefix: str) -> list[Path]:
        return sorted(path for path in self.path.glob("*.parquet") if path.stem.rpartition("-")[0] == prefix)


def _manifest(path: Path) -> Path:
    return path / "rheostat.json"


def _holds_run(path: Path, *, create: bool) -> bool:
    """Whether a run is there; raises `RunDirectoryError` where none is and none may be started."""
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file, not a run directory", hint="give a directory")
    if _manifest(path).exists():
        return True
    if not create:
        raise RunDirectoryError(
            f"there is no run in {path}", hint=f"start one with `rheostat run CONFIG --out {path}`, or check the path"
        )
    foreign = sorted(
        each.name for each in (path.iterdir() if path.exists() else ()) if each.name != "lock" and TEMPORARY not in each.name
    )
    if foreign:
        raise RunDirectoryError(
            f"{path} is not a run directory, and not empty: it holds {', '.join(foreign[:3])}"
            f"{' …' if len(foreign) > 3 else ''}",
            hint="give an empty or new directory (--out DIR)",
        )
    return False


def _check_manifest(path: Path) -> None:
    found = _read_object(_manifest(path)).get("format")
    if found != FORMAT:
        raise RunVersionError(
            f"{path} has run format {found!r}, this version of rheostat ({__version__}) reads format {FORMAT}",
            hint="use the version that wrote it, or start anew in another directory (--out DIR)",
        )


def _lock(path: Path) -> int:
    lock = path / "lock"
    with storage_errors(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise RunBusyError(
            f"another process{f' ({holder})' if holder else ''} is working in {path}",
            hint="wait until it has finished, or give another directory (--out DIR)",
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise StorageError(
            f"cannot lock {lock}: {error.strerror or error}", hint="put the run on a disk that has file locks and space"
        ) from error
    return descriptor


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is absent or not one."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _changed(former: object, inputs: Mapping[str, Any]) -> str:
    if not isinstance(former, dict):
        return "its inputs"
    now = json.loads(json.dumps(inputs))
    names = sorted(name for name in {*former, *now} if former.get(name) != now.get(name))
    return ", ".join(names) or "its inputs"


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


def _is_torn(path: Path) -> bool:
    """Whether the last line lacks its end, because its writer was killed."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
