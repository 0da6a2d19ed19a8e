"""Requests and tokens a minute: what fits, when the next fits, and what becomes of what was reserved."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.policies import tenant

from rheostat.gateway.limits import WINDOW_S, RateLimits, Window, duration_text
from rheostat.gateway.refusals import Refusal


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def refusal_of(limits: RateLimits, tokens: int, limit: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        limits.reserve_tokens(tenant(tokens_per_minute=limit), tokens)
    return caught.value


def test_one_request_too_many_is_told_when_the_next_fits() -> None:
    """Three at 0 s, 3 a minute. In the next minute they weigh 3 · (1 − t/60), which is 2 at t = 20: wait 80 s."""
    clock = Clock()
    limits, shop = RateLimits(clock), tenant(requests_per_minute=3)
    for _ in range(3):
        limits.take_request(shop)
    with pytest.raises(Refusal) as caught:
        limits.take_request(shop)
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    assert caught.value.retry_after_s == pytest.approx(80)
    clock.now = 79.9
    with pytest.raises(Refusal):
        limits.take_request(shop)
    clock.now = 80
    limits.take_request(shop)


def test_a_refused_request_is_not_counted() -> None:
    clock = Clock()
    limits, shop = RateLimits(clock), tenant(requests_per_minute=1)
    limits.take_request(shop)
    for _ in range(100):
        with pytest.raises(Refusal):
            limits.take_request(shop)
    clock.now = 2 * WINDOW_S
    limits.take_request(shop)


def test_requests_that_run_together_cannot_take_more_tokens_than_there_are() -> None:
    limits = RateLimits(Clock())
    limited = tenant(tokens_per_minute=1000)
    running = [limits.reserve_tokens(limited, 400) for _ in range(2)]
    refused = refusal_of(limits, 400, 1000)
    assert (refused.status, refused.code) == (429, "tokens_limited")
    assert "400" in refused.message and "200" in refused.message
    running[0].settle(100)  # 300 come back: 500 are free
    limits.reserve_tokens(limited, 500)
    assert refusal_of(limits, 1, 1000).status == 429


def test_settling_twice_gives_nothing_back_twice() -> None:
    limits = RateLimits(Clock())
    reservation = limits.reserve_tokens(tenant(tokens_per_minute=1000), 1000)
    reservation.settle(600)
    reservation.settle(0)
    assert refusal_of(limits, 401, 1000).status == 429
    limits.reserve_tokens(tenant(tokens_per_minute=1000), 400)


def test_more_tokens_than_were_reserved_are_counted() -> None:
    limits = RateLimits(Clock())
    limits.reserve_tokens(tenant(tokens_per_minute=1000), 10).settle(990)
    assert refusal_of(limits, 11, 1000).status == 429


def test_tokens_come_back_to_the_minute_they_were_reserved_in() -> None:
    """800 at 50 s; settled as 200 at 90 s, where the minute before weighs one half: 100 of 1000 are used."""
    clock = Clock(50)
    limits, limited = RateLimits(clock), tenant(tokens_per_minute=1000)
    reservation = limits.reserve_tokens(limited, 800)
    clock.now = 90
    assert limits.headers(limited)["x-ratelimit-remaining-tokens"] == "600"
    reservation.settle(200)
    assert limits.headers(limited)["x-ratelimit-remaining-tokens"] == "900"


def test_a_settlement_long_after_gives_back_what_is_gone_already_not_again() -> None:
    clock = Clock()
    limits, limited = RateLimits(clock), tenant(tokens_per_minute=1000)
    reservation = limits.reserve_tokens(limited, 1000)
    clock.now = 500
    limits.reserve_tokens(limited, 700)
    reservation.settle(0)
    assert limits.headers(limited)["x-ratelimit-remaining-tokens"] == "300"


def test_a_request_that_never_fits_is_a_fault_of_its_own() -> None:
    limits = RateLimits(Clock())
    refused = refusal_of(limits, 1001, 1000)
    assert (refused.status, refused.code, refused.param) == (400, "tokens_never_fit", "max_tokens")
    assert "1001" in refused.message and "1000" in refused.message and refused.retry_after_s is None
    limits.reserve_tokens(tenant(tokens_per_minute=1000), 1000)


def test_a_new_limit_finds_what_was_counted() -> None:
    limits = RateLimits(Clock())
    for _ in range(5):
        limits.take_request(tenant())
    with pytest.raises(Refusal):
        limits.take_request(tenant(requests_per_minute=5))
    limits.take_request(tenant(requests_per_minute=6))
    limits.reserve_tokens(tenant(), 900)
    assert refusal_of(limits, 101, 1000).status == 429


def test_a_lowered_limit_below_what_was_counted_has_a_true_wait_too() -> None:
    """100 counted at 0 s, now 10 a minute: 100 · (1 − t/60) + 1 ≤ 10 from t = 54.6 s of the next minute on."""
    clock = Clock()
    limits = RateLimits(clock)
    for _ in range(100):
        limits.take_request(tenant())
    with pytest.raises(Refusal) as caught:
        limits.take_request(tenant(requests_per_minute=10))
    assert caught.value.retry_after_s == pytest.approx(60 + 54.6)


def test_tenants_do_not_share_a_counter() -> None:
    limits = RateLimits(Clock())
    limits.take_request(tenant("shop", requests_per_minute=1))
    limits.take_request(tenant("lab", requests_per_minute=1))


def test_headers_are_those_of_openai() -> None:
    clock = Clock(30)
    limits = RateLimits(clock)
    both = tenant(requests_per_minute=10, tokens_per_minute=1000)
    limits.take_request(both)
    limits.reserve_tokens(both, 300)
    assert limits.headers(both) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1m30s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "700",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    assert limits.headers(tenant()) == {}
    assert limits.headers(tenant("idle", requests_per_minute=2)) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "0s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0004, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (119.999, "1m59.999s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


events = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 400)), max_size=12)


@settings(max_examples=80, deadline=None)
@given(events, st.integers(1, 400))
def test_who_waits_as_told_gets_in_and_not_much_earlier(events: list[tuple[float, int]], amount: int) -> None:
    """Whatever was counted, at whatever limit: it fits after the wait, and not a hundredth of a second before."""
    limit, now, window = 400, 0.0, Window()
    for pause, counted in events:
        now += pause
        window.add(counted, now)
    wait_s = window.wait_s(amount, limit, now)
    assert 0 <= wait_s <= 2 * WINDOW_S
    if wait_s > 0.01:
        early = Window()
        early.__dict__.update(window.__dict__)
        assert early.wait_s(amount, limit, now + wait_s - 0.01) > 0
    assert window.wait_s(amount, limit, now + wait_s) == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 400)), max_size=30))
def test_what_is_admitted_stays_near_the_limit_in_every_minute(asked: list[tuple[float, int]]) -> None:
    """Beside a slow count of every event: no calendar minute holds more than the limit, no sixty seconds twice it."""
    limit, now, window = 400, 0.0, Window()
    admitted: list[tuple[float, int]] = []
    for pause, amount in asked:
        now += pause
        if window.wait_s(amount, limit, now) == 0:
            window.add(amount, now)
            admitted.append((now, amount))
    for minute in {math.floor(when / WINDOW_S) for when, _ in admitted}:
        assert sum(amount for when, amount in admitted if math.floor(when / WINDOW_S) == minute) <= limit
    for start, _ in admitted:
        assert sum(amount for when, amount in admitted if start <= when < start + WINDOW_S) <= 2 * limit


def test_a_tenant_has_so_many_requests_under_way_and_another_its_own() -> None:
    limits, shop, lab = RateLimits(), tenant(requests_at_once=2), tenant("lab", requests_at_once=1)
    with limits.under_way(shop):
        with limits.under_way(shop), limits.under_way(lab):
            with pytest.raises(Refusal) as refused, limits.under_way(shop):
                pass
            assert (refused.value.status, refused.value.code) == (429, "too_many_at_once")
            assert refused.value.retry_after_s == 1.0
        with limits.under_way(shop):
            pass


def test_a_request_that_fails_leaves_its_place_and_a_reload_finds_the_count() -> None:
    limits = RateLimits()
    with pytest.raises(KeyError), limits.under_way(tenant(requests_at_once=1)):
        raise KeyError
    narrower = tenant(requests_at_once=1)
    with limits.under_way(tenant(requests_at_once=5)), pytest.raises(Refusal), limits.under_way(narrower):
        pass
