"""An exchange over HTTP: its body read within bounds, its answer sent whole or as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import time
from typing import Any

from pydantic_core import to_json

from rheostat.gateway.backend import Outcome
from rheostat.gateway.bodies import ChatBody, CompletionBody, read_body
from rheostat.gateway.exchange import CLIENT_GONE, Exchange
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.replies import Kind, Reply, Stream, dials_header, failed
from rheostat.gateway.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

_logger = logging.getLogger(__name__)
_LINGER_S = 2.0
_LINGER_BYTES = 64 * 2**20
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, and how long it may take to come."""

    largest_bytes: int = 2**20
    seconds: float = 20.0


class GoneWhileSending(Exception):
    """The client went before its request was whole."""


@dataclass(frozen=True, slots=True)
class CompletionEndpoint:
    """Answers requests of one kind: an ASGI application."""

    service: Service
    kind: Kind
    route: str
    body_type: type[ChatBody] | type[CompletionBody]
    limits: BodyLimits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        state, headers = scope["state"], scope["headers"]
        state["is_counted"] = True
        exchange = Exchange(self.service, state["request_id"], self.route)
        with self.service.hosting(exchange):
            try:
                await self._run(exchange, headers, receive, Sender(send))
            finally:
                await _finish_quietly(exchange, 500, "internal_error")

    async def _run(self, exchange: Exchange, headers: HeaderList, receive: Receive, sender: "Sender") -> None:
        try:
            async with exchange.lifetime():
                exchange.authenticate(bearer_key(headers))
                check_is_json(headers)
                raw = await read_whole(headers, receive, self.limits)
                async with watched(exchange, receive):
                    exchange.read(read_body(self.body_type, raw), headers)
                    await self._answer(exchange, sender)
        except GoneWhileSending:
            await _finish_quietly(exchange, CLIENT_GONE, "client_gone")
        except Refusal as refusal:
            await self._refuse(exchange, sender, refusal, receive)
        except (
            Exception
        ):  # the boundary: a fault of our own ends the request as any other, and is told in the log alone
            _logger.exception("request %s failed", exchange.id)
            await self._refuse(exchange, sender, internal_error(exchange.id), receive)

    async def _answer(self, exchange: Exchange, sender: "Sender") -> None:
        asked, found = exchange.asked, exchange.permitted
        assert asked is not None and found is not None
        ask = found.ask
        prefix = "chatcmpl-" if self.kind == "chat" else "cmpl-"
        reply = Reply(self.kind, prefix + exchange.id, int(time()), ask.model, found.grant)
        sender.headers.append((b"x-rheostat-dials", dials_header(ask.control).encode()))
        stream = Stream(reply, ask.samples, asked.includes_usage)
        async with aclosing(exchange.events()) as events:
            async for event in events:
                if isinstance(event, Outcome):
                    continue
                if asked.streams:
                    if not sender.is_streaming:
                        sender.headers += self._limit_headers(exchange)
                        await sender.begin_stream(b"".join(reply.opening(ask.samples)))
                    if chunk := stream.of_piece(event):
                        await sender.chunk(chunk)
        outcome = exchange.outcome
        assert outcome is not None
        await exchange.finish(200)
        if asked.streams:
            await sender.end_stream(stream.of_outcome(outcome))
        else:
            sender.headers += self._limit_headers(exchange)
            await sender.whole(200, reply.whole(exchange.answers, exchange.finishes, outcome))

    async def _refuse(self, exchange: Exchange, sender: "Sender", refusal: Refusal, receive: Receive) -> None:
        try:
            await exchange.finish(refusal.status, refusal)
        except Refusal as audit_failed:
            refusal = audit_failed
        if exchange.is_gone:
            return
        if sender.is_streaming:
            await sender.end_stream(failed(refusal))
        elif not sender.is_started:
            sender.headers += self._limit_headers(exchange)
            await sender.refusal(refusal, receive)

    def _limit_headers(self, exchange: Exchange) -> HeaderList:
        if exchange.caller is None:
            return []
        found = self.service.limits.headers(exchange.tenant)
        return [(name.encode(), value.encode()) for name, value in found.items()]


def internal_error(request_id: str) -> Refusal:
    """A fault of the gateway's own, of which a client learns the request's id alone."""
    return Refusal(
        500, "internal_error", f"the gateway failed at request {request_id}", "tell its operator this id"
    )


