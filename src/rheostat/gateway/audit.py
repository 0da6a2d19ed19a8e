"""The audit log: one line of JSON a request, appended; what cannot be written is never passed over in silence.

The keys of a line, in order:

- `time`: when the request came, UTC, ISO 8601 with milliseconds.
- `request`, `route`, `status`: the request's id, `POST /v1/chat/completions`, and the HTTP status it got.
- `tenant`, `key`: who asked, by the names of tenant and key in the policy; null where nobody was recognised. A key
  itself is never written. `policy`: the first 12 hexadecimal digits of the SHA-256 of the policy file in force.
- `model`, `stream`: the model that was asked; whether the answer was streamed.
- `dials`: by dial `requested` (null: nothing), `granted` and `why`.
- `prompt_tokens`, `completion_tokens`: of all samples together; null where nothing was generated.
- `queue_ms`, `first_token_ms`, `total_ms`: milliseconds from the request's coming to its turn, first token and end.
- `finish`: why each answer ended, `stop`, `length` or `content_filter`.
- `guard`: what became of a guarded answer; `scores`: by attribute, where the answer was scored. Null where neither.
- `refusal`: the code of the error that was given in place of an answer, or that ended it; null where none was.
- `messages`, `answers`: what was said, only where the tenant's policy says `audit_texts: true`; else absent.

A line `{"time", "event": "lines lost", "lost": N}` says how many could not be written before it. A line that is no JSON
was cut off: by a crash, or by a disk that filled up in the middle of it.
"""

import asyncio
import errno
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rheostat.errors import StorageError
from rheostat.gateway.audit_file import LineFile
from rheostat.gateway.dials import DialReport
from rheostat.gateway.policy_file import AuditBlock
from rheostat.gateway.refusals import Refusal
from rheostat.records import Message, Scores

