"""A gateway with a policy file and keys, which serves on a real socket of the loopback, and waits of a test for it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateway.policies import EXPIRED_KEY, KEY, OTHER_KEY
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import StubBackend

from rheostat.gateway.backend import Ask, Piece, Usage
from rheostat.gateway.keys import hash_key
from rheostat.gateway.policy_source import PolicySource
from rheostat.gateway.service import Guard, Service

DEADLINE_S = 30.0
LIMITED_KEY = "rheo-" + "m" * 43

TENANTS = f"""\
version: 1
tenants:
  shop:
    floors: {{safety: 0.5}}
    requests_per_minute: 100000
    tokens_per_minute: 100000000
    keys:
      - {{id: shop-1, sha256: {hash_key(KEY)}}}
      - {{id: shop-0, sha256: {hash_key(EXPIRED_KEY)}, expires: 2020-01-01T00:00:00Z}}
  strict:
    floors: {{safety: 0.75}}
    below_floor: refuse
    system_turn: refuse
    keys:
      - {{id: strict-1, sha256: {hash_key(OTHER_KEY)}}}
  limited:
    requests_per_minute: 2
    keys:
      - {{id: limited-1, sha256: {hash_key(LIMITED_KEY)}}}
"""
"""A shop whose safety has a floor, a tenant that is refused what is below it, one with two requests a minute."""


@dataclass
class GatedBackend(StubBackend):
    """A `StubBackend` that holds its answers, after their first piece, until `release`: which any thread may call."""

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = threading.Semaphore(0)
        """Counts the answers whose first piece has been taken."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await super().start()

    def release(self) -> None:
        assert self._loop is not None and self.gate is not None
        self._loop.call_soon_threadsafe(self.gate.set)

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        answer = super().answer(ask)
        try:
            is_first = True
            async for event in answer:
                if is_first:
                    self.begun.release()
                    is_first = False
                yield event
        finally:
            await answer.aclose()

    def await_begun(self) -> None:
        """Until one more answer has begun."""
        assert self.begun.acquire(timeout=DEADLINE_S)


@dataclass(frozen=True)
class LiveGateway:
    """A running gateway."""

    server: Served

    @property
    def service(self) -> Service:
        """What it serves."""
        return self.server.service

    @property
    def root(self) -> str:
        """Its address."""
        return self.server.url

    @property
    def url(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.root}/v1"

    @property
    def asks(self) -> list[Ask]:
        """What the backend was asked."""
        assert isinstance(self.service.backend, StubBackend)
        return self.service.backend.asks

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until a condition, read in the gateway's event loop, holds. Raises `TimeoutError` where it never does."""

        async def poll() -> None:
            async with asyncio.timeout(DEADLINE_S / 2):
                while not condition():
                    await asyncio.sleep(0.002)

        self.server.run(poll())


@contextmanager
def live_gateway(
    backend: StubBackend, folder: Path, *, tenants: str = TENANTS, guard: Guard | None = None, **more: Any
) -> Iterator[LiveGateway]:
    """A gateway before `backend` whose policy file, in `folder`, is the text `tenants`; `more` is `service_over`'s."""
    path = folder / "policy.yaml"
    path.write_text(tenants)
    source = PolicySource(path, {name: model.control_format for name, model in backend.models.items()})
    with served(service_over(backend, callers=source, guard=guard, **more)) as running:
        try:
            yield LiveGateway(running)
        finally:
            if isinstance(backend, GatedBackend):
                backend.release()
