"""One request from its authentication to its audit line, without HTTP."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.gateway.policies import KEY, FixedSource, policy_of
from tests.gateway.served import service_over
from tests.gateway.stub_backend import FORMAT, MODELS, StubBackend

from rheostat.errors import EndpointError, RheostatError
from rheostat.gateway.asked import Asked
from rheostat.gateway.audit import AuditEntry
from rheostat.gateway.backend import Ask, Outcome, Piece, Usage
from rheostat.gateway.bodies import BodyTypes, read_body
from rheostat.gateway.exchange import CLIENT_GONE, Exchange
from rheostat.gateway.guard import Guard, Guarded
from rheostat.gateway.permitted import LONGEST_ANSWER, permitted
from rheostat.gateway.policy import Tenant, local_tenant
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.service import Service
from rheostat.plugins import Judged, Progress
from rheostat.records import Message, Scores

TYPES = BodyTypes.of(FORMAT.attributes)
FORMATS = {"stub": FORMAT}


def policed(own: str) -> FixedSource:
    """The callers of a policy of one tenant, of which this is said."""
    return FixedSource(policy_of(own, FORMATS))


@dataclass
class Audit:
    """Keeps the entries; fails when it is told to."""

    entries: list[AuditEntry] = field(default_factory=list)
    is_failing: bool = False
    stops: bool = True

    def probe(self) -> OSError | None:
        return OSError("no") if self.is_failing else None

    def check(self) -> None:
        if self.is_failing:
            raise _audit_fails()

    async def write(self, entry: AuditEntry) -> None:
        self.entries.append(entry)
        if self.is_failing:
            raise _audit_fails()


def _audit_fails() -> Refusal:
    return Refusal(503, "audit_unavailable", "no", "wait")


@dataclass
class FakeGuard:
    """Gives a fixed answer, or fails."""

    fails_with: Exception | None = None
    text: str = "guarded"
    stopped: int = 0

    async def answer(self, ask: Ask, tenant: Tenant, note: Callable[[Piece | Usage], None]) -> Guarded:
        if self.fails_with is not None:
            raise self.fails_with
        note(Usage(5, 40))
        return Guarded(self.text, "stop", Usage(5, 40), 8, 3, {"safety": 0.9, "helpfulness": 0.8})

    async def score(self, ask: Ask, text: str) -> Scores:
        if self.fails_with is not None:
            raise self.fails_with
        return {"safety": len(text) / 100, "helpfulness": 0.5}

    async def stop(self) -> None:
        self.stopped += 1


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


async def ask(
    service: Service, *, key: str | None = KEY, **body: Any
) -> tuple[Exchange, list[Piece | Outcome]]:
    """A whole request, as the HTTP side leads it."""
    exchange = Exchange(service, "id-1", "POST /v1/chat/completions")
    events: list[Piece | Outcome] = []
    raw = json.dumps({"messages": [{"role": "user", "content": "one two"}]} | body).encode()
    try:
        async with exchange.lifetime():
            exchange.authenticate(key)
            exchange.read(read_body(TYPES.chat, raw), [])
            async for event in exchange.events():
                events.append(event)
            await exchange.finish(200)
    except Refusal as refusal:
        await exchange.finish(refusal.status, refusal)
        raise
    return exchange, events


# What is permitted


def asked(**changes: Any) -> Asked:
    whole = Asked(
        model=None, messages=(Message("user", "x"),), dials={}, temperature=1.0, top_p=1.0, max_tokens=None, samples=1,
        seed=None, stop=(), streams=False, includes_usage=False, wants_scores=False,
    )  # fmt: skip
    return replace(whole, **changes)


def test_the_longest_answer_is_what_was_asked_the_policy_and_the_context_leave() -> None:
    free, bounded = local_tenant(FORMATS), replace(local_tenant(FORMATS), max_tokens=50)
    endless = {"stub": replace(MODELS["stub"], context=None)}
    for tenant, models, wanted, given in (
        (free, MODELS, None, 1023),
        (free, endless, None, LONGEST_ANSWER),
        (free, endless, 5000, 5000),
        (free, MODELS, 5000, 1023),
        (free, MODELS, 7, 7),
        (bounded, MODELS, None, 50),
        (bounded, MODELS, 5000, 50),
    ):
        found = permitted(asked(max_tokens=wanted), tenant, models, has_rewards=False)
        assert found.ask.max_tokens == given


@pytest.mark.parametrize(
    ("own", "changes", "status", "code"),
    [
        ("max_tokens: 5", {"model": "other"}, 404, "model_not_found"),
        (
            "system_turn: refuse",
            {"messages": (Message("system", "s"), Message("user", "x"))},
            403,
            "system_turn_refused",
        ),
        ("scores: false", {"wants_scores": True}, 403, "scores_refused"),
        ("scores: true", {"wants_scores": True, "samples": 2}, 400, "invalid_value"),
        ("guard: {}", {"samples": 2}, 400, "invalid_value"),
        ("floors: {safety: 0.5}, below_floor: refuse", {"dials": {"safety": 0.25}}, 403, "below_floor"),
        ("max_tokens: 5", {"dials": {"mood": 0.25}}, 400, "unknown_dial"),
    ],
)
def test_what_the_policy_forbids_is_refused(
    own: str, changes: Mapping[str, Any], status: int, code: str
) -> None:
    tenant = policy_of(own, FORMATS).tenants["shop"]
    with pytest.raises(Refusal) as refused:
        permitted(asked(**changes), tenant, MODELS, has_rewards=True)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_a_tenant_without_models_is_told_so() -> None:
    with pytest.raises(Refusal) as refused:
        permitted(asked(), replace(local_tenant(FORMATS), dials={}), MODELS, has_rewards=False)
    assert refused.value.code == "model_not_found"


def test_scores_need_rewards() -> None:
    with pytest.raises(Refusal) as refused:
        permitted(asked(wants_scores=True), local_tenant(FORMATS), MODELS, has_rewards=False)
    assert refused.value.code == "scores_unavailable"


# Whole requests


def test_a_request_leaves_its_line_its_tokens_and_its_counts() -> None:
    async def work() -> None:
        backend, audit = StubBackend(), Audit()
        service = service_over(backend, callers=policed("floors: {safety: 0.75}"), audit=audit)
        exchange, events = await ask(service, safety=0.1)
        assert events[-1] == Outcome(Usage(7, 3)) == exchange.outcome
        assert exchange.answers == ["[helpful=1][harmless=0.75] one two"]
        (entry,) = audit.entries
        assert (entry.status, entry.tenant, entry.key, entry.model, entry.finish) == (
            200,
            "shop",
            "shop-1",
            "stub",
            ("stop",),
        )
        assert entry.dials["safety"].why == "raised to the floor 0.75"
        assert entry.messages is None and entry.answers is None
        assert entry.queue_ms is not None and entry.first_token_ms is not None
        value = service.telemetry.registry.get_sample_value
        assert value("rheostat_tokens_total", {"kind": "completion", "model": "stub", "tenant": "shop"}) == 3
        assert value("rheostat_dials_total", {"dial": "safety", "change": "raised by policy"}) == 1
        assert service.admission.working == 0

    run(work)


def test_the_policy_of_the_moment_of_authentication_holds_to_the_end() -> None:
    async def work() -> None:
        backend, audit = StubBackend(gate=asyncio.Event()), Audit()
        callers = policed("audit_texts: true")
        before = callers.policy.digest
        service = service_over(backend, callers=callers, audit=audit)
        task = asyncio.ensure_future(ask(service, safety=0))
        while not backend.asks:
            await asyncio.sleep(0)
        callers.policy = policy_of("floors: {safety: 1}", FORMATS)
        assert backend.gate is not None
        backend.gate.set()
        exchange, _ = await task
        assert exchange.answers == ["[helpful=1][harmless=0] one two"]
        assert audit.entries[0].policy == before and audit.entries[0].answers == exchange.answers

    run(work)


def test_tokens_that_were_not_used_are_given_back_and_requests_count() -> None:
    async def work() -> None:
        own = "tokens_per_minute: 140, requests_per_minute: 3"
        service = service_over(StubBackend(), callers=policed(own))
        for _ in range(3):
            await ask(service, max_tokens=100)
        with pytest.raises(Refusal) as refused:
            await ask(service, max_tokens=100)
        assert refused.value.code == "rate_limited"

    run(work)


def test_a_tenant_that_takes_all_its_places_waits_for_none_of_the_others() -> None:
    """Its second request at once is refused before it takes a place; when the first has ended the next is answered."""

    async def work() -> None:
        backend = StubBackend()
        backend.gate = asyncio.Event()
        service = service_over(backend, callers=policed("requests_at_once: 1"))
        first = asyncio.create_task(ask(service))
        while not service.admission.working:
            await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await ask(service)
        assert refused.value.code == "too_many_at_once" and service.admission.working == 1
        backend.gate.set()
        await first
        await ask(service)

    run(work)


def test_a_guarded_answer_is_what_the_guard_gives_and_its_tokens_count() -> None:
    async def work() -> None:
        backend, audit, guard = StubBackend(), Audit(), FakeGuard()
        callers = policed("guard: {samples: 8}, scores: true")
        service = service_over(backend, callers=callers, audit=audit, guard=guard)
        exchange, events = await ask(service)
        report = {"samples": 8, "reached_floors": 3, "refused": False}
        assert exchange.answers == ["guarded"] and not backend.asks
        scores = {"safety": 0.9, "helpfulness": 0.8}
        assert exchange.outcome == Outcome(Usage(5, 40), report, scores, shows_scores=False)
        assert (await ask(service, score=True))[0].outcome == Outcome(Usage(5, 40), report, scores)
        assert audit.entries[0].guard == report and len(events) == 2
        guard.fails_with = Refusal(503, "guard_unavailable", "no", "wait")
        with pytest.raises(Refusal, match="no"):
            await ask(service)
        value = service.telemetry.registry.get_sample_value
        assert value("rheostat_guard_total", {"outcome": "given"}) == 2
        assert value("rheostat_guard_total", {"outcome": "failed"}) == 1
        await service.stop()
        assert guard.stopped == 1

    run(work)


def test_a_guard_without_rewards_gives_nothing() -> None:
    async def work() -> None:
        backend = StubBackend()
        service = service_over(backend, callers=policed("guard: {samples: 2}"))
        with pytest.raises(Refusal) as refused:
            await ask(service)
        assert refused.value.code == "guard_unavailable" and not backend.asks

    run(work)


def test_scores_come_with_the_outcome() -> None:
    async def work() -> None:
        service = service_over(StubBackend(), callers=policed("scores: true"), guard=FakeGuard())
        exchange, _ = await ask(service, score=True)
        assert exchange.outcome is not None
        assert exchange.outcome.scores == {"safety": len(exchange.answers[0]) / 100, "helpfulness": 0.5}

    run(work)


def test_without_its_line_nothing_is_answered() -> None:
    async def work() -> None:
        backend, audit = StubBackend(), Audit(is_failing=True)
        service = service_over(backend, callers=policed("scores: true"), audit=audit)
        with pytest.raises(Refusal) as refused:
            await ask(service)
        assert refused.value.code == "audit_unavailable" and not backend.asks
        exchange = Exchange(service, "id", "POST /x")
        with pytest.raises(Refusal):
            await exchange.finish(200)
        await exchange.finish(200)
        value = service.telemetry.registry.get_sample_value
        assert value("rheostat_requests_total", {"route": "POST /x", "status": "503", "tenant": ""}) == 1

    run(work)


@pytest.mark.parametrize(
    "fault",
    [
        EndpointError("x", hint="y"),
        Refusal(429, "busy", "x", "y"),
        ZeroDivisionError(),
        RheostatError("x", hint="y"),
    ],
)
def test_whatever_fails_its_work_ends_and_its_place_is_free(fault: Exception) -> None:
    async def work() -> None:
        backend = StubBackend(fails_with=fault, fails_after=1)
        service = service_over(backend, callers=policed("tokens_per_minute: 5000"), in_work=1, queue=0)
        for _ in range(3):
            with pytest.raises((Refusal, ZeroDivisionError)):
                await ask(service, max_tokens=3)
        assert backend.closed == 3 and service.admission.working == 0

    run(work)


@pytest.mark.parametrize("how", ["cut", "gone", "late"])
def test_a_request_that_is_cut_ends_at_once(how: str) -> None:
    async def work() -> None:
        backend, audit = StubBackend(gate=asyncio.Event()), Audit()
        timeout_s = 0.05 if how == "late" else 60
        service = service_over(backend, callers=policed("scores: true"), audit=audit, timeout_s=timeout_s)
        exchange = Exchange(service, "id", "POST /x")
        with pytest.raises(Refusal) as refused:
            async with exchange.lifetime():
                exchange.authenticate(KEY)
                exchange.read(
                    read_body(TYPES.chat, b'{"messages": [{"role": "user", "content": "x y"}]}'), []
                )
                async for _ in exchange.events():
                    if how == "cut":
                        exchange.cut(Refusal(503, "shutting_down", "x", "y"))
                    elif how == "gone":
                        exchange.client_gone()
        expected = {
            "cut": (503, "shutting_down"),
            "gone": (CLIENT_GONE, "client_gone"),
            "late": (504, "timeout"),
        }
        assert (refused.value.status, refused.value.code) == expected[how]
        await exchange.finish(refused.value.status, refused.value)
        assert exchange.is_gone == (how == "gone")
        exchange.cut(Refusal(503, "again", "x", "y"))
        assert [entry.refusal for entry in audit.entries] == [expected[how][1]]

    run(work)


def test_a_timeout_of_the_backends_own_is_no_timeout_of_the_request() -> None:
    async def work() -> None:
        service = service_over(StubBackend(fails_with=TimeoutError()), callers=policed("scores: true"))
        with pytest.raises(TimeoutError):
            await ask(service)

    run(work)


def test_the_labels_of_the_metrics_are_nobodys_to_make_up() -> None:
    async def work() -> None:
        service = service_over(StubBackend(), callers=policed("scores: true"))
        for number in range(20):
            with pytest.raises(Refusal):
                await ask(service, model=f"made-up-{number}")
            with pytest.raises(Refusal):
                await ask(service, key=f"rheo-{number}")
            with pytest.raises(Refusal):
                await ask(service, chat_template_kwargs={f"made-up-{number}": 1})
        text = service.telemetry.text().decode()
        assert "made-up" not in text and len(text) < 10_000

    run(work)


# What a request that is cut costs


@dataclass
class Slow(StubBackend):
    """Says of each sample what it is given, then waits, its usage never told."""

    said: tuple[tuple[str, ...], ...] = ()
    began: asyncio.Event = field(default_factory=asyncio.Event)
    tells_usage: bool = False

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        self.asks.append(ask)
        for sample, texts in enumerate(self.said):
            for text in texts:
                yield Piece(sample, text)
        if self.tells_usage:
            for sample in range(ask.samples):
                yield Piece(sample, "", "stop")
            yield Usage(5, 40)
            return
        self.began.set()
        await asyncio.Event().wait()


@dataclass
class NeverScored:
    """Rewards of which no scores come."""

    begun: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        self.begun.set()
        assert self.gate.wait(20)
        raise ValueError("no scores")


PROMPT = 3
"""Tokens that a conversation of seven bytes is taken to have."""


@pytest.mark.parametrize(
    ("own", "body", "said", "cost"),
    [
        ("guard: {samples: 2}", {}, (), PROMPT + 2 * 100),  # nothing is seen of a server's answers
        ("guard: {samples: 2}", {}, (("a", "b", "c"), ("d", "e")), PROMPT + 5),  # a piece is a token
        ("guard: {samples: 2}", {}, (("x" * 80,),), PROMPT + 20 + 100),  # one came whole, the other is on its way
        ("guard: {samples: 2}", {"stream": True}, (), PROMPT + 2 * 100),
        ("guard: {samples: 2}", {"temperature": 0}, (), PROMPT + 100),
        ("guard: {samples: 2}", {}, (("x" * 4000,), ("a",)), PROMPT + 100 + 1),
        ("scores: true", {}, (), PROMPT + 100),
        ("scores: true", {"stream": True}, (), PROMPT),
        ("scores: true", {"stream": True}, (("a", "b"),), PROMPT + 2),
    ],
)
def test_a_request_that_is_cut_costs_what_was_drawn(
    own: str, body: dict[str, Any], said: tuple[tuple[str, ...], ...], cost: int
) -> None:
    async def work() -> None:
        backend, scorer = Slow(said=said), NeverScored()
        callers = policed(f"{own}, tokens_per_minute: 5000")
        guard = Guard(backend, scorer)
        service = service_over(backend, callers=callers, guard=guard)
        asking = asyncio.ensure_future(ask(service, max_tokens=100, **body))
        await backend.began.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert left(service, callers) == 5000 - cost
        await guard.stop()

    run(work)


@pytest.mark.parametrize("how", ["gone", "unscored"])
def test_an_answer_that_is_not_given_in_the_end_costs_its_samples(how: str) -> None:
    async def work() -> None:
        backend, scorer = Slow(tells_usage=True), NeverScored()
        callers = policed("guard: {samples: 2}, tokens_per_minute: 5000")
        guard = Guard(backend, scorer)
        service = service_over(backend, callers=callers, guard=guard)
        asking = asyncio.ensure_future(ask(service, max_tokens=100))
        while not scorer.begun.is_set():
            await asyncio.sleep(0.001)
        if how == "gone":
            asking.cancel()
            await asyncio.wait([asking])
        scorer.gate.set()
        await asyncio.wait([asking])
        assert left(service, callers) == 5000 - 45
        await guard.stop()

    run(work)


def left(service: Service, callers: FixedSource) -> int:
    return int(service.limits.headers(callers.policy.tenants["shop"])["x-ratelimit-remaining-tokens"])
