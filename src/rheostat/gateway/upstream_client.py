"""Requests to a server behind the gateway: a pool of connections, deadlines, another try where that can do no harm.

Asked again is only what has brought no byte of an answer: no connection, one that broke, or 429, 502, 503 and 504.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp

from rheostat.endpoint import check_url, check_variable
from rheostat.endpoint_faults import backoff, retry_after
from rheostat.errors import EndpointError, InputError
from rheostat.gateway.upstream_answers import error_words

AT_ONCE = 8
"""Requests that one ask has under way at most, where the server takes no notice of `n`."""

LARGEST_BODY = 2**24
"""Bytes of a whole answer; a server that sends more is in trouble."""

_LARGEST_ERROR = 2**16
_PASSING = (429, 502, 503, 504)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
_DRAIN_S = 0.1
_HINT = "look at the server behind, and at --upstream"


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Where the server is and how long it may take, in seconds.

    `base_url` as http://127.0.0.1:8000/v1; `/v1` may be left out. `model` is the server's own name of it; None asks the
    server. The key is the value of the environment variable `api_key_env`; without it none is sent. `connections` is
    how many asks may be under way, each over several connections where it must. `connect_s` bounds
    the making of a connection, `first_byte_s` the time until a stream's first event, `between_s` between its events,
    `whole_s` all of an answer. A request that has brought nothing is made again for `patience_s`. Raises `InputError`.
    """

    base_url: str
    model: str | None = None
    api_key_env: str | None = None
    connections: int = 512
    connect_s: float = 2.0
    first_byte_s: float = 60.0
    between_s: float = 30.0
    whole_s: float = 600.0
    patience_s: float = 5.0

    def __post_init__(self) -> None:
        try:
            check_url(self.base_url)
            if self.api_key_env is not None:
                check_variable(self.api_key_env)
        except ValueError as error:
            raise InputError(f"--upstream: {error}", hint="for example http://127.0.0.1:8000/v1") from None
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise InputError(
                f"the environment variable {self.api_key_env} is not set",
                hint="put the server's key there, or leave its name out for a server without keys",
            )

    @property
    def root(self) -> str:
        """The address that the API's paths follow."""
        bare = self.base_url.rstrip("/")
        return f"{bare}/v1" if urlsplit(bare).path == "" else bare


