"""Files that are whole or absent: atomic writes, and Parquet shards that are verified when read.

A file is written under a temporary name in its own folder, flushed to the disk and renamed; whoever is killed
in between leaves only a temporary file, which the next one to open the run removes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from rheostat.errors import CorruptShard, StorageError
from rheostat.records import AnyRecord, Record, from_table, schema, to_table

TEMPORARY = ".tmp-"
_KEY = b"rheostat.key"
_ROWS = b"rheostat.rows"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing `path` into a `StorageError` with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(_existing(path)).free
            raise StorageError(
                f"the disk is full: {path} could not be written ({free / 2**20:.0f} MiB free)",
                hint="free some space and run the same command again; finished shards are kept",
            ) from error
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="give a directory that you may write to (--out DIR)",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; raises `StorageError`."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    with storage_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; raises `StorageError`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; raises `StorageError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is absent or not one."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def require_object(path: Path) -> dict[str, Any]:
    """A JSON object of a finished stage; raises `CorruptShard` where it is absent or not one."""
    found = read_object(path)
    if not found:
        raise CorruptShard(
            f"{path} is corrupt: got no JSON object",
            hint=f"remove {path.parent} and run `rheostat run` on the directory again: it is computed anew",
        )
    return found


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside_and_remove(folder: Path) -> None:
    """Remove a folder so that a kill in the middle leaves it whole or under a temporary name."""
    aside = folder.with_name(f"{folder.name}{TEMPORARY}{os.getpid()}")
    with storage_errors(folder):
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        sync_folder(folder.parent)
        shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left under temporary names, at any depth."""
    with storage_errors(folder):
        for path in sorted(folder.rglob(f"*{TEMPORARY}*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Shard(Generic[AnyRecord]):
    """The rows of a shard file, and the content key of the items that they were computed from."""

    rows: list[AnyRecord]
    key: str


def encode_shard(rows: Sequence[Record], row_type: type[Record], *, key: str) -> bytes:
    """Rows as a Parquet file: equal rows and keys give equal bytes; every page carries a checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = to_table(rows, row_type)
    table = table.replace_schema_metadata({_KEY: key.encode(), _ROWS: str(len(rows)).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        version="2.6",
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_shard(data: bytes, row_type: type[AnyRecord], *, path: Path) -> Shard[AnyRecord]:
    """The rows of a Parquet file, its checksums verified; raises `CorruptShard`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True, use_threads=False)
        metadata = table.schema.metadata or {}
        key, count = metadata[_KEY].decode(), int(metadata[_ROWS])
        if table.num_rows != count or table.schema.names != schema(row_type).names:
            raise ValueError(f"{table.num_rows} rows of {table.schema.names}")
        table.validate(full=True)
        return Shard(from_table(table.cast(schema(row_type)), row_type), key)
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise corrupt(path, f"{type(error).__name__}: {reason}") from error


def corrupt(path: Path, reason: str) -> CorruptShard:
    """The error for a shard that is not as it was written."""
    return CorruptShard(
        f"{path} is corrupt ({reason})",
        hint="run `rheostat run` on the directory again: the shard is set aside and computed anew",
    )


def _existing(path: Path) -> Path:
    return next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
