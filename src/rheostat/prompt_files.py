"""Prompt files of every kind as numbered lines, each with its conversation or what is wrong with it."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rheostat.errors import PromptFileError
from rheostat.prompt_rows import COLUMNS, PROMPT_COLUMNS, TURN_COLUMNS, Line, kind_of, read_row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_PACKED = ".gz"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path, column: str | None = None) -> Iterator[Line]:
    """Every row of a prompt file; blank lines of `.txt`, `.jsonl` and `.csv` are none.

    The number is a line's in `.txt`, `.jsonl` and `.csv` (where a row begins), an item's in `.json`, a row's
    in `.parquet`; `.jsonl`, `.txt` and `.parquet` are not held in memory. The prompt is in `column`, or where
    `conversation` finds it. Raises `PromptFileError` where the file as a whole cannot be read.
    """
    check_file(path)
    kind = _kind(path)
    if kind == ".parquet":
        return _parquet(path, column)
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _txt}
    assert {*readers, ".parquet"} == set(SUFFIXES)
    return readers[kind](path, column)


def check_file(path: Path) -> None:
    """Raises `PromptFileError` where `path` is no file of a known kind that can be opened."""
    check_kind(path)
    with _reading(path), path.open("rb"):
        pass


def check_kind(path: Path) -> None:
    """Raises `PromptFileError` for a file of an unknown kind."""
    if not is_known(path):
        raise PromptFileError(
            f"{path}: got a file of kind {path.suffix!r}, allowed are {', '.join(SUFFIXES)} (but for Parquet, also "
            f"with {_PACKED}), a folder, hf:NAME and pocket:SPLIT",
            hint='convert it to .jsonl, a line a prompt: {"prompt": "..."}',
        )


def is_known(path: Path) -> bool:
    """Whether the name is that of a prompt file."""
    return _kind(path) in SUFFIXES and not (_is_packed(path) and _kind(path) == ".parquet")


def _kind(path: Path) -> str:
    return (Path(path.stem) if _is_packed(path) else path).suffix.lower()


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == _PACKED


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error) as error:  # a path with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else None
        raise PromptFileError(
            f"cannot read {str(path)!r}: {reason or error}",
            hint="paths in a recipe are relative to the directory in which the command runs",
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked, after any byte order mark."""
    with _reading(path):
        file: BinaryIO = path.open("rb")
    with file:
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file)) if _is_packed(path) else file
        with _reading(path):
            head = stream.peek(3)[:3] if isinstance(stream, io.BufferedReader) else b""
        if head.startswith(_UTF16):
            raise PromptFileError(f"{path} is UTF-16, allowed is UTF-8", hint="save it as UTF-8")
        if head == _MARK:
            stream.read(len(_MARK))
        yield stream


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines; only a newline ends one, so every other character passes."""
    with _opened(path) as stream:
        number = 0
        while True:
            with _reading(path):
                line = stream.readline()
            if not line:
                return
            number += 1
            if line.strip():
                yield number, line.removesuffix(b"\n")


def _whole(path: Path) -> bytes:
    with _opened(path) as stream, _reading(path):
        return stream.read()


def _txt(path: Path, column: str | None) -> Iterator[Line]:
    for number, line in _raw_lines(path):
        yield read_row(number, {"prompt": line.decode("utf-8", "surrogateescape")})


def _jsonl(path: Path, column: str | None) -> Iterator[Line]:
    for number, line in _raw_lines(path):
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Line(number, problem="it is not valid UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield Line(number, problem=f"it is not JSON: {_reason(error)}")
        else:
            yield read_row(number, row, column)


def _json(path: Path, column: str | None) -> Iterator[Line]:
    try:
        rows = json.loads(_whole(path).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        where = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise PromptFileError(
            f"{path}{where}: it is not JSON: {_reason(error)}",
            hint="mend it; in a .jsonl file, a line a prompt, the other lines could be kept",
        ) from None
    if not isinstance(rows, list):
        raise PromptFileError(
            f"{path}: got {kind_of(rows)}, allowed is a list", hint='write [{"prompt": "..."}, ...]'
        )
    for number, row in enumerate(rows, start=1):
        yield read_row(number, row, column)


def _csv(path: Path, column: str | None) -> Iterator[Line]:
    text = _whole(path).decode("utf-8", "surrogateescape")
    wanted = column.strip().casefold() if column else None
    header: list[str] | None = None
    for number, cells in _csv_rows(list(io.StringIO(text, newline=""))):
        if isinstance(cells, str):
            yield Line(number, problem=cells)
        elif header is None:
            header = [cell.strip().casefold() for cell in cells]
            _check_columns([name for name in header if name not in TURN_COLUMNS], path, wanted)
        elif cells:
            if len(cells) != len(header):
                yield Line(number, problem=f"it has {len(cells)} cells, the header has {len(header)}")
            else:
                row = {name: cell for name, cell in zip(header, cells, strict=True) if name not in TURN_COLUMNS}
                yield read_row(number, row, wanted)


def _csv_rows(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Rows with the line on which each begins; a malformed one as what is wrong with it."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        begin = 0
        while begin < len(lines):
            reader = csv.reader(iter(lines[begin:]), strict=True)
            read = 0
            try:
                for cells in reader:
                    yield begin + read + 1, cells
                    read = reader.line_num
                return
            except csv.Error as error:
                yield begin + read + 1, f"it is not CSV: {error}"
                begin += read + 1
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, column: str | None) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _check_columns(columns, path, column)
            names = [name for name in columns if name in ((column,) if column else COLUMNS)]
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        row = {name: batch.column(name)[index].as_py() for name in names}
                    except UnicodeDecodeError:
                        line = Line(number, problem="it is not valid UTF-8 text")
                    else:
                        line = read_row(number, row, column)
                    yield line
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PromptFileError(
            f"{path}: it is not Parquet: {_reason(error)}", hint="write it again"
        ) from error


def _check_columns(names: Sequence[str], path: Path, column: str | None) -> None:
    if column is None and set(PROMPT_COLUMNS).isdisjoint(names) or column is not None and column not in names:
        raise PromptFileError(
            f"{path}: got the columns {', '.join(repr(name[:40]) for name in names[:12])}; "
            f"allowed is {column or 'prompt, or instruction with input'}",
            hint="say which column holds the prompts: `column: NAME` beside `source`",
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return (str(error).splitlines() or [type(error).__name__])[0]
