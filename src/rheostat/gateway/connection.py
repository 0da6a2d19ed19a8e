"""One connection: uvicorn's parser and its ASGI side, with bounds on what a slow, large or numerous client can cost.

A request has a deadline for its headers and one for its body; the application bounds the body's size. What a client
does not read of its answer ends the connection, and with it the work. Whoever is refused is told why, as far as an
answer is still due to it, and what it still sends is thrown away for a moment: a connection that is closed with unread
bytes would take the error with it.
"""

import asyncio
import secrets
import select
import socket
import struct
from asyncio import TimerHandle
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from rheostat.gateway.refusals import Refusal

_LINGER_S = 1.0
_LINGER_BYTES = 8 * 2**20
_LARGEST_LINGERING = 100
"""Refused connections that are open at once: each is a file descriptor beyond those that are set aside for clients."""

_LOOK_S = 0.5
"""How often it is asked whether a client is there that is not being read from."""
_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on each connection, and on how many there are.

    `request_s` is how long a request's headers, and then its body, may take to come; `write_s` how long a client may
    leave its answer unread.
    """

    request_s: float = 20.0
    write_s: float = 30.0
    header_bytes: int = 32 * 1024
    connections: int = 2000


class BoundedProtocol(HttpToolsProtocol):
    """A connection within `limits`, which a subclass sets (`bounded`)."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    lingering: ClassVar[set["BoundedProtocol"]] = set()

    _deadline: TimerHandle | None = None
    _write_deadline: TimerHandle | None = None
    _look: TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    """The cycle whose answer is under way, or was last: others, of pipelined requests, wait behind it."""
    _header_bytes = 0
    _framing_bytes = 0
    """Of the request whose body is being read: what came behind its head and is no body."""
    _chunk_bytes = 0
    _is_counted = False
    """Whether the bytes that are being read came all behind a head."""
    _is_in_headers = True
    _is_refused = False
    _thrown_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(
                Refusal(
                    503,
                    "too_many_connections",
                    "too many connections are open",
                    "try again soon",
                    retry_after_s=2,
                )
            )
            return
        self._expect_by_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._cancel_deadlines()
        self.lingering.discard(self)
        self._disconnect_cycles()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._is_refused:
            self._thrown_bytes += len(data)
            if self._thrown_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        if self._is_in_headers:
            self._header_bytes += len(data)
            if self._deadline is None:
                self._expect_by_deadline()
        self._is_counted = not self._is_in_headers
        if self._is_counted:
            self._framing_bytes += len(data)
        super().data_received(data)
        bound = self.limits.header_bytes
        if (self._header_bytes if self._is_in_headers else self._framing_bytes) > bound:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; a trailer, which no proxy before this server has looked at, is none."""
        if self._is_in_headers and not self._is_refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's headers are whole."""
        if self._is_refused:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refuse_headers()
            return
        self._is_in_headers, self._is_counted = False, False
        self._header_bytes = self._framing_bytes = self._chunk_bytes = 0
        self._expect_by_deadline()
        super().on_headers_complete()
        if self.pipeline and self._look is None:
            self._look = self.loop.call_later(_LOOK_S, self._look_for_client)

    def on_body(self, body: bytes) -> None:
        """Bytes of a body."""
        self._chunk_bytes += len(body)
        if self._is_counted:
            self._framing_bytes -= len(body)
        if not self._is_refused:
            super().on_body(body)

    def on_chunk_complete(self) -> None:
        """A chunk is whole: what frames it at the least, its length and two line ends, is not held against it."""
        if self._is_counted:
            self._framing_bytes -= len(f"{self._chunk_bytes:x}\r\n\r\n")
        self._chunk_bytes = 0

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._is_refused:
            return
        self._cancel_deadline()
        self._is_in_headers = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _look_for_client(self) -> None:
        """Nothing is read while a pipelined request waits, and so the system does not say that the client has gone."""
        self._look = None
        if self.transport.is_closing() or not self.pipeline:
            return
        opened = self.transport.get_extra_info("socket")
        looked = select.poll()
        looked.register(opened.fileno(), _GONE)
        if looked.poll(0):
            self.transport.abort()
        else:
            self._look = self.loop.call_later(_LOOK_S, self._look_for_client)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self.limits.write_s, self._unread)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().resume_writing()

    def _unread(self) -> None:
        """Ends the connection by a reset: after an orderly end the system would hold megabytes until they are read."""
        opened = self.transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._refuse(Refusal(400, "invalid_http", "got bytes that are no HTTP request", "speak HTTP/1.1"))

    def _refuse_headers(self) -> None:
        limit = f"{self.limits.header_bytes:,} bytes"
        self._refuse(
            Refusal(
                431,
                "headers_too_large",
                f"got more than {limit} of headers, trailers or chunk extensions, allowed are as many",
                "send fewer",
            )
        )

    def _expect_by_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.limits.request_s, self._late)

    def _late(self) -> None:
        running = self._running
        is_next_late = bool(self.pipeline) or self._is_in_headers
        if is_next_late and running is not None and not running.response_complete:
            self._expect_by_deadline()  # what is late waits behind an answer, which it may not cut
            return
        if (
            self.cycle is None and not self._header_bytes
        ):  # a connection that never asked anything is due no answer
            self._cancel_deadlines()
            self.transport.close()
            return
        self._refuse(
            Refusal(
                408,
                "request_timeout",
                f"no whole request came within {self.limits.request_s:g} s",
                "send it at once",
            )
        )

    def _refuse(self, refusal: Refusal) -> None:
        """Ends the connection: with an error, unless an answer is under way that it would run into."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._cancel_deadlines()
        self._unset_keepalive_if_required()
        cycle = self.cycle
        is_answered = cycle is None or cycle.response_complete
        is_due = is_answered if self._is_in_headers else not cycle.response_started
        self._disconnect_cycles()
        if not (is_due or is_answered) or self.pipeline:
            self.transport.close()
        elif len(self.lingering) < _LARGEST_LINGERING and self.transport.can_write_eof():
            self.lingering.add(self)
            if is_due:
                self.transport.write(raw_response(refusal))
            self.transport.write_eof()
            self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)
            self.flow.resume_reading()
            return
        else:
            if is_due:
                self.transport.write(raw_response(refusal))
            self.transport.close()
        # An end that waits for a client that does not read is no end.
        self._deadline = self.loop.call_later(self.limits.write_s, self._unread)

    def _disconnect_cycles(self) -> None:
        """Tells the request under way, and those behind it, that nobody waits for them."""
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_deadlines(self) -> None:
        self._cancel_deadline()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        if self._look is not None:
            self._look.cancel()
            self._look = None


def bounded(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol with these limits."""
    made: type[BoundedProtocol] = type(
        "BoundedProtocol", (BoundedProtocol,), {"limits": limits, "lingering": set()}
    )
    return made


def raw_response(refusal: Refusal) -> bytes:
    """An error as bytes of HTTP, after which the connection is closed."""
    body = to_json(refusal.body())
    head = STATUS_LINE[refusal.status] + b"x-request-id: %s\r\n" % secrets.token_hex(12).encode()
    head += b"content-type: application/json\r\nconnection: close\r\n"
    head += b"".join(b"%s: %s\r\n" % header for header in refusal.headers())
    return bytes(head + b"content-length: %d\r\n\r\n" % len(body) + body)
