"""Bytes over a socket, and what comes back: for requests that no HTTP client would send."""

import json
import re
import socket
from dataclasses import dataclass
from typing import Any

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass(frozen=True, slots=True)
class Answered:
    """All that came until the server closed; empty where it closed without a word."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        """Of the responses, in order."""
        return [int(each) for each in _STATUS.findall(self.data)]

    @property
    def status(self) -> int | None:
        """Of the first response."""
        return self.statuses[0] if self.statuses else None

    @property
    def body(self) -> bytes:
        """What stands behind the first response's headers."""
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def is_openais_error(self) -> bool:
        """Whether the body is `{"error": {"message", "type", "param", "code"}}` and nothing else."""
        try:
            values: Any = json.loads(self.body)
        except ValueError:
            return False
        error = values.get("error") if isinstance(values, dict) and len(values) == 1 else None
        return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}


def connect(port: int, *, timeout_s: float = 30.0) -> socket.socket:
    """A connection to the gateway."""
    opened = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def read_all(opened: socket.socket) -> Answered:
    """What comes until the server closes."""
    found = bytearray()
    try:
        while chunk := opened.recv(2**16):
            found += chunk
    except (ConnectionResetError, BrokenPipeError):
        pass
    return Answered(bytes(found))


def send(opened: socket.socket, data: bytes) -> bool:
    """Whether all of it was taken: a server that refuses need not read to the end."""
    try:
        opened.sendall(data)
    except (ConnectionResetError, BrokenPipeError):
        return False
    return True


def answered(port: int, data: bytes, *, timeout_s: float = 30.0) -> Answered:
    """What comes to these bytes on a connection of their own."""
    with connect(port, timeout_s=timeout_s) as opened:
        send(opened, data)
        return read_all(opened)