TELL_EVERY_S = 60.0
_MEBIBYTE = 2**20
_POLICY_DIGITS = 12
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A request as the log has it; the module's text says what each key means. Times are in milliseconds.

    `messages` and `answers` are left out unless the tenant's policy lets them in: whoever makes the entry sees to that.
    """

    time: datetime
    request: str
    route: str
    status: int
    tenant: str | None = None
    key: str | None = None
    policy: str | None = None
    model: str | None = None
    stream: bool = False
    dials: Mapping[str, DialReport] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    finish: Sequence[str] = ()
    guard: Mapping[str, Any] | None = None
    scores: Scores | None = None
    refusal: str | None = None
    messages: Sequence[Message] | None = None
    answers: Sequence[str] | None = None

    def line(self) -> bytes:
        """Its line of JSON, all ASCII: no text that anyone sent can break it or end it early."""
        values: dict[str, Any] = {
            "time": _time_text(self.time),
            "request": self.request,
            "route": self.route,
            "status": self.status,
            "tenant": self.tenant,
            "key": self.key,
            "policy": self.policy[:_POLICY_DIGITS] if self.policy else None,
            "model": self.model,
            "stream": self.stream,
            "dials": {name: report.values() for name, report in self.dials.items()},
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "queue_ms": _rounded(self.queue_ms),
            "first_token_ms": _rounded(self.first_token_ms),
            "total_ms": _rounded(self.total_ms),
            "finish": list(self.finish),
            "guard": self.guard,
            "scores": self.scores,
            "refusal": self.refusal,
        }
        if self.messages is not None:
            values["messages"] = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        if self.answers is not None:
            values["answers"] = list(self.answers)
        return _line(values)


class AuditLog:
    """Writes the log of a policy's `audit` block; of one event loop.

    Where `on_failure` is `stop`, `write` raises and `check` refuses until a line can be written again; where it is
    `serve`, both go on, and what is lost is counted (`lost`), told once a minute, and noted in the log when it can be.
    """

    def __init__(self, block: AuditBlock) -> None:
        """Takes the file for this process; raises `StorageError` where another holds it or it cannot be opened."""
        self.lines = 0
        self.lost = 0
        self.stops = block.on_failure == "stop"
        """Whether nothing is answered while no line can be written."""
        self._fsync = block.fsync
        self._unsaid = 0
        self._told_at: dict[str, float] = {}
        self._written = self._synced = self._unsynced = 0
        self._sync = asyncio.Lock()
        self._syncing: set[asyncio.Task[OSError | None]] = set()
        path = Path(block.path)
        try:
            self._file = LineFile(
                path, rotate_bytes=round(block.rotate_mb * _MEBIBYTE), keep=block.keep, fsync=block.fsync
            )
        except BlockingIOError:
            raise StorageError(
                f"audit.path: another process holds {path}", hint="give each gateway an audit log of its own"
            ) from None
        except OSError as error:
            raise StorageError(
                f"audit.path: cannot open {path}: {error.strerror or error}",
                hint="its folder must exist, and this user must be able to write there",
            ) from error

    @property
    def rotation_fails(self) -> bool:
        """Whether an older file could not be set aside when it was last tried."""
        return self._file.rotation_fault is not None

    def check(self) -> None:
        """Call before a request is answered. Raises `Refusal` (503) where its line could not be written now."""
        if self.stops and (fault := self.probe()) is not None:
            raise self._refusal() from fault

    def probe(self) -> OSError | None:
        """Why no line can be written now: tried anew where the last one could not be."""
        if self._unsaid:
            try:
                self._append(b"")
            except OSError as error:
                return error
        return None

    async def write(self, entry: AuditEntry) -> None:
        """Write a request's line, on the disk when this returns where `fsync` is set.

        Call it before the answer goes out, or at a stream's end. Raises `Refusal` (503) where it could not be written
        and the policy stops then. Whoever is cut while it waits for the disk leaves the line and its fault in the
        books all the same.
        """
        fault: OSError | None = None
        try:
            self._append(entry.line())
        except OSError as error:
            fault = self._booked(error)
        else:
            if self._fsync:
                task = asyncio.create_task(self._sync_up())
                self._syncing.add(task)
                task.add_done_callback(self._syncing.discard)
                fault = await asyncio.shield(task)
            else:
                self._booked(None)
        if fault is not None and self.stops:
            raise self._refusal() from fault

    def close(self) -> None:
        """Lets the file go; lines that are on their way to the disk get there."""
        self._file.close()

    def _append(self, line: bytes) -> None:
        ahead = b""
        if self._unsaid:
            ahead = _line({"time": _time_text(datetime.now(UTC)), "event": "lines lost", "lost": self._unsaid})
        self._file.append(ahead + line)
        self._unsaid = 0
        self._written += 1
        if (fault := self._file.rotation_fault) is not None:
            self._tell("rotate", f"audit log: an older file could not be set aside: {fault}", "the file grows on")

    def _booked(self, fault: OSError | None) -> OSError | None:
        """Count a line, by why it could not be written."""
        if fault is None:
            self.lines += 1
        else:
            self.lost += 1
            self._unsaid += 1
            self._tell("write", f"audit log: a line could not be written: {fault}", f"{self.lost} lost so far")
        return fault

    async def _sync_up(self) -> OSError | None:
        """Have what was written until now on the disk, and book a line; gives why it is not there.

        Who comes during one fsync shares the next one.
        """
        own = self._written
        async with self._sync:
            if self._unsynced >= own:  # the fault is told once: the next fsync would pass without the lost pages
                return self._booked(OSError(errno.EIO, os.strerror(errno.EIO)))
            if self._synced < own:
                covered = self._written
                try:
                    await asyncio.to_thread(_sync_and_close, self._file.handle())
                except OSError as error:
                    self._unsynced = self._written
                    return self._booked(error)
                self._synced = covered
        return self._booked(None)

    def _refusal(self) -> Refusal:
        return Refusal(
            503,
            "audit_unavailable",
            "the audit log cannot be written, and without it nothing is answered",
            "the operator must make room or mend the disk; service goes on by itself then",
            retry_after_s=5.0,
        )

    def _tell(self, kind: str, what: str, more: str) -> None:
        now = time.monotonic()
        if now - self._told_at.get(kind, -TELL_EVERY_S) >= TELL_EVERY_S:
            self._told_at[kind] = now
            _logger.error("%s (%s)", what, more)


def _sync_and_close(handle: int) -> None:
    """In a thread, which nobody can cut: the descriptor is its own."""
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


def _line(values: Mapping[str, Any]) -> bytes:
    return _json(values).encode("ascii") + b"\n"