async def _finish_quietly(exchange: Exchange, status: int, code: str) -> None:
    """The line of a request that gets no answer any more: that it could not be written is in the log already."""
    with suppress(Refusal):
        await exchange.finish(status, Refusal(status, code, "no answer was given", "see the log"))


@dataclass(slots=True)
class Sender:
    """Sends one response."""

    send: Send
    headers: HeaderList = field(default_factory=list)
    is_started: bool = False
    is_streaming: bool = False

    async def begin_stream(self, opening: bytes) -> None:
        """Headers and the first chunks."""
        self.is_streaming = True
        more = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._start(200, more)
        await self.chunk(opening)

    async def chunk(self, chunk: bytes) -> None:
        """Some events; others have their turn after it, so that a client that went is noticed in a burst too."""
        await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await asyncio.sleep(0)

    async def end_stream(self, chunk: bytes) -> None:
        """The last events."""
        self.is_streaming = False
        await self.send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(self, status: int, body: bytes) -> None:
        """A whole response."""
        await self._start(status, _json_headers(body))
        await self.end_stream(body)

    async def refusal(self, refusal: Refusal, receive: Receive) -> None:
        """An error; after 408 and 413 the connection is closed, once what is left of the body was looked at."""
        body, closes = to_json(refusal.body()), refusal.status in (408, 413)
        more = [*_json_headers(body), *refusal.headers()]
        await self._start(refusal.status, [*more, (b"connection", b"close")] if closes else more)
        if closes:
            await self.chunk(body)
            await discard(receive)
            body = b""
        await self.end_stream(body)

    async def _start(self, status: int, more: HeaderList) -> None:
        self.is_started = True
        await self.send({"type": "http.response.start", "status": status, "headers": [*more, *self.headers]})


def _json_headers(body: bytes) -> HeaderList:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def bearer_key(headers: HeaderList) -> str | None:
    """The key of the Authorization header."""
    for name, value in headers:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip().decode("latin-1")
    return None


def check_is_json(headers: HeaderList) -> None:
    """Raises `Refusal` (415) for another type, or for JSON that is compressed.

    A web page of anyone may send forms here, JSON it may not.
    """
    given = next((value for name, value in headers if name == b"content-type"), b"")
    if given.partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal(
            415,
            "not_json",
            f"got a body of the type {given[:60].decode('latin-1')!r}, allowed is application/json",
            "send the header Content-Type: application/json",
        )
    coding = next((value for name, value in headers if name == b"content-encoding"), b"identity")
    if coding.strip().lower() != b"identity":
        raise Refusal(
            415,
            "encoded_body",
            f"got a body in the encoding {coding[:60].decode('latin-1')!r}, allowed is none",
            "send the JSON as it is",
        )


async def read_whole(headers: HeaderList, receive: Receive, limits: BodyLimits) -> bytes | bytearray:
    """The body. Raises `Refusal`: 413 for too large a one, without reading it all, 408 for one that does not come."""
    announced = next((value for name, value in headers if name == b"content-length"), b"")
    if announced.isdigit() and int(announced[:20]) > limits.largest_bytes:
        raise _too_large(limits)
    message = None
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            while message is None or message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneWhileSending
                body += message.get("body", b"")
                if len(body) > limits.largest_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refusal(
            408, "body_timeout", f"the body did not come within {limits.seconds:g} s", "send it at once"
        ) from None
    return body


async def discard(receive: Receive) -> None:
    """Take what is left of a body, for a while: a client that still sends would not see the answer otherwise."""
    seen = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while seen < _LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                seen += len(message.get("body", b""))
    except TimeoutError:
        return


@asynccontextmanager
async def watched(exchange: Exchange, receive: Receive) -> AsyncIterator[None]:
    """While this lasts, a client that goes ends its exchange's work."""
    watcher = asyncio.ensure_future(_gone(receive))
    watcher.add_done_callback(lambda task: None if task.cancelled() else exchange.client_gone())
    try:
        yield
    finally:
        watcher.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: BodyLimits) -> Refusal:
    return Refusal(
        413,
        "body_too_large",
        f"got a body of more than {limits.largest_bytes:,} bytes, allowed are as many",
        "shorten the conversation",
    )