class _Passing(Exception):
    """A fault before any byte of an answer, which may pass: what, and how long the server asks to wait."""

    def __init__(self, message: str, status: int | None = None, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.message, self.status, self.wait_s = message, status, wait_s


class UpstreamClient:
    """Speaks HTTP with one server; of one event loop."""

    def __init__(self, options: UpstreamOptions) -> None:
        self.options = options
        self._session: aiohttp.ClientSession | None = None
        self._lists: aiohttp.ClientSession | None = None
        key = os.environ[options.api_key_env] if options.api_key_env else None
        self._key = key
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def start(self) -> None:
        """Opens the pools, one of them for the list of models alone, which waits for no answer; makes no request."""
        self._session = self._pool(self.options.connections * AT_ONCE)
        self._lists = self._pool(1)

    async def stop(self) -> None:
        """Closes every connection; requests under way end in an error."""
        sessions, self._session, self._lists = (self._session, self._lists), None, None
        for session in sessions:
            if session is not None:
                await session.close()

    def _pool(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=15.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.options.connect_s),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def models(self, within_s: float) -> Any:
        """What the server says of its models, as JSON. Raises `EndpointError`."""
        url = f"{self.options.root}/models"
        try:
            async with asyncio.timeout(within_s), self._opened(self._lists).get(url, allow_redirects=False) as got:
                body = await self._body(got)
        except TimeoutError:
            self.fail(f"no list of models within {within_s:g} s", status=504)
        except (aiohttp.ClientError, OSError) as error:
            self.fail(f"no connection: {_reason(error)}")
        if got.status != 200:
            self.fail(f"answered {got.status}: {error_words(body)}", status=got.status)
        try:
            return json.loads(body)
        except ValueError:
            self.fail("answered no JSON for its list of models")

    @asynccontextmanager
    async def post(
        self, body: Mapping[str, Any], content_type: str, *, until: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a chat request, status 200, whose body is still to come; `until` on the loop's clock.

        Leaving it early closes the connection, which ends the request at the server. Raises `EndpointError`.
        """
        response = await self._answered(json.dumps(body).encode(), until)
        try:
            if response.content_type != content_type:
                self.fail(f"answered {response.content_type!r}, expected {content_type}")
            yield response
        except BaseException:
            response.close()
            raise
        response.release()

    async def whole(self, response: aiohttp.ClientResponse, *, until: float) -> bytes:
        """All of a body. Raises `EndpointError`."""
        try:
            async with asyncio.timeout_at(until):
                return await self._body(response)
        except TimeoutError:
            self.fail(f"no whole answer within {self.options.whole_s:g} s", status=504)
        except (aiohttp.ClientError, OSError) as error:
            self.fail(f"broke off in the middle of an answer: {_reason(error)}")

    async def chunk(self, response: aiohttp.ClientResponse, *, until: float) -> bytes:
        """More of a stream's body, empty at its end. Raises `EndpointError`."""
        try:
            async with asyncio.timeout_at(until):
                return await response.content.readany()
        except TimeoutError:
            self.fail("said nothing more for too long", status=504)
        except (aiohttp.ClientError, OSError) as error:
            self.fail(f"broke off in the middle of an answer: {_reason(error)}")

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Lets the end of a stream come that has said all, so that its connection can serve again."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            response.close()

    def fail(self, what: str, *, status: int | None = None) -> NoReturn:
        """Raises `EndpointError`; the key, should the server have repeated it, is left out."""
        message = what if self._key is None else what.replace(self._key, "***")
        raise EndpointError(f"{self.options.root}: {message}", hint=_HINT, status=status)

    async def _answered(self, body: bytes, until: float) -> aiohttp.ClientResponse:
        """Asks, and asks again for `patience_s` from the first fault on."""
        clock = asyncio.get_running_loop().time
        attempt, give_up = 0, until
        while True:
            try:
                return await self._asked(body, until)
            except _Passing as fault:
                if attempt == 0:
                    give_up = min(until, clock() + self.options.patience_s)
                jitter = backoff(attempt, first=_FIRST_WAIT_S, limit=_LONGEST_WAIT_S, share=random.random())
                if clock() + fault.wait_s + jitter >= give_up:
                    self.fail(fault.message, status=fault.status)
                await asyncio.sleep(fault.wait_s + jitter)
                attempt += 1

    async def _asked(self, body: bytes, until: float) -> aiohttp.ClientResponse:
        url = f"{self.options.root}/chat/completions"
        try:
            async with asyncio.timeout_at(until):
                response = await self._opened(self._session).post(url, data=body, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError:
            raise _Passing(f"no connection within {self.options.connect_s:g} s", 504) from None
        except TimeoutError:
            self.fail("no answer in time", status=504)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
            self.fail(f"no connection: {_reason(error)}")
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise _Passing(f"no connection: {_reason(error)}") from None
        except aiohttp.ClientError as error:
            self.fail(f"answered what is no HTTP: {_reason(error)}")
        if response.status == 200:
            return response
        await self._refused(response)

    async def _refused(self, response: aiohttp.ClientResponse) -> NoReturn:
        try:
            async with asyncio.timeout(_DRAIN_S * 10):
                words = error_words(await response.content.read(_LARGEST_ERROR))
        except (TimeoutError, aiohttp.ClientError, OSError):
            words = "(no message)"
        finally:
            response.close()
        said = f"answered {response.status}: {words}"
        if response.status in _PASSING:
            headers = {name.lower(): value for name, value in response.headers.items()}
            raise _Passing(said, response.status, retry_after(headers, time.time()))
        self.fail(said, status=response.status)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        chunks, size = [], 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > LARGEST_BODY:
                self.fail(f"answered more than {LARGEST_BODY} bytes")
        return b"".join(chunks)

    def _opened(self, session: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
        if session is None:
            self.fail("the connections to it are closed")
        return session


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
