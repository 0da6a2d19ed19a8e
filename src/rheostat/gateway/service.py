"""One request from its authentication to its audit line, without HTTP.

An `Exchange` is one request. It is authenticated, read, answered and finished, in that order; `finish` writes the one
audit line, whatever became of the request. The tenant's policy is the one of the moment of authentication throughout.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

from rheostat.errors import RheostatError
from rheostat.gateway.admission import Admission, draining
from rheostat.gateway.asked import LONGEST_ANSWER, Asked, Headers, read_asked
from rheostat.gateway.audit import AuditEntry
from rheostat.gateway.backend import Ask, Backend, Piece, ServedModel, Usage
from rheostat.gateway.bodies import ChatBody, CompletionBody
from rheostat.gateway.dials import Grant, grant
from rheostat.gateway.faults import refusal_of
from rheostat.gateway.policy import Caller, Tenant
from rheostat.gateway.policy_source import CallerSource
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.telemetry import NOBODY, Telemetry
from rheostat.records import Finish, Message, Scores

CLIENT_GONE = 499
"""The status of a request whose client went before it was answered, in the log and the metrics."""

_BYTES_A_TOKEN = 3
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

    def reserve_tokens(self, tenant: Tenant, tokens: int) -> Reserved:
        """Raises `Refusal` (429, or 400 where they never fit)."""
        ...

    def headers(self, tenant: Tenant) -> Mapping[str, str]:
        """OpenAI's `x-ratelimit-…` headers."""
        ...


class Audit(Protocol):
    """The audit log."""

    @property
    def is_failing(self) -> bool:
        """Whether the last line could not be written."""
        ...

    def check(self) -> None:
        """Raises `Refusal` (503) where nothing may be answered, since no line could be written."""
        ...

    async def write(self, entry: AuditEntry) -> None:
        """Raises `Refusal` (503) where the line could not be written and the policy stops then."""
        ...


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guarded answer: its text, or the refusal that stands for it; what all samples took; how it came about."""

    text: str
    finish: Finish
    usage: Usage
    report: Mapping[str, Any]
    scores: Scores | None


class Guard(Protocol):
    """Draws several answers and gives the one nearest the dials; scores answers."""

    async def answer(self, ask: Ask, tenant: Tenant) -> Guarded:
        """Raises `Refusal` where the rewards fail: no answer goes out unscored."""
        ...

    async def score(self, ask: Ask, text: str) -> Scores:
        """The achieved scores of an answer, in [0, 1] by dial."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known when an answer is whole."""

    usage: Usage
    guard: Mapping[str, Any] | None = None
    scores: Scores | None = None


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
    under_way: "set[Exchange]" = field(default_factory=set)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, route: str) -> "Exchange":
        """A request has come."""
        return Exchange(self, route)

    async def drain(self, patience_s: float) -> None:
        """Let nobody new in, wait for those under way, and cut what takes longer than `patience_s`."""
        self.admission.drain()
        try:
            async with asyncio.timeout(patience_s):
                await self._ended()
        except TimeoutError:
            _logger.warning("%d requests took longer than %g s to end and are cut", len(self.under_way), patience_s)
            self.cut_all()
            await self._ended()

    def cut_all(self) -> None:
        """End all requests under way with an error."""
        for exchange in list(self.under_way):
            exchange.cut(draining())

    def ended(self, exchange: "Exchange") -> None:
        """A request is under way no more."""
        self.under_way.discard(exchange)
        self._quiet.set()

    async def _ended(self) -> None:
        while self.under_way:
            self._quiet.clear()
            await self._quiet.wait()


