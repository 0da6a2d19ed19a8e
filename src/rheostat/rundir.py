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

A stage is valid for exactly its inputs: their fingerprint (which takes in the fingerprints of the stages it
reads) is written first, and a folder that holds another one is removed. What is in a stage: `stage.py`.
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rheostat.errors import (
    RunBusyError,
    RunDirectoryError,
    RunVersionError,
    StageMissing,
    StorageError,
)
from rheostat.stage import Stage as Stage
from rheostat.storage import (
    TEMPORARY,
    read_object,
    remove_leftovers,
    set_aside_and_remove,
    sha256,
    storage_errors,
    write_json,
    write_text,
)
from rheostat.version import __version__

FORMAT = 1
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "numpy",
    "scipy",
)

_logger = logging.getLogger(__name__)


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of some inputs: sorted keys, no spaces, no NaN."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(text.encode("utf-8"))


def _mark(name: str, inputs: Mapping[str, Any]) -> str:
    return fingerprint({"stage": name, "inputs": inputs})


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
                made_by = {"version": __version__, "created_by": "rheostat"}
                write_json(_manifest(path), {"format": FORMAT, **made_by})
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

    def stage(self, name: str, *, inputs: Mapping[str, Any]) -> Stage:
        """The stage `name` for these inputs, to be run or resumed.

        Results of other inputs are removed. Shards of a finished stage are verified: one that is not what
        was written is set aside as `*.corrupt` and the stage is open again.
        """
        assert self._lock is not None, "a run that is open for reading only computes nothing"
        folder = self._folder(name)
        outer = [parent for parent in folder.parents if (parent / "stage.json").exists()]
        assert not outer, f"stage {name} lies inside the stage {outer[0]}"
        mark = _mark(name, inputs)
        known = read_object(folder / "stage.json")
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

    def joined(self, name: str, *, inputs: Mapping[str, Any]) -> Stage:
        """The stage `name` that another process has opened by `stage` with these inputs, for reading."""
        stage = Stage(name, self._folder(name), _mark(name, inputs), writable=False)
        known = read_object(stage.path / "stage.json").get("fingerprint")
        assert known == stage.fingerprint, f"stage {name} was opened with other inputs"
        return stage

    def finished(self, name: str) -> Stage:
        """The finished stage `name`, for reading; raises `StageMissing` where it has not finished."""
        folder = self._folder(name)
        mark = read_object(folder / "stage.json").get("fingerprint")
        stage = Stage(name, folder, str(mark), writable=False)
        if mark is None or not stage.done:
            raise StageMissing(
                f"the stage {name!r} has not finished in {self.path}",
                hint=f"run `rheostat {name.partition('/')[0]} {self.path}` first, or all with `rheostat run`",
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
        assert all(part not in ("", ".", "..") and TEMPORARY not in part for part in parts), name
        return self.path.joinpath(*parts)


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
            f"there is no run in {path}",
            hint=f"start one with `rheostat run CONFIG --out {path}`, or check the path",
        )
    names = sorted(each.name for each in path.iterdir()) if path.exists() else []
    foreign = [name for name in names if name != "lock" and TEMPORARY not in name]
    if foreign:
        raise RunDirectoryError(
            f"{path} is not a run directory, and not empty: it holds {', '.join(foreign[:3])}"
            f"{' …' if len(foreign) > 3 else ''}",
            hint="give an empty or new directory (--out DIR)",
        )
    return False


def _check_manifest(path: Path) -> None:
    found = read_object(_manifest(path)).get("format")
    if found != FORMAT:
        raise RunVersionError(
            f"{path} has run format {found!r}, rheostat {__version__} reads format {FORMAT}",
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
            f"cannot lock {lock}: {error.strerror or error}",
            hint="put the run on a disk that has file locks and free space",
        ) from error
    return descriptor


def _changed(former: object, inputs: Mapping[str, Any]) -> str:
    if not isinstance(former, dict):
        return "its inputs"
    now = json.loads(json.dumps(inputs))
    names = sorted(name for name in {*former, *now} if former.get(name) != now.get(name))
    return ", ".join(names) or "its inputs"


def _is_torn(path: Path) -> bool:
    """Whether the last line lacks its end, because its writer was killed."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
