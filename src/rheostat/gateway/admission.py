"""How many requests are in work, how many wait, and who is sent away: back-pressure and draining."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

from rheostat.gateway.refusals import Refusal

_WEIGHT = 0.1
"""Of the last service time in their running mean."""


class Admission:
    """Lets `in_work` requests work at once and `queue` more wait for their turn, first come, first served."""

    def __init__(self, *, in_work: int, queue: int) -> None:
        assert in_work >= 1 and queue >= 0, (in_work, queue)
        self._places = in_work
        self._queue_length = queue
        self._working = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s: float | None = None
        self.is_draining = False

    @property
    def working(self) -> int:
        """Requests in work."""
        return self._working

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def retry_after_s(self) -> float:
        """When a request that comes back may find a place, in whole seconds: by how long the last ones took.

        What is ahead of it, the queue and the ones in work, goes through the places at the mean service time.
        """
        if self._mean_s is None:
            return 1.0
        rounds = (len(self._waiting) + 1) / self._places
        return float(min(600, max(1, math.ceil(rounds * self._mean_s))))

    def check(self) -> None:
        """Raises `Refusal` where a request could not even wait: 503 while draining, 429 with a full queue."""
        if self.is_draining:
            raise draining()
        if self._working >= self._places and len(self._waiting) >= self._queue_length:
            raise Refusal(
                429,
                "queue_full",
                f"{self._working} requests are in work and {len(self._waiting)} wait, which is all there is room for",
                "ask again after the time that Retry-After says",
                retry_after_s=self.retry_after_s(),
            )

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those in work, waited for in the queue. Raises as `check` does."""
        self.check()
        await self._enter()
        begun = monotonic()
        try:
            yield
        finally:
            self.record(monotonic() - begun)
            self._hand_on()

    async def _enter(self) -> None:
        if self._working < self._places:
            self._working += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._hand_on()
            else:
                with suppress(ValueError):  # it may have been passed over already
                    self._waiting.remove(turn)
            raise

    def record(self, took_s: float) -> None:
        """A request took so long in work."""
        self._mean_s = took_s if self._mean_s is None else self._mean_s + _WEIGHT * (took_s - self._mean_s)

    def _hand_on(self) -> None:
        """A place that has become free goes to the first who waits, who is counted as working from now on."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._working -= 1

    def drain(self) -> None:
        """From now on nobody new is let in; those who work or wait already go on."""
        self.is_draining = True


def draining() -> Refusal:
    """What a request is told that comes while the gateway shuts down, or is cut by it."""
    return Refusal(
        503,
        "shutting_down",
        "the gateway is shutting down",
        "ask again soon, or ask another one",
        retry_after_s=5.0,
    )
