"""Server-sent events out of bytes as they come (WHATWG HTML, 9.2): the parts that a chat API uses. Pure."""

import re
from dataclasses import dataclass, field

LARGEST_EVENT = 2**20
"""Bytes of one event; a server that sends more without ending it is in trouble."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its name (empty where it has none) and its data, several lines joined."""

    name: str
    data: bytes


@dataclass(slots=True)
class EventReader:
    """Reads events out of chunks that end anywhere; comments and fields other than `event` and `data` are skipped."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0
    _has_begun: bool = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes. Raises `ValueError` for one above 1 MiB."""
        text = self._rest + chunk
        if not self._has_begun and len(text) >= len(_MARK):
            self._has_begun, text = True, text.removeprefix(_MARK)
        lines = _LINE_END.split(text)
        # A carriage return at the end may be the first half of a line's end.
        self._rest = lines.pop() if not text.endswith(b"\r") else lines.pop(-2) + b"\r"
        if text.endswith(b"\r"):
            lines.pop()
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._size + len(self._rest) > LARGEST_EVENT:
            raise ValueError(f"got an event of more than {LARGEST_EVENT} bytes")
        return events

    def end(self) -> list[Event]:
        """The event that the end of the stream completes: servers forget the empty line after their last one."""
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        return [event for line in (rest, b"") if (event := self._take(line)) is not None]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._name, b"\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = "", [], 0
            return event
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")
        return None
