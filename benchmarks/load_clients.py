"""Clients that ask in a closed loop: each asks, has its answer, and asks again. Lean, so that what answers is measured.

    python benchmarks/load_clients.py --port 8750 --model pocket --clients 50 --requests 1000 [--stream]

Connections are kept alive. Answers are kept as they came and checked at the end: text, dials, finish and, where it is
sent, usage must be what `stub_upstream` says to that question. Prints JSON: how many were right, what was wrong, and by
tag when a request went out, when the first of its text came and when its last byte did.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

from stub_upstream import answer_text

PROMPT = "what would you say of " + "a thing that people ask about, " * 12 + "in a few words?"
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Load:
    """What is asked, of whom, by how many, and how often in all."""

    port: int
    model: str
    key: str
    clients: int
    requests: int
    stream: bool
    stagger_s: float
    """Seconds over which the clients begin, so that they do not ask in step."""
    prefix: str
    floors: Mapping[str, float]
    chunks: int


@dataclass
class Asked:
    """A request and what came of it; status 0: the connection ended before the answer did."""

    tag: str
    control: Mapping[str, float]
    sent: float
    first: float = 0.0
    last: float = 0.0
    status: int = 0
    body: list[bytes] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection, on which one request at a time is under way."""

    def __init__(self, load: Load, places: Iterator[int], asked: list[Asked]) -> None:
        self._load, self._places, self._asked = load, places, asked
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._now: Asked | None = None
        self._tag = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport  # uvloop's is no asyncio.Transport by inheritance
        self._ask()

    def _ask(self) -> None:
        place = next(self._places, None)
        if place is None:
            self._now = None
            self._transport.close()
            return
        tag = f"{self._load.prefix}{place}"
        control = {"helpfulness": LEVELS[place % 5], "safety": LEVELS[place // 5 % 5]}
        data = request(self._load, f"{tag}: {PROMPT}", control)
        self._tag = tag.encode()
        self._now = Asked(tag, control, time.perf_counter())
        self._asked.append(self._now)
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        assert self._now is not None
        if not self._now.first and self._tag in body:
            self._now.first = time.perf_counter()
        self._now.body.append(body)

    def on_message_complete(self) -> None:
        assert self._now is not None
        self._now.last = time.perf_counter()
        self._now.status = self._parser.get_status_code()
        if self._parser.should_keep_alive():
            self._parser = httptools.HttpResponseParser(self)
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(None)


def request(load: Load, question: str, control: Mapping[str, float]) -> bytes:
    """A chat request whose dials are in `chat_template_kwargs`, which all servers know."""
    body: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 200,
        "temperature": 0.7,
        "chat_template_kwargs": dict(control),
    }
    if load.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {load.key}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def problem(asked: Asked, load: Load) -> str | None:
    """What is wrong with an answer; None: nothing."""
    data = b"".join(asked.body)
    if asked.status != 200:
        return f"status {asked.status}: {data[:300].decode(errors='replace')}"
    try:
        text, finish, usage = streamed(data) if load.stream else whole(json.loads(data))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {error}: {data[:300]!r}"
    control = {dial: max(level, load.floors.get(dial, 0.0)) for dial, level in asked.control.items()}
    right = answer_text(asked.tag, control, load.chunks)
    if text != right:
        return f"text: got {text[:80]!r}, right is {right[:80]!r}"
    if finish != "stop" or usage["completion_tokens"] != 5 * load.chunks:
        return f"got finish {finish!r} and usage {usage}"
    return None


def whole(values: Mapping[str, Any]) -> tuple[str, Any, Mapping[str, Any]]:
    """Text, finish and usage of an answer that came in one."""
    choice = values["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], values["usage"]


def streamed(data: bytes) -> tuple[str, Any, Mapping[str, Any]]:
    """Text, finish and usage of an answer that came in pieces; it must end in `[DONE]`."""
    events = [each[6:] for each in data.decode().split("\n\n") if each.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise ValueError("the stream does not end in [DONE]")
    text, finish, usage = "", None, {}
    for values in map(json.loads, events[:-1]):
        usage = values.get("usage") or usage
        for choice in values["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    return text, finish, usage


async def ask_all(load: Load) -> list[Asked]:
    """Every request, once."""
    places, asked = iter(range(load.requests)), list[Asked]()
    loop = asyncio.get_running_loop()

    async def ask(number: int) -> None:
        await asyncio.sleep(load.stagger_s * number / load.clients)
        while len(asked) < load.requests:
            _, client = await loop.create_connection(
                lambda: Client(load, places, asked), "127.0.0.1", load.port
            )
            await client.gone

    await asyncio.gather(*map(ask, range(load.clients)))
    return asked


def report(asked: list[Asked], load: Load) -> dict[str, Any]:
    """What is printed."""
    problems = list(filter(None, (problem(each, load) for each in asked)))
    times = {
        each.tag: [each.sent, each.first or each.last, each.last] for each in asked if each.status == 200
    }
    return {
        "requests": len(asked),
        "wrong": len(problems),
        "problems": dict(Counter(problems).most_common(3)),
        "statuses": dict(Counter(each.status for each in asked)),
        "seconds": max(each.last for each in asked) - min(each.sent for each in asked),
        "times": times,
    }


def main() -> None:
    """Asks, and prints what came."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--key", default="none")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--stagger", type=float, default=0.0, help="seconds over which the clients begin")
    parser.add_argument("--prefix", default="q", help="of the tags; one that is not used twice")
    parser.add_argument(
        "--floors", type=json.loads, default={}, help="what the server raises dials to, JSON by dial"
    )
    parser.add_argument("--chunks", type=int, default=20, help="pieces that the stub was told to answer in")
    given = parser.parse_args()
    load = Load(
        given.port, given.model, given.key, given.clients, given.requests, given.stream, given.stagger, given.prefix,
        given.floors, given.chunks,
    )  # fmt: skip
    print(json.dumps(report(uvloop.run(ask_all(load)), load)))


if __name__ == "__main__":
    main()
