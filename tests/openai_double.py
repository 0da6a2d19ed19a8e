"""A double of an OpenAI-compatible server: real HTTP on a real socket, which fails on purpose."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
HANG = 20.0


@dataclass(frozen=True)
class Reply:
    """What comes back: a status, a body (JSON, or bytes as they are), headers; `cut` closes half-way through it."""

    body: Body | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    cut: bool = False


Behaviour = Callable[[Body, int], Reply]
"""The reply to a body that has come so many times before."""


def says(*texts: str | None, finish: str | None = "stop", tokens: int | None = 3) -> Reply:
    """A chat completion with a choice for each text."""
    choices = [
        {"index": place, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for place, text in enumerate(texts)
    ]
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens, "prompt_tokens": 1, "total_tokens": 4}}
    return Reply({"id": "x", "object": "chat.completion", "choices": choices, **usage})


def refuses(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in OpenAI's shape."""
    return Reply({"error": {"message": message}}, status, headers)


@dataclass(frozen=True)
class Received:
    """A request as the server had it."""

    body: Body
    headers: Mapping[str, str]
    at: float


class Double:
    """The server: what it has received, and the most requests that it had under way at a time."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.received: list[Received] = []
        self.peak = 0
        self._under_way = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closing = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def bodies(self) -> list[Body]:
        return [each.body for each in self.received]

    def start(self) -> None:
        """Listen: first on any free port, then always on the same."""
        self._closing.clear()
        self._server = _Server(("127.0.0.1", self.port), self._handler())
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Stop at once, with every connection cut."""
        if self._server is None:
            return
        self._closing.set()
        self._server.shutdown()
        self._server.socket.close()
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        self._server.server_close()  # waits for the threads
        self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with double._lock:
                    double._connections.add(self.connection)

            def finish(self) -> None:
                with double._lock:
                    double._connections.discard(self.connection)
                super().finish()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                double._answer(self)

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        text = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(text)
        with self._lock:
            before = self._seen[text.decode()]
            self._seen[text.decode()] += 1
            self.received.append(Received(body, _lower(handler.headers), time.monotonic()))
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            assert handler.path == "/v1/chat/completions", handler.path
            reply = self.behaviour(body, before)
            self._closing.wait(reply.wait_s)
        finally:
            with self._lock:
                self._under_way -= 1
        if not self._closing.is_set():
            _send(handler, reply)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): str(value) for name, value in headers.items()}


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    handler.send_response(reply.status)
    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2] if reply.cut else data)
    if reply.cut:
        handler.close_connection = True


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Double]:
    """A double for the time of a `with`."""
    double = Double(behaviour)
    try:
        yield double
    finally:
        double.die()
