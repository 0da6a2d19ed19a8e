"""What of a plug-in's options makes its results what they are: what belongs into a stage's fingerprint.

A field of an `OPTIONS` dataclass says so in its metadata: under `identity`, a function of its value. `OPERATIONAL`
ones (a time-out, the number of requests at a time) change no result; of `FILE` ones it is the content that counts.
All others count as they are.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rheostat.errors import InputError

Identity = Callable[[Any], object]
"""What stands for a value in a fingerprint; None leaves it out."""


def file_digest(path: str | None) -> str | None:
    """A digest of a file's content; None without a file. Raises `InputError` where it cannot be read."""
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path!r}: {error}", hint="give a file that can be read") from error


def _nothing(_: object) -> None:
    """Of no account."""


OPERATIONAL: Mapping[str, Identity] = {"identity": _nothing}
"""`field(metadata=OPERATIONAL)`: how the work is done, not what comes out."""

FILE: Mapping[str, Identity] = {"identity": file_digest}
"""`field(metadata=FILE)`: a path, or None."""


def identified(options: Any) -> dict[str, object]:
    """The options that identify a result, by name: those that differ from their default, and digests of files.

    Raises `InputError` where a file cannot be read.
    """
    found: dict[str, object] = {}
    for field, value in _fields(options):
        if "identity" in field.metadata:
            of: Identity = field.metadata["identity"]
            if (mark := of(value)) is not None:
                found[field.name] = mark
        elif dataclasses.is_dataclass(value):
            found[field.name] = identified(value)
        elif value != _default(field):
            found[field.name] = value
    return found


def parts(options: Any, kind: type[Any]) -> Iterator[Any]:
    """The options themselves and those nested in them that are of a kind."""
    if isinstance(options, kind):
        yield options
    for _, value in _fields(options):
        if dataclasses.is_dataclass(value):
            yield from parts(value, kind)


def _fields(options: Any) -> Iterator[tuple["dataclasses.Field[Any]", Any]]:
    for field in dataclasses.fields(options):
        yield field, getattr(options, field.name)


def _default(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
