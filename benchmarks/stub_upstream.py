"""A server behind the gateway that costs nearly nothing: OpenAI's chat completions after a set latency.

    python benchmarks/stub_upstream.py --port 8000 --latency 0.2 --chunks 20

What it says follows from what it was asked: a question's tag (the text before its first colon) and the dials that came
with it, then the same words for all. So whoever asked can tell a wrong answer, another's answer, and a dial that was
changed on the way. Latency is spread by the tag, from half to one and a half of what was set, as answers differ in
length; the pieces of a stream come evenly over it. `GET /stub/spent` gives, by tag, when a request had come and when
the first and last byte of its answer went out, on the machine's monotonic clock, and forgets them.
"""

import argparse
import asyncio
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httptools
import uvloop

MODEL = "stub"
WORDS = " and five words of it"
"""What every piece but the first says."""
LONG = "long"
"""How the tag of a question begins whose pieces say it 400 times: more than the machine's buffers hold."""


def first_piece(tag: str, control: Mapping[str, float]) -> str:
    """The piece that tells who was asked what, with which dials."""
    return f"{tag}: " + " ".join(f"{dial}={control[dial]:g}" for dial in sorted(control))


def answer_text(tag: str, control: Mapping[str, float], chunks: int) -> str:
    """A whole answer of so many pieces."""
    return first_piece(tag, control) + WORDS * (chunks - 1)


def _event(delta: Mapping[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _chunk([choice], None)


def _chunk(choices: list[Any], usage: Any) -> bytes:
    values = {"id": "chatcmpl-stub", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + json.dumps({**values, "choices": choices, "usage": usage}).encode() + b"\n\n"


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(status: bytes, values: Any) -> bytes:
    data = json.dumps(values).encode()
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        status,
        len(data),
    )
    return head + data


def _fault(status: bytes, message: str) -> bytes:
    return _whole(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_ROLE = _framed(_event({"role": "assistant", "content": ""}))
_MORE = _framed(_event({"content": WORDS}))
_MORE_LONG = _framed(_event({"content": 400 * WORDS}))
_FINISH = _framed(_event({}, "stop"))
_DONE = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stub:
    """What all connections share."""

    def __init__(self, latency_s: float, chunks: int) -> None:
        self.latency_s = latency_s
        self.chunks = chunks
        self.spent: dict[str, list[float]] = {}
        self.controls: dict[str, Mapping[str, float]] = {}

    def latency(self, tag: str) -> float:
        """Seconds from a request to the end of its answer: half to one and a half of what is set."""
        return self.latency_s * (0.5 + zlib.crc32(tag.encode()) / 2**32)


class Connection(asyncio.Protocol):
    """One client; it asks again when it has its answer."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport  # uvloop's is no asyncio.Transport by inheritance

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        url, self._url = self._url.decode(), b""
        body, self._body = b"".join(self._body), []
        if url == "/v1/chat/completions":
            self._answer(json.loads(body), time.perf_counter())
        elif url == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "stub"}
            self._transport.write(_whole(b"200 OK", {"object": "list", "data": [model]}))
        elif url == "/stub/spent":
            self._transport.write(_whole(b"200 OK", self._stub.spent))
            self._stub.spent = {}
        elif url.startswith("/stub/latency/"):
            self._stub.latency_s = float(url.rpartition("/")[2])
            self._transport.write(_whole(b"200 OK", {}))
        else:
            self._transport.write(
                _whole(b"200 OK", {}) if url == "/health" else _fault(b"404 Not Found", url)
            )

    def _answer(self, asked: Mapping[str, Any], came: float) -> None:
        question = asked["messages"][-1]["content"]
        if not isinstance(question, str) or asked.get("n", 1) not in (None, 1):
            self._transport.write(_fault(b"400 Bad Request", "the stub answers a text, once"))
            return
        tag = question.partition(":")[0]
        control = asked.get("chat_template_kwargs") or {}
        words = {"prompt_tokens": question.count(" ") + 1, "completion_tokens": 5 * self._stub.chunks}
        usage = {**words, "total_tokens": sum(words.values())}
        self._stub.spent[tag] = times = [came]
        latency = self._stub.latency(tag)
        if asked.get("stream"):
            wants_usage = (asked.get("stream_options") or {}).get("include_usage")
            ending = _FINISH + (_framed(_chunk([], usage)) if wants_usage else b"") + _DONE
            self._later(
                latency / self._stub.chunks, self._begin, times, first_piece(tag, control), latency, ending
            )
        else:
            message = {"role": "assistant", "content": answer_text(tag, control, self._stub.chunks)}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            values = {"id": "chatcmpl-stub", "object": "chat.completion", "created": 1, "model": MODEL}
            data = _whole(b"200 OK", {**values, "choices": [choice], "usage": usage})
            self._later(latency, self._give, times, data)

    def _later(self, seconds: float, do: Any, *what: Any) -> None:
        if seconds > 0:
            self._loop.call_later(seconds, do, *what)
        else:
            do(*what)

    def _give(self, times: list[float], data: bytes) -> None:
        times += [time.perf_counter()] * 2
        self._transport.write(data)

    def _begin(self, times: list[float], piece: str, latency: float, ending: bytes) -> None:
        times.append(time.perf_counter())
        self._transport.write(_STREAM_HEAD + _ROLE + _framed(_event({"content": piece})))
        more = _MORE_LONG if piece.startswith(LONG) else _MORE
        self._go_on(times, more, self._stub.chunks - 1, latency / self._stub.chunks, ending)

    def _go_on(self, times: list[float], more: bytes, left: int, wait: float, ending: bytes) -> None:
        """The next piece is due; those of an upstream without latency go out each on its own too."""
        if self._transport.is_closing():
            return
        if not left:
            times.append(time.perf_counter())
            self._transport.write(ending)
        else:
            self._later(wait, self._more, times, more, left, wait, ending)

    def _more(self, times: list[float], more: bytes, left: int, wait: float, ending: bytes) -> None:
        self._transport.write(more)
        self._go_on(times, more, left - 1, wait, ending)


async def serve(port: int, stub: Stub) -> None:
    """Serves on loopback until it is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds, in the mean")
    parser.add_argument("--chunks", type=int, default=20, help="pieces of an answer")
    given = parser.parse_args()
    uvloop.run(serve(given.port, Stub(given.latency, given.chunks)))


if __name__ == "__main__":
    main()
