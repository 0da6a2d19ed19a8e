"""Requests and tokens a minute, and requests at once, by tenant: O(1) a request. In this process alone.

A minute is a sliding window counter, estimated as usual: the minute under way counted whole, the one before by the
share of it that a window of sixty seconds still covers. Our own and not the library `limits`, whose counters are named
by the limit, so that a new limit forgets them, give no tokens back, and say when one more request fits but not when a
thousand tokens do.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rheostat.gateway.policy import Tenant
from rheostat.gateway.refusals import Refusal

WINDOW_S = 60.0
_ROUNDING = 1e-6

RATE_HEADERS = tuple(
    f"x-ratelimit-{part}-{what}" for what in ("requests", "tokens") for part in ("limit", "remaining", "reset")
)
"""The headers that answers to a tenant with limits bear."""


class Window:
    """What was counted in the last minute, estimated from this minute and the one before."""

    def __init__(self) -> None:
        self._minute = 0
        self._current = 0
        self._previous = 0

    def add(self, amount: int, now: float) -> int:
        """Count `amount` now; gives the minute in which it is counted."""
        self._turn(now)
        self._current += amount
        return self._minute

    def give_back(self, amount: int, minute: int, now: float) -> None:
        """Count `amount` less in a minute, where that still counts."""
        self._turn(now)
        if minute == self._minute:
            self._current = max(0, self._current - amount)
        elif minute == self._minute - 1:
            self._previous = max(0, self._previous - amount)

    def used(self, now: float) -> float:
        """The estimate for the last sixty seconds."""
        self._turn(now)
        return self._previous * (1 - now % WINDOW_S / WINDOW_S) + self._current

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount`, at most `limit`, fits if nothing else comes; 0 where it fits now."""
        assert amount <= limit, (amount, limit)
        if self.used(now) + amount <= limit + _ROUNDING:
            return 0.0
        left_s = WINDOW_S - now % WINDOW_S
        free = limit - amount - self._current
        if free >= 0:  # when enough of the minute before has gone by
            return max(0.0, left_s - WINDOW_S * free / self._previous)
        return left_s + max(0.0, WINDOW_S - WINDOW_S * (limit - amount) / self._current)

    def reset_s(self, now: float) -> float:
        """Seconds until nothing is counted any more."""
        self._turn(now)
        left_s = WINDOW_S - now % WINDOW_S
        if self._current:
            return left_s + WINDOW_S
        return left_s if self._previous else 0.0

    def _turn(self, now: float) -> None:
        minute = int(now // WINDOW_S)
        if minute != self._minute:
            self._previous = self._current if minute == self._minute + 1 else 0
            self._current, self._minute = 0, minute


@dataclass(slots=True)
class Reservation:
    """Tokens that are counted as used from a request's admission on, until it is known how many they were."""

    _window: Window
    _clock: Callable[[], float]
    _minute: int
    reserved: int
    _is_settled: bool = False

    def settle(self, used: int) -> None:
        """Count the tokens that were used in place of those reserved; a second call changes nothing."""
        if self._is_settled:
            return
        self._is_settled = True
        now = self._clock()
        if used < self.reserved:
            self._window.give_back(self.reserved - used, self._minute, now)
        else:
            self._window.add(used - self.reserved, now)


class RateLimits:
    """The counters of all tenants. For one event loop: nothing here waits, so no two requests come between.

    A counter belongs to a tenant's name and knows no limit, so that a reloaded policy finds it as it was. What a
    tenant without limits does is counted too, for the limits that it may get.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, Window] = {}
        self._tokens: dict[str, Window] = {}
        self._at_once: Counter[str] = Counter()

    def take_request(self, tenant: Tenant) -> None:
        """Count a request. Raises `Refusal` (429) where it is one too many, which is not counted."""
        window = self._requests.setdefault(tenant.name, Window())
        limit, now = tenant.requests_per_minute, self._clock()
        if limit is not None and (wait_s := window.wait_s(1, limit, now)):
            raise Refusal(
                429,
                "rate_limited",
                f"got more requests than the {limit} a minute that are allowed",
                f"ask again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        window.add(1, now)

    @contextmanager
    def under_way(self, tenant: Tenant) -> Iterator[None]:
        """While this lasts a request of the tenant is under way. Raises `Refusal` (429) where it is one too many.

        It keeps room for the others: slow readers of one tenant could take every place there is.
        """
        limit = tenant.requests_at_once
        if limit is not None and self._at_once[tenant.name] >= limit:
            raise Refusal(
                429,
                "too_many_at_once",
                f"{self._at_once[tenant.name]} requests are under way, allowed are {limit} at once",
                "ask again when one has ended",
                retry_after_s=1.0,
            )
        self._at_once[tenant.name] += 1
        try:
            yield
        finally:
            self._at_once[tenant.name] -= 1

    def reserve_tokens(self, tenant: Tenant, tokens: int) -> Reservation:
        """Count the most tokens that a request may take, prompt and answers together, until it is settled.

        Raises `Refusal`: 429 where they do not fit now, 400 where they never can.
        """
        window = self._tokens.setdefault(tenant.name, Window())
        limit, now = tenant.tokens_per_minute, self._clock()
        if limit is not None and tokens > limit:
            raise Refusal(
                400,
                "tokens_never_fit",
                f"this request may take {tokens} tokens, prompt and answers together, allowed are {limit} a minute: "
                "it can never fit",
                "lower max_tokens or n, or shorten the conversation",
                param="max_tokens",
            )
        if limit is not None and (wait_s := window.wait_s(tokens, limit, now)):
            raise Refusal(
                429,
                "tokens_limited",
                f"this request may take {tokens} tokens, and of the {limit} a minute that are allowed "
                f"{_remaining(window, limit, now)} are left",
                f"ask again in {math.ceil(wait_s)} s, or with a lower max_tokens",
                retry_after_s=wait_s,
            )
        return Reservation(window, self._clock, window.add(tokens, now), tokens)

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…` headers as they stand now, for the limits that the tenant has."""
        now = self._clock()
        headers = {}
        for what, limit, windows in (
            ("requests", tenant.requests_per_minute, self._requests),
            ("tokens", tenant.tokens_per_minute, self._tokens),
        ):
            if limit is not None:
                window = windows.setdefault(tenant.name, Window())
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(_remaining(window, limit, now))
                headers[f"x-ratelimit-reset-{what}"] = duration_text(window.reset_s(now))
        return headers


def duration_text(seconds: float) -> str:
    """A duration as OpenAI's headers have it: `0s`, `120ms`, `1.5s`, `1m0s`; rounded up to milliseconds."""
    thousandths = math.ceil(seconds * 1000 - _ROUNDING)
    if 0 < thousandths < 1000:
        return f"{thousandths}ms"
    minutes, thousandths = divmod(thousandths, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{thousandths / 1000:g}s"


def _remaining(window: Window, limit: int, now: float) -> int:
    return max(0, math.floor(limit - window.used(now) + _ROUNDING))
