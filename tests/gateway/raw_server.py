"""A server that sends the very bytes that a test says, on a real socket, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Got:
    """A request as it came, and the number of its connection."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    connection: int


class Line:
    """The other end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes, *, step: int = 0) -> None:
        """Send bytes; with `step` in packets of that many."""
        for start in range(0, len(data), step or max(1, len(data))):
            self._writer.write(data[start : start + (step or len(data))])
            await self._writer.drain()
            if step:
                await asyncio.sleep(0)

    async def closed(self) -> None:
        """Returns when the client has closed the connection."""
        while await self._reader.read(1024):
            pass


Behaviour = Callable[[Got, Line], Awaitable[bool | None]]
"""Answers a request; True keeps the connection for another one."""


@dataclass
class RawServer:
    """What has come, and how it is answered; requests for the models are answered by themselves."""

    behaviour: Behaviour
    models: Sequence[Mapping[str, Any]] = ({"id": "upstream-name"},)
    got: list[Got] = field(default_factory=list)
    model_lists: int = 0
    port: int = 0
    _connections: int = 0
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen: first on any free port, then always on the same."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Stop at once, every connection cut."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number, self._connections = self._connections, self._connections + 1
        try:
            while await self._request(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        if path == "/v1/models":
            self.model_lists += 1
            await Line(reader, writer).send(answer({"data": list(self.models)}))
            return True
        got = Got(method, path, headers, json.loads(body or b"null"), number)
        self.got.append(got)
        return bool(await self.behaviour(got, Line(reader, writer)))


@asynccontextmanager
async def raw_server(behaviour: Behaviour, **more: Any) -> AsyncIterator[RawServer]:
    """A server for the time of an `async with`."""
    server = RawServer(behaviour, **more)
    await server.start()
    try:
        yield server
    finally:
        await server.die()


def answer(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """A whole response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": kind, "Content-Length": str(len(data)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + data


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """Bytes as a chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""


def event(values: Any, end: str = "\n") -> bytes:
    """An event whose data are JSON."""
    return f"data: {json.dumps(values)}{end}{end}".encode()


def delta(text: str | None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    own = {} if text is None else {"content": text}
    return {"choices": [{"index": index, "delta": own, "finish_reason": finish}], **more}


def completion(*texts: str, finish: str | None = "stop", usage: tuple[int, int] | None = (7, 3)) -> dict[str, Any]:
    """A whole chat completion with a choice for each text."""
    choices = [
        {"index": place, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for place, text in enumerate(texts)
    ]
    return {"choices": choices, **({} if usage is None else {"usage": usage_of(*usage)})}


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def stream(*events: bytes) -> bytes:
    """A whole stream, each event a chunk, ended as HTTP ends it."""
    return STREAM_HEAD + b"".join(map(chunked, events)) + STREAM_END
