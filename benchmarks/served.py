"""Servers that a benchmark holds against each other: each a process of its own, on a core of its own."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

START_S = 180


@dataclass(frozen=True)
class Server:
    """How to start one: `{port}` in its command becomes its port."""

    name: str
    command: Sequence[str]
    key: str = "none"
    floors: Mapping[str, float] = field(default_factory=dict)
    """What it raises dials to."""
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = Path(os.devnull)


@dataclass(frozen=True)
class Served:
    """One that answers."""

    server: Server
    port: int
    process: psutil.Process
    core: int
    model: str

    def get(self, path: str) -> Any:
        """What it answers to a GET, JSON."""
        return _get(self.port, path, self.server.key)

    def processor_s(self) -> float:
        """Seconds of processor that it has taken, children included."""
        each = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in each)


def _get(port: int, path: str, key: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def cores() -> tuple[int, int]:
    """A core for what asks and for the upstream, and one for what is measured; of one core alone, both the same."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def free_port() -> int:
    """A port of loopback that nothing holds now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[Served]:
    """The server, on its core, from when it lists its models; ended at the end. Raises `RuntimeError` with its log."""
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in server.command]
    with server.log.open("w") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **server.environment}
        )
    os.sched_setaffinity(started.pid, {core})  # before it has threads, which inherit it
    try:
        model = _model(server, started, port)
        yield Served(server, port, psutil.Process(started.pid), core, model)
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def _model(server: Server, started: "subprocess.Popen[bytes]", port: int) -> str:
    """The model that it serves, as soon as it says so."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and started.poll() is None:
        try:
            name: str = _get(port, "/v1/models", server.key)["data"][0]["id"]
            return name
        except (OSError, ValueError):
            time.sleep(0.1)
    tail = server.log.read_text()[-3000:] if server.log.is_file() else ""
    raise RuntimeError(f"{server.name} did not start: {' '.join(server.command)}\n{tail}")


@dataclass(frozen=True)
class Effort:
    """What a time took: seconds of the server's processor, and the share of its core that others had."""

    processor_s: float
    others: float


class Meter:
    """Notes what a server takes from its making on."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._own, self._core, self._at = served.processor_s(), self._busy(), time.monotonic()

    def _busy(self) -> float:
        times = psutil.cpu_times(percpu=True)[self._served.core]
        return sum(times[:3]) + sum(times[5:8])  # all but idle, input and output, and guests (within user)

    def read(self) -> Effort:
        """Up to now."""
        own = self._served.processor_s() - self._own
        others = self._busy() - self._core - own
        return Effort(own, max(0.0, others / (time.monotonic() - self._at)))
