"""Mixed traffic for minutes, a thousand connections open: what the gateway holds over time, in memory and in files.

Part of `gateway.py --soak`. Beside clients that ask as they should, whose answers are checked: streams that the client
cuts, readers that take a few bytes a second, bodies that are no requests, bodies far too long, and connections that
send half of a request's head or nothing.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import uvloop

from load_clients import LEVELS, PROMPT, Asked, Load, problem, request
from served import Served, Server, cores, running
from stub_upstream import LONG

IDLE, SLOW, CUTTING, BAD, ASKING = 600, 100, 100, 100, 100
"""Connections of each manner; a thousand."""
EVERY_S = 5.0
CHUNKS = 400
BAD_BODIES = (
    b"", b"{", b"[]", b"null", b'{"model": 1}', b'{"messages": []}', b"\xff\xfe", b"[" * 50_000,
    b'{"messages": [{"role": "user", "content": "x"}], "safety": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "sofety": 0}', b'{"x": "' + b"y" * 10_000_000 + b'"}',
)  # fmt: skip


class Soak:
    """The clients, and what they saw."""

    def __init__(self, load: Load, until: float) -> None:
        self.load, self.until = load, until
        self.seen: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self._places = itertools.count()

    async def _open(
        self, receive_bytes: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.load.port))
        return await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**16)

    def _request(self, tag: str = "soak") -> tuple[Asked, bytes]:
        place = next(self._places)
        asked = Asked(
            f"{tag}{place}", {"helpfulness": LEVELS[place % 5], "safety": LEVELS[place // 5 % 5]}, 0.0
        )
        return asked, request(self.load, f"{asked.tag}: {PROMPT}", asked.control)

    async def again(self, manner: Callable[[], Awaitable[None]]) -> None:
        """One connection after another in one manner, until the time is over."""
        while time.monotonic() < self.until:
            try:
                await asyncio.wait_for(manner(), max(0.1, self.until - time.monotonic()))
            except TimeoutError:
                return
            except (OSError, asyncio.IncompleteReadError) as error:
                self.seen[f"{manner.__name__}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.5)

    async def idle(self) -> None:
        """Half of a request's head, or nothing, and then silence until the server has had enough."""
        reader, writer = await self._open()
        with closing(writer):
            writer.write(random.choice([b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: "]))
            told = await reader.read(100)
            self.seen["idle: " + (told.split(b"\r\n")[0].decode() or "closed")] += 1

    async def slow(self) -> None:
        """A stream of megabytes that is read a few bytes a second, through the smallest of windows."""
        reader, writer = await self._open(receive_bytes=2048)
        with closing(writer):
            writer.write(self._request(LONG)[1])
            status = (await reader.readuntil(b"\r\n")).split()[1].decode()
            while await reader.read(1024):
                await asyncio.sleep(0.5)
            self.seen[f"slow: {status}, ended by the gateway"] += 1

    async def cutting(self) -> None:
        """A stream that is cut after a while, at times before it began."""
        reader, writer = await self._open()
        with closing(writer):
            writer.write(self._request()[1])
            for _ in range(random.randrange(8)):
                await reader.read(512)
            writer.transport.abort()
            self.seen["cutting: cut"] += 1
        await asyncio.sleep(random.random())

    async def bad(self) -> None:
        """What is no request; a refusal must come."""
        reader, writer = await self._open()
        with closing(writer):
            body = random.choice(BAD_BODIES)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
                % (self.load.key.encode(), len(body))
            )
            for start in range(0, len(body), 65_536):
                writer.write(body[start : start + 65_536])
                if reader.at_eof() or writer.is_closing():
                    break
                await asyncio.wait_for(writer.drain(), 30)
            status = (await reader.readuntil(b"\r\n")).split()[1].decode()
            self.seen[f"bad: {status}"] += 1
            if not status.startswith("4"):
                self.problems[f"{status} to {body[:60]!r}"] += 1
        await asyncio.sleep(random.random())

    async def asking(self) -> None:
        """A stream that is read to its end and must be right; or a refusal for want of room."""
        reader, writer = await self._open()
        with closing(writer):
            asked, data = self._request()
            writer.write(data.replace(b"\r\nhost", b"\r\nconnection: close\r\nhost", 1))
            head = await reader.readuntil(b"\r\n\r\n")
            asked.status, asked.body = int(head.split()[1]), [unframed(await reader.read(-1))]
            self.seen[f"asking: {asked.status}"] += 1
            wrong = None if asked.status in (429, 503) else problem(asked, self.load)
            if wrong is not None:
                self.problems[wrong] += 1
        await asyncio.sleep(random.random() * 2)


def unframed(data: bytes) -> bytes:
    """A body out of HTTP's chunks."""
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        parts.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return b"".join(parts)


def holding(served: Served) -> tuple[float, int, int]:
    """MiB of memory, open files, and of those connections."""
    process = served.process
    return process.memory_info().rss / 2**20, process.num_fds(), len(process.net_connections("tcp"))


async def _traffic(soak: Soak, served: Served) -> list[float]:
    """All manners at once; memory every few seconds, in MiB."""
    manners = (
        (soak.idle, IDLE),
        (soak.slow, SLOW),
        (soak.cutting, CUTTING),
        (soak.bad, BAD),
        (soak.asking, ASKING),
    )
    tasks = [asyncio.create_task(soak.again(manner)) for manner, count in manners for _ in range(count)]
    memory, started = [], time.monotonic()
    while time.monotonic() < soak.until:
        await asyncio.sleep(EVERY_S)
        mib, files, connections = holding(served)
        memory.append(mib)
        print(
            f"{time.monotonic() - started:6.0f} s {mib:8.1f} MiB {files:6} files {connections:6} connections"
        )
    await asyncio.gather(*tasks)
    return memory


def soak(
    arguments: argparse.Namespace,
    upstream: Callable[[int], Server],
    gateway: Callable[[Served, Path], Server],
) -> int:
    """Traffic for `--soak` seconds; prints what the gateway held. 1 where an answer was wrong, or it was gone."""
    asking, measured = cores()
    os.sched_setaffinity(0, {asking})
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        behind = stack.enter_context(running(upstream(CHUNKS), asking))
        behind.get("/stub/latency/0.5")
        served = stack.enter_context(running(gateway(behind, Path(name)), measured))
        before, files, _ = holding(served)
        print(f"at rest  {before:8.1f} MiB {files:6} files")
        load = Load(
            served.port, served.model, served.server.key, 0, 0, stream=True, stagger_s=0.0, prefix="",
            floors=served.server.floors, chunks=CHUNKS,
        )  # fmt: skip
        run = Soak(load, time.monotonic() + arguments.soak)
        memory = uvloop.run(_traffic(run, served))
        time.sleep(EVERY_S)
        after, files, connections = holding(served)
        print(f"after    {after:8.1f} MiB {files:6} files {connections:6} connections")
        half = len(memory) // 2
        print(
            f"most in the first half {max(memory[: half or 1]):.1f} MiB, in the second {max(memory[half:]):.1f} MiB"
        )
        print(json.dumps(dict(sorted(run.seen.items())), indent=1))
        for wrong, times in run.problems.most_common(10):
            print(f"{times} × {wrong}")
        return int(bool(run.problems) or served.process.status() == psutil.STATUS_ZOMBIE)
