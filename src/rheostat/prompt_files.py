"""Prompt files of every kind as numbered lines, each with its conversation or what is wrong with it."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rheostat.errors import PromptFileError
from rheostat.records import Message, Role

COLUMNS = ("messages", "prompt", "instruction", "input")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
ROLES = ("system", "user", "assistant")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a prompt file: its number, counted from 1, and its conversation, or else what is wrong."""

    number: int
    messages: tuple[Message, ...] = ()
    problem: str | None = None


class _Broken(ValueError):
    """What is wrong with a row."""


def read_lines(path: Path) -> Iterator[Line]:
    """Every row of a prompt file; blank lines of `.txt`, `.jsonl` and `.csv` are none.

    The number is a line's in `.txt`, `.jsonl` and `.csv` (where a row begins), an item's in `.json`, a row's
    in `.parquet`. Raises `PromptFileError` where the file as a whole cannot be read.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    assert tuple(readers) == SUFFIXES
    check_kind(path)
    reader = readers[path.suffix.lower()]
    with _reading(path):
        data = path.read_bytes()
    if data.startswith(_UTF16):
        raise PromptFileError(f"{path} is UTF-16, allowed is UTF-8", hint="save it as UTF-8")
    return reader(data.removeprefix(b"\xef\xbb\xbf"), path)


def check_file(path: Path) -> None:
    """Raises `PromptFileError` where `path` is no file of a known kind that can be opened."""
    check_kind(path)
    with _reading(path), path.open("rb"):
        pass


def check_kind(path: Path) -> None:
    """Raises `PromptFileError` for a file of an unknown kind."""
    if path.suffix.lower() not in SUFFIXES:
        raise PromptFileError(
            f"{path}: got a file of kind {path.suffix!r}, allowed are {', '.join(SUFFIXES)} and pocket:SPLIT",
            hint='convert it to .jsonl, a line a prompt: {"prompt": "..."}',
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else None
        raise PromptFileError(
            f"cannot read {str(path)!r}: {reason or error}",
            hint="paths in a recipe are relative to the directory in which the command runs",
        ) from error


def conversation(row: object) -> tuple[Message, ...]:
    """The conversation of a row: `messages`, or `prompt`, or `instruction` with `input`.

    Outer whitespace of each turn is stripped, nothing else is changed. Raises `ValueError`.
    """
    if not isinstance(row, Mapping):
        raise _Broken(f"got {_kind(row)}, allowed is an object with messages, prompt or instruction")
    given = {name: row[name] for name in COLUMNS if row.get(name) is not None}
    if "messages" in given:
        return _turns(given["messages"])
    if "prompt" in given:
        return (Message("user", _text(given["prompt"], "prompt")),)
    if "instruction" not in given:
        keys = ", ".join(repr(str(key)[:40]) for key in list(row)[:6]) or "none"
        raise _Broken(f"it has the keys {keys}, allowed are messages, prompt or instruction")
    text = _text(given["instruction"], "instruction")
    more = given.get("input", "")
    if not isinstance(more, str) or more.strip():
        text += "\n\n" + _text(more, "input")
    return (Message("user", text),)


def _turns(value: object) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _Broken(f"messages: got {_kind(value)}, allowed is a list of turns")
    turns = []
    for place, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise _Broken(f"turn {place}: got {_kind(turn)}, allowed is an object with role and content")
        if turn["role"] not in ROLES:
            raise _Broken(f"turn {place}: got the role {turn['role']!r}, allowed are {', '.join(ROLES)}")
        turns.append(Message(cast(Role, turn["role"]), _text(turn["content"], f"turn {place}")))
    spoken = [turn.role for turn in turns[turns[0].role == "system" :]]
    if not spoken or spoken[-1] != "user":
        raise _Broken(f"the last turn is the {turns[-1].role}'s, allowed is the user's")
    if spoken != [("user", "assistant")[place % 2] for place in range(len(spoken))]:
        order = ", ".join(turn.role for turn in turns)
        raise _Broken(
            f"got the roles {order}; allowed is at most one system turn, then user and assistant by turns"
        )
    return tuple(turns)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _Broken(f"{name}: got {_kind(value)}, allowed is text")
    text = value.strip()
    if not text:
        raise _Broken(f"{name}: it is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Broken(f"{name}: it is not valid UTF-8 text") from None
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _line(number: int, row: object) -> Line:
    try:
        return Line(number, conversation(row))
    except _Broken as error:
        return Line(number, problem=str(error))


def _raw_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines; only a newline ends one, so every other character passes."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _txt(data: bytes, path: Path) -> Iterator[Line]:
    for number, line in _raw_lines(data):
        yield _line(number, {"prompt": line.decode("utf-8", "surrogateescape")})


def _jsonl(data: bytes, path: Path) -> Iterator[Line]:
    for number, line in _raw_lines(data):
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Line(number, problem="it is not valid UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield Line(number, problem=f"it is not JSON: {_reason(error)}")
        else:
            yield _line(number, row)


def _json(data: bytes, path: Path) -> Iterator[Line]:
    try:
        rows = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        where = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise PromptFileError(
            f"{path}{where}: it is not JSON: {_reason(error)}",
            hint="mend it; in a .jsonl file, a line a prompt, the other lines could be kept",
        ) from None
    if not isinstance(rows, list):
        raise PromptFileError(
            f"{path}: got {_kind(rows)}, allowed is a list", hint='write [{"prompt": "..."}, ...]'
        )
    for number, row in enumerate(rows, start=1):
        yield _line(number, row)


def _csv(data: bytes, path: Path) -> Iterator[Line]:
    text = data.decode("utf-8", "surrogateescape")
    header: list[str] | None = None
    for number, cells in _csv_rows(list(io.StringIO(text, newline=""))):
        if isinstance(cells, str):
            yield Line(number, problem=cells)
        elif header is None:
            header = [cell.strip().casefold() for cell in cells]
            _check_columns([name for name in header if name != "messages"], path)
        elif cells:
            if len(cells) != len(header):
                yield Line(number, problem=f"it has {len(cells)} cells, the header has {len(header)}")
            else:
                row = dict(zip(header, cells, strict=True))
                row.pop("messages", None)
                yield _line(number, row)


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


def _parquet(data: bytes, path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        _check_columns(file.schema_arrow.names, path)
        table = file.read(columns=names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PromptFileError(
            f"{path}: it is not Parquet: {_reason(error)}", hint="write it again"
        ) from error
    for index in range(table.num_rows):
        try:
            row = {name: table.column(name)[index].as_py() for name in names}
        except UnicodeDecodeError:
            yield Line(index + 1, problem="it is not valid UTF-8 text")
        else:
            yield _line(index + 1, row)


def _check_columns(names: Sequence[str], path: Path) -> None:
    if not {"messages", "prompt", "instruction"} & set(names):
        raise PromptFileError(
            f"{path}: got the columns {', '.join(repr(name[:40]) for name in names[:12])}; "
            "allowed is prompt, or instruction with input",
            hint="rename the column that holds the prompts to `prompt`",
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return (str(error).splitlines() or [type(error).__name__])[0]
