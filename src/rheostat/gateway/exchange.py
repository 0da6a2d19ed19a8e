"""One request from its authentication to its audit line, without HTTP.

An exchange is authenticated, read, answered and finished, in that order; `finish` writes the one audit line, whatever
became of the request. The tenant's policy is the one of the moment of authentication throughout.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from time import monotonic

from rheostat.errors import RheostatError
from rheostat.gateway.asked import Asked, Headers, read_asked
from rheostat.gateway.audit import AuditEntry
from rheostat.gateway.backend import Ask, Ending, Outcome, Piece
from rheostat.gateway.bodies import ChatBody, CompletionBody
from rheostat.gateway.faults import refusal_of
from rheostat.gateway.guard import samples_drawn
from rheostat.gateway.permitted import Permitted, permitted, prompt_estimate
from rheostat.gateway.policy import Caller, Tenant
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.service import Service
from rheostat.gateway.taken import Taken
from rheostat.gateway.telemetry import NOBODY

CLIENT_GONE = 499
"""The status of a request whose client went before it was answered, in the log and the metrics."""

_logger = logging.getLogger(__name__)


class Exchange:
    """One request and what becomes of it; `id` is the request's, `route` one of the gateway's own."""

    def __init__(self, service: Service, id: str, route: str) -> None:
        self.id = id
        self.caller: Caller | None = None
        self.asked: Asked | None = None
        self.permitted: Permitted | None = None
        self.outcome: Outcome | None = None
        self.is_gone = False
        self._service = service
        self._route = route
        self._came = monotonic()
        self._time = datetime.now(UTC)
        self._policy: str | None = None
        self._texts: list[list[str]] = []
        self._finishes: dict[int, Ending] = {}
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._cut: Refusal | None = None
        self._is_over = False
        self._clock: asyncio.Timeout | None = None

    @property
    def tenant(self) -> Tenant:
        """The tenant of an authenticated request."""
        assert self.caller is not None
        return self.caller.tenant

    @property
    def answers(self) -> list[str]:
        """The answers' texts, as far as they have come; empty of a stream that nobody reads again."""
        return ["".join(texts) for texts in self._texts]

    @property
    def finishes(self) -> tuple[Ending, ...]:
        """Why each answer ended, those that did, in the answers' order."""
        return tuple(self._finishes[sample] for sample in sorted(self._finishes))

    @asynccontextmanager
    async def lifetime(self) -> AsyncIterator[None]:
        """Bounds the request's time. Raises `Refusal`: 504 past it, or what it is cut with (`cut`, `client_gone`)."""
        clock = asyncio.timeout(self._service.timeout_s)
        try:
            async with clock:
                self._clock = clock
                yield
        except TimeoutError:
            if not clock.expired():
                raise
            raise self._cut or _timed_out(self._service.timeout_s) from None
        finally:
            self._clock = None

    def cut(self, refusal: Refusal) -> None:
        """Ends the work at once, with this error."""
        if self._clock is not None and not self._clock.expired():
            self._cut = refusal
            self._clock.reschedule(asyncio.get_running_loop().time())

    def client_gone(self) -> None:
        """The client has gone: the work ends at once."""
        if not self._is_over:
            self.is_gone = True
            self.cut(
                Refusal(CLIENT_GONE, "client_gone", "the client closed the connection", "nobody reads this")
            )

    def authenticate(self, key: str | None) -> None:
        """Raises `Refusal` (401)."""
        self._policy = self._service.callers.status().digest
        self.caller = self._service.callers.caller(key)

    def read(self, body: ChatBody | CompletionBody, headers: Headers) -> Permitted:
        """What the engine will be asked, all of it allowed. Raises `Refusal`."""
        service = self._service
        self.asked = read_asked(body, headers)
        self.permitted = permitted(
            self.asked, self.tenant, service.backend.models, has_rewards=service.guard is not None
        )
        service.telemetry.granted(self.permitted.grant.dials)
        return self.permitted

    async def events(self) -> AsyncGenerator[Piece | Outcome, None]:
        """The answer's pieces and, when it is whole, its outcome; what is limited is counted. Raises `Refusal`."""
        assert self.permitted is not None
        service, ask, tenant = self._service, self.permitted.ask, self.tenant
        self._texts = [[] for _ in range(ask.samples)]
        if service.audit is not None:
            service.audit.check()
        service.admission.check()
        with service.limits.under_way(tenant):
            service.limits.take_request(tenant)
            async with aclosing(self._counted(ask, tenant)) as counted:
                async for event in counted:
                    yield event

    async def _counted(self, ask: Ask, tenant: Tenant) -> AsyncGenerator[Piece | Outcome, None]:
        """The pieces and the outcome; the tokens are reserved before, and those used are counted when it ends."""
        service = self._service
        prompt = prompt_estimate(ask)
        drawn = ask.samples if tenant.guard is None else samples_drawn(ask, tenant.guard)
        reserved = service.limits.reserve_tokens(tenant, prompt + ask.max_tokens * drawn)
        taken: Taken | None = None
        are_unseen = False
        try:
            waits_from = monotonic()
            async with service.admission.place():
                self._queue_s = monotonic() - waits_from
                service.telemetry.queued(self._queue_s)
                taken = Taken(ask, drawn)
                source = self._drawn(ask, taken) if tenant.guard is None else self._guarded(ask, taken)
                async with aclosing(source):
                    async for event in source:
                        self._note(event, ask)
                        yield event
        except RheostatError as error:
            _logger.warning("request %s: %s", self.id, error.message)
            raise refusal_of(error) from error
        except (asyncio.CancelledError, GeneratorExit):
            # A whole answer may have been on its way, of which a server behind tells nothing.
            are_unseen = tenant.guard is not None or not ask.stream
            raise
        finally:
            reserved.settle(0 if taken is None else taken.tokens(are_unseen=are_unseen))

    async def _drawn(self, ask: Ask, taken: Taken) -> AsyncGenerator[Piece | Outcome, None]:
        usage = None
        async with aclosing(self._service.backend.answer(ask)) as answer:
            async for event in answer:
                taken.note(event)
                if isinstance(event, Piece):
                    yield event
                else:
                    usage = event
        assert usage is not None, "a backend gives the usage last"
        scores = None
        if self._wants_scores:
            assert self._service.guard is not None
            scores = await self._service.guard.score(ask, self.answers[0])
        yield Outcome(usage, scores=scores)

    async def _guarded(self, ask: Ask, taken: Taken) -> AsyncGenerator[Piece | Outcome, None]:
        if self._service.guard is None:
            raise Refusal(
                503,
                "guard_unavailable",
                "answers are guarded, and there are no rewards here",
                "tell the operator",
            )
        try:
            guarded = await self._service.guard.answer(ask, self.tenant, taken.note)
        except (Refusal, RheostatError):
            self._service.telemetry.guarded("failed")
            raise
        self._service.telemetry.guarded("refused" if guarded.scores is None else "given")
        yield Piece(0, guarded.text, guarded.finish)
        yield Outcome(guarded.usage, guarded.report, guarded.scores, shows_scores=self._wants_scores)

    @property
    def _keeps_texts(self) -> bool:
        """Whether anyone reads an answer again that has gone out: for a stream alone it would only take memory."""
        is_streamed = self.asked is not None and self.asked.streams
        return not is_streamed or self._wants_scores or self.tenant.audits_texts

    @property
    def _wants_scores(self) -> bool:
        return self.asked is not None and self.asked.wants_scores

    def _note(self, event: Piece | Outcome, ask: Ask) -> None:
        """Keeps what an event says."""
        telemetry = self._service.telemetry
        if isinstance(event, Outcome):
            self.outcome, usage = event, event.usage
            telemetry.tokens(ask.model, self.tenant.name, usage.prompt_tokens, usage.completion_tokens)
            return
        if event.text:
            if self._first_token_s is None:
                self._first_token_s = monotonic() - self._came
                telemetry.first_token(ask.model, self._first_token_s)
            if self._keeps_texts:
                self._texts[event.sample].append(event.text)
        if event.finish is not None:
            self._finishes[event.sample] = event.finish

    async def finish(self, status: int, refusal: Refusal | None = None) -> None:
        """Writes the audit line and counts the request; the first call alone does anything.

        Call it before the answer, or its end, goes out. Raises `Refusal` (503) where the line could not be written and
        the policy stops then.
        """
        if self._is_over:
            return
        self._is_over = True
        try:
            if self._service.audit is not None:
                await self._service.audit.write(self._entry(status, refusal))
        except Refusal as failed:
            status = failed.status
            raise
        finally:
            tenant = NOBODY if self.caller is None else self.caller.tenant.name
            self._service.telemetry.ended(self._route, status, tenant, monotonic() - self._came)

    def _entry(self, status: int, refusal: Refusal | None) -> AuditEntry:
        caller, found, outcome = self.caller, self.permitted, self.outcome
        usage = None if outcome is None else outcome.usage
        shows_texts = caller is not None and caller.tenant.audits_texts and found is not None
        return AuditEntry(
            time=self._time,
            request=self.id,
            route=self._route,
            status=status,
            tenant=None if caller is None else caller.tenant.name,
            key=None if caller is None else caller.key_id,
            policy=self._policy,
            model=None if found is None else found.ask.model,
            stream=self.asked is not None and self.asked.streams,
            dials={} if found is None else found.grant.dials,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            queue_ms=_milliseconds(self._queue_s),
            first_token_ms=_milliseconds(self._first_token_s),
            total_ms=_milliseconds(monotonic() - self._came),
            finish=self.finishes,
            guard=None if outcome is None else outcome.guard,
            scores=None if outcome is None else outcome.scores,
            refusal=None if refusal is None else refusal.code,
            messages=found.ask.messages if shows_texts and found is not None else None,
            answers=self.answers if shows_texts else None,
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