class Exchange:
    """One request and what becomes of it."""

    def __init__(self, service: Service, route: str) -> None:
        self.service = service
        self.route = route
        self.id = secrets.token_hex(12)
        self.came = monotonic()
        self.caller: Caller | None = None
        self.asked: Asked | None = None
        self.granted: Grant | None = None
        self.ask: Ask | None = None
        self.outcome: Outcome | None = None
        self.texts: list[list[str]] = []
        self.finishes: dict[int, Finish] = {}
        self.queue_s: float | None = None
        self.first_token_s: float | None = None
        self._time = datetime.now(UTC)
        self._policy: str | None = None
        self._cut: Refusal | None = None
        self._is_gone = False
        self._is_over = False
        self._clock: asyncio.Timeout | None = None

    @property
    def tenant(self) -> Tenant:
        """The tenant of an authenticated request."""
        assert self.caller is not None
        return self.caller.tenant

    @property
    def answers(self) -> list[str]:
        """The answers' texts, as far as they have come."""
        return ["".join(texts) for texts in self.texts]

    @property
    def finish_of_each(self) -> tuple[Finish, ...]:
        """Why each answer ended, those that did, in the answers' order."""
        return tuple(self.finishes[sample] for sample in sorted(self.finishes))

    @property
    def is_gone(self) -> bool:
        """Whether its client went."""
        return self._is_gone

    @asynccontextmanager
    async def lifetime(self) -> AsyncIterator[None]:
        """Bounds the request's time: raises `Refusal` (504) past it, and what it is cut with (`cut`, `client_gone`)."""
        self.service.under_way.add(self)
        try:
            async with asyncio.timeout(self.service.timeout_s) as self._clock:
                yield
        except TimeoutError:
            if self._clock is None or not self._clock.expired():
                raise
            raise self._cut or _timed_out(self.service.timeout_s) from None
        finally:
            self._clock = None
            self.service.ended(self)

    def client_gone(self) -> None:
        """The client has gone: the work ends at once."""
        if not self._is_over:
            self._is_gone = True
            self.cut(Refusal(CLIENT_GONE, "client_gone", "the client closed the connection", "nobody reads this"))

    def cut(self, refusal: Refusal) -> None:
        """Ends the work at once, with this error."""
        if self._clock is not None and not self._clock.expired():
            self._cut = refusal
            self._clock.reschedule(asyncio.get_running_loop().time())

    def authenticate(self, key: str | None) -> Caller:
        """Raises `Refusal` (401)."""
        self.caller = self.service.callers.caller(key)
        self._policy = self.service.callers.status().digest
        return self.caller

    def read(self, body: ChatBody | CompletionBody, headers: Headers) -> Ask:
        """What the engine will be asked, all of it allowed. Raises `Refusal`."""
        tenant = self.tenant
        self.asked = asked = read_asked(body, headers)
        model = self._model(asked.model)
        self.granted = grant(asked.dials, tenant.limits, tenant.dials[model.name])
        if asked.has_system_turn and not tenant.allows_system_turn:
            raise Refusal(
                403,
                "system_turn_refused",
                "got a system turn, allowed is none",
                "leave it out",
                param="messages.0.role",
            )
        if asked.wants_scores:
            self._check_scores(asked)
        if tenant.guard is not None and asked.samples > 1:
            raise Refusal(
                400, "invalid_value", "n: got more than 1, allowed is 1: answers are guarded", "leave it out", "n"
            )
        wanted = LONGEST_ANSWER if asked.max_tokens is None else asked.max_tokens
        room = [each for each in (tenant.max_tokens, model.context and model.context - 1) if each]
        self.ask = Ask(
            model=model.name,
            messages=asked.messages,
            control=self.granted.control,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=min([wanted, *room]),
            seed=asked.seed,
            stop=asked.stop,
            samples=asked.samples,
        )
        self.service.telemetry.granted(self.granted.dials)
        return self.ask

    def _model(self, name: str | None) -> ServedModel:
        models, allowed = self.service.backend.models, self.tenant.dials
        name = name or next((each for each in models if each in allowed), None)
        if name is None or name not in allowed or name not in models:
            raise Refusal(
                404,
                "model_not_found",
                f"there is no model {(name or '')[:80]!r} here for this key",
                "GET /v1/models lists the models",
                param="model",
            )
        return models[name]

    def _check_scores(self, asked: Asked) -> None:
        if not self.tenant.allows_scores:
            raise Refusal(403, "scores_refused", "score: got true, allowed is false", "leave it out", param="score")
        if self.service.guard is None:
            raise Refusal(
                400,
                "scores_unavailable",
                "score: got true, and there are no rewards here",
                "leave it out",
                param="score",
            )
        if asked.samples > 1:
            raise Refusal(400, "invalid_value", "score: got true with n above 1", "ask for one answer", param="n")

    async def events(self) -> AsyncGenerator[Piece | Outcome, None]:
        """The answer's pieces and, when it is whole, its outcome; what is limited is counted. Raises `Refusal`."""
        service, ask, tenant = self.service, self.ask, self.tenant
        assert ask is not None
        self.texts = [[] for _ in range(ask.samples)]
        if service.audit is not None:
            service.audit.check()
        service.admission.check()
        service.limits.take_request(tenant)
        prompt = sum(len(turn.content.encode()) for turn in ask.messages) // _BYTES_A_TOKEN + 1
        drawn = tenant.guard.samples if tenant.guard is not None else ask.samples
        reserved = service.limits.reserve_tokens(tenant, prompt + ask.max_tokens * drawn)
        used = 0
        try:
            waits_from = monotonic()
            async with service.admission.place():
                self.queue_s = monotonic() - waits_from
                service.telemetry.queued(self.queue_s)
                used = prompt
                source = self._drawn(ask) if tenant.guard is None else self._guarded(ask)
                async with aclosing(source):
                    async for event in source:
                        if isinstance(event, Outcome):
                            self.outcome = event
                            used = event.usage.prompt_tokens + event.usage.completion_tokens
                            service.telemetry.tokens(
                                ask.model, tenant.name, event.usage.prompt_tokens, event.usage.completion_tokens
                            )
                        else:
                            used += 1
                            self._note(event, ask)
                        yield event
        except RheostatError as error:
            _logger.warning("request %s: %s", self.id, error.message)
            raise refusal_of(error) from error
        finally:
            reserved.settle(used)

    async def _drawn(self, ask: Ask) -> AsyncGenerator[Piece | Outcome, None]:
        usage = None
        async with aclosing(self.service.backend.answer(ask)) as answer:
            async for event in answer:
                if isinstance(event, Piece):
                    yield event
                else:
                    usage = event
        assert usage is not None, "a backend gives the usage last"
        scores = None
        if self.asked is not None and self.asked.wants_scores:
            assert self.service.guard is not None
            scores = await self.service.guard.score(ask, "".join(self.texts[0]))
        yield Outcome(usage, scores=scores)

    async def _guarded(self, ask: Ask) -> AsyncGenerator[Piece | Outcome, None]:
        if self.service.guard is None:
            raise Refusal(
                503, "guard_unavailable", "answers are guarded, and there are no rewards here", "tell the operator"
            )
        guarded = await self.service.guard.answer(ask, self.tenant)
        yield Piece(0, guarded.text, guarded.finish)
        wants_scores = self.asked is not None and self.asked.wants_scores
        yield Outcome(guarded.usage, guarded.report, guarded.scores if wants_scores else None)

    def _note(self, piece: Piece, ask: Ask) -> None:
        if piece.text:
            if self.first_token_s is None:
                self.first_token_s = monotonic() - self.came
                self.service.telemetry.first_token(ask.model, self.first_token_s)
            self.texts[piece.sample].append(piece.text)
        if piece.finish is not None:
            self.finishes[piece.sample] = piece.finish

    async def finish(self, status: int, refusal: Refusal | None = None) -> None:
        """Writes the audit line and counts the request; the first call alone does anything.

        Call it before the answer, or the end of it, goes out. Raises `Refusal` (503) where the line could not be written
        and the policy stops then.
        """
        if self._is_over:
            return
        self._is_over = True
        try:
            if self.service.audit is not None:
                await self.service.audit.write(self._entry(status, refusal))
        except Refusal as failed:
            status = failed.status
            raise
        finally:
            tenant = NOBODY if self.caller is None else self.caller.tenant.name
            self.service.telemetry.ended(self.route, status, tenant, monotonic() - self.came)

    def _entry(self, status: int, refusal: Refusal | None) -> AuditEntry:
        caller, ask, usage = self.caller, self.ask, self.outcome and self.outcome.usage
        messages: tuple[Message, ...] | None = None
        answers: list[str] | None = None
        if caller is not None and caller.tenant.audits_texts and ask is not None:
            messages, answers = ask.messages, self.answers
        return AuditEntry(
            time=self._time,
            request=self.id,
            route=self.route,
            status=status,
            tenant=caller and caller.tenant.name,
            key=caller and caller.key_id,
            policy=self._policy,
            model=ask and ask.model,
            stream=self.asked is not None and self.asked.streams,
            dials=self.granted.dials if self.granted is not None else {},
            prompt_tokens=usage and usage.prompt_tokens,
            completion_tokens=usage and usage.completion_tokens,
            queue_ms=_milliseconds(self.queue_s),
            first_token_ms=_milliseconds(self.first_token_s),
            total_ms=_milliseconds(monotonic() - self.came),
            finish=self.finish_of_each,
            guard=self.outcome and self.outcome.guard,
            scores=self.outcome and self.outcome.scores,
            refusal=refusal and refusal.code,
            messages=messages,
            answers=answers,
        )


def _timed_out(seconds: float) -> Refusal:
    return Refusal(
        504,
        "timeout",
        f"no whole answer within {seconds:g} s",
        "ask for fewer tokens, or again when there is less to do",
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
