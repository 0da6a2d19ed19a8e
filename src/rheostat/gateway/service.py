"""What all requests share: who answers, who may ask, and which requests are under way.

The interfaces of the limits, the audit log and the guard stand here, as requests use them (`exchange.py`).
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rheostat.gateway.admission import Admission, draining
from rheostat.gateway.audit import AuditEntry
from rheostat.gateway.backend import Ask, Backend, Piece, Usage
from rheostat.gateway.guard import Guarded
from rheostat.gateway.policy import Tenant
from rheostat.gateway.policy_source import CallerSource
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.telemetry import Telemetry
from rheostat.records import Scores

_logger = logging.getLogger(__name__)


class Reserved(Protocol):
    """Tokens counted as used until it is known how many they were."""

    def settle(self, used: int) -> None:
        """Count these in their place."""
        ...


class Limits(Protocol):
    """Requests and tokens a minute, by tenant."""

    def take_request(self, tenant: Tenant) -> None:
        """Raises `Refusal` (429) where it is one too many."""
        ...

    def under_way(self, tenant: Tenant) -> AbstractContextManager[None]:
        """While this lasts a request is under way. Raises `Refusal` (429) where it is one too many."""
        ...

    def reserve_tokens(self, tenant: Tenant, tokens: int) -> Reserved:
        """Raises `Refusal` (429, or 400 where they never fit)."""
        ...

    def headers(self, tenant: Tenant) -> Mapping[str, str]:
        """OpenAI's `x-ratelimit-…` headers."""
        ...


class Audit(Protocol):
    """The audit log."""

    @property
    def stops(self) -> bool:
        """Whether nothing is answered while no line can be written."""
        ...

    def probe(self) -> OSError | None:
        """Why no line can be written now; None: one can."""
        ...

    def check(self) -> None:
        """Raises `Refusal` (503) where nothing may be answered, since no line could be written."""
        ...

    async def write(self, entry: AuditEntry) -> None:
        """Raises `Refusal` (503) where the line could not be written and the policy stops then."""
        ...


class Guard(Protocol):
    """Draws several answers and gives the one nearest the dials; scores answers."""

    async def answer(self, ask: Ask, tenant: Tenant, note: Callable[[Piece | Usage], None]) -> Guarded:
        """Raises `Refusal` where the rewards fail: no answer goes out unscored. `note` hears of all that is drawn."""
        ...

    async def score(self, ask: Ask, text: str) -> Scores:
        """The achieved scores of an answer, in [0, 1] by dial. Raises `Refusal` (503)."""
        ...

    async def stop(self) -> None:
        """Ends the scoring."""
        ...


class UnderWay(Protocol):
    """A request under way."""

    def cut(self, refusal: Refusal) -> None:
        """Ends its work at once, with this error."""
        ...


@dataclass(slots=True, kw_only=True)
class Service:
    """What all requests share."""

    backend: Backend
    callers: CallerSource
    limits: Limits
    admission: Admission
    telemetry: Telemetry
    audit: Audit | None = None
    guard: Guard | None = None
    timeout_s: float = 300.0
    under_way: set[UnderWay] = field(default_factory=set)
    _one_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Ready to answer afterwards. Raises `ModelError`."""
        await self.backend.start()
        await self.callers.start()

    async def stop(self) -> None:
        """Frees all."""
        await self.callers.stop()
        if self.guard is not None:
            await self.guard.stop()
        await self.backend.stop()

    async def drain(self, patience_s: float) -> None:
        """Let nobody new in, wait for those under way, and cut what takes longer than `patience_s`."""
        self.admission.drain()
        try:
            async with asyncio.timeout(patience_s):
                await self._all_ended()
        except TimeoutError:
            _logger.warning(
                "%d requests took longer than %g s to end and are cut", len(self.under_way), patience_s
            )
            self.cut_all()
            await self._all_ended()

    def cut_all(self) -> None:
        """End all requests under way with an error."""
        for exchange in list(self.under_way):
            exchange.cut(draining())

    @contextmanager
    def hosting(self, exchange: UnderWay) -> Iterator[None]:
        """While this lasts the request is under way: the draining waits for it."""
        self.under_way.add(exchange)
        try:
            yield
        finally:
            self.under_way.discard(exchange)
            self._one_ended.set()

    async def _all_ended(self) -> None:
        while self.under_way:
            self._one_ended.clear()
            await self._one_ended.wait()
