"""An OpenAI-compatible endpoint: many chat requests, few at a time, each asked until it is answered.

The official client carries the requests. Its own retries are off: they stop after a count, not after a time, draw
little jitter (0 to 25 %), refuse a `Retry-After` above two minutes, and take a body that is no chat completion for an
answer. What is asked again, and when it is given up: `endpoint_faults.py`.
"""

import asyncio
import importlib.util
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from rheostat.endpoint_faults import Fault, backoff, describe, unreadable
from rheostat.errors import EndpointError
from rheostat.plugin_options import OPERATIONAL
from rheostat.plugins import Progress

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Turn = Mapping[str, str]
"""A message as the API has it: `{"role": "user", "content": "…"}`."""

SEEDS = 2**31
"""Seeds below it are taken by every server: llama.cpp has 32 bits, others a sign."""

_NO_KEY = "none"
_logger = logging.getLogger(__name__)


def check_url(url: str) -> str:
    """An address of a server as it is; raises `ValueError` where it is none, or has a password in it."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("got an address with a password in it, allowed is one without (a key: api_key_env)")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"got {url!r}, allowed is an address like http://localhost:8000/v1")
    return url


def check_variable(name: str) -> str:
    """The name of an environment variable as it is; raises `ValueError` where it is none."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be a key, so it is not shown
        raise ValueError("got something else than the name of an environment variable; the key is read from there")
    return name


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Where a server is and how it is asked.

    `timeout_s` is the deadline of one attempt, `patience_s` how long one request is asked again before the work is
    given up. Between attempts lies a random time below `backoff_s` · 2^attempt, at most `backoff_limit_s`, and no less
    than the server asks for (`Retry-After`). `extra_body` goes into every request as it is. The key is the value of
    the environment variable `api_key_env`; without it none is sent.
    """

    base_url: Annotated[str, AfterValidator(check_url)] = field(metadata=OPERATIONAL)
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, AfterValidator(check_variable)] | None = field(default=None, metadata=OPERATIONAL)
    concurrency: Annotated[int, Field(ge=1)] = field(default=16, metadata=OPERATIONAL)
    timeout_s: Seconds = field(default=60.0, metadata=OPERATIONAL)
    patience_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = field(default=600.0, metadata=OPERATIONAL)
    backoff_s: Seconds = field(default=0.5, metadata=OPERATIONAL)
    backoff_limit_s: Seconds = field(default=30.0, metadata=OPERATIONAL)
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request: turns, how tokens are drawn, `choices` answers wanted (the API's `n`), and what else goes along."""

    turns: Sequence[Turn]
    temperature: float
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    choices: int = 1
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its text (empty where the server sent none) and the server's own word for why it ended."""

    text: str
    finish: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: at least one choice, and the tokens of all of them where the server counted."""

    choices: tuple[Choice, ...]
    completion_tokens: int | None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """The part of a chat completion that is read; anything else than this is no answer."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


def problems(options: EndpointOptions) -> Iterator[str]:
    """What is missing on this machine before a request can be sent: the client, the key."""
    if importlib.util.find_spec("openai") is None:
        yield "the package openai is not installed (pip install 'rheostat[openai]')"
    if options.api_key_env is not None and not os.environ.get(options.api_key_env):
        yield f"api_key_env: the environment variable {options.api_key_env} is not set"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Asks a server."""

    options: EndpointOptions

    def chat(self, requests: Sequence[ChatRequest], *, progress: Progress | None = None) -> list[Answer]:
        """The answer to each request, in order; `progress` is told of the choices.

        Never are more than `concurrency` under way. A request that fails in a way that may pass is asked again until
        `patience_s` is over; it keeps its place among the `concurrency` meanwhile, so that a server in trouble is asked
        less. Works in a thread of its own, so also where an event loop is running (a notebook). Raises `EndpointError`
        on the first request that is refused or given up.
        """
        missing = list(problems(self.options))
        if missing:
            raise EndpointError(
                f"{self.options.base_url}: {'; '.join(missing)}",
                hint="install the client, set the variable, or leave api_key_env out for a server without keys",
            )
        if not requests:
            return []
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:
            return portal.call(self._ask_all, requests, progress)

    async def _ask_all(self, requests: Sequence[ChatRequest], progress: Progress | None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        waiting = iter(enumerate(requests))
        faults: Counter[str] = Counter()

        async def work() -> None:
            for number, request in waiting:
                answer = answers[number] = await self._ask(client, request, faults)
                if progress is not None:
                    progress(min(len(answer.choices), request.choices))

        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.options.concurrency, len(requests))):
                        group.create_task(work())
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        if faults:
            counts = ", ".join(f"{what} × {count}" for what, count in faults.most_common())
            _logger.warning("%s: %d requests answered, after faults: %s", self.options.base_url, len(requests), counts)
        return [answers[number] for number in range(len(requests))]

    async def _ask(self, client: "AsyncOpenAI", request: ChatRequest, faults: Counter[str]) -> Answer:
        options, clock = self.options, asyncio.get_running_loop().time
        begun, attempt = clock(), 0
        while True:
            outcome = await self._attempt(client, request)
            if isinstance(outcome, Answer):
                return outcome
            left = options.patience_s - (clock() - begun)
            if not outcome.may_pass:
                raise self._error(outcome.message, outcome.hint, outcome.status)
            if left <= 0 or outcome.retry_after > left:
                raise self._error(
                    f"{outcome.message}; given up after {attempt + 1} attempts in {clock() - begun:.0f} s",
                    "bring the server back and run the same command, finished shards are kept; or raise "
                    "patience_s or timeout_s",
                    outcome.status,
                )
            if not faults:
                _logger.warning(
                    "%s: %s; asked again for up to %g s", options.base_url, self._redacted(outcome.message), left
                )
            faults[outcome.kind] += 1
            wait = backoff(attempt, first=options.backoff_s, limit=options.backoff_limit_s, share=random.random())
            await asyncio.sleep(outcome.retry_after + min(wait, left))
            attempt += 1

    async def _attempt(self, client: "AsyncOpenAI", request: ChatRequest) -> Answer | Fault:
        from openai import OpenAIError

        try:
            async with asyncio.timeout(self.options.timeout_s):
                raw = await client.chat.completions.with_raw_response.create(**self._body(request))
        except (TimeoutError, OpenAIError) as error:
            return describe(error, self.options)
        try:
            found = _Completion.model_validate_json(raw.content)
        except ValidationError:
            return unreadable(raw.text)
        choices = tuple(Choice(each.message.content or "", each.finish_reason) for each in found.choices)
        return Answer(choices, found.usage.completion_tokens if found.usage else None)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        given = {
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "top_p": request.top_p if request.top_p < 1 else None,
            "n": request.choices if request.choices > 1 else None,
        }
        return {
            "model": self.options.model,
            "messages": list(request.turns),
            "temperature": request.temperature,
            "extra_body": merged(self.options.extra_body, request.extra_body),
            **{name: value for name, value in given.items() if value is not None},
        }

    def _client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, Omit

        # Without a key of its own in the recipe a server gets none of those that the environment holds for another.
        own = {} if self.options.api_key_env else {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        return AsyncOpenAI(
            base_url=self.options.base_url,
            api_key=self._key,
            default_headers=own,  # type: ignore[arg-type]  # the client takes Omit, its annotation does not say so
            max_retries=0,
            timeout=None,
        )

    @property
    def _key(self) -> str:
        return os.environ[self.options.api_key_env] if self.options.api_key_env else _NO_KEY

    def _redacted(self, message: str) -> str:
        return message.replace(self._key, "***") if self.options.api_key_env else message

    def _error(self, message: str, hint: str, status: int | None) -> EndpointError:
        where = f"{self.options.base_url} (model {self.options.model})"
        return EndpointError(f"{where}: {self._redacted(message)}", hint=hint, status=status)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two bodies; blocks in both are merged in turn, of other values the second's counts."""
    return {**first, **second} | {
        name: merged(first[name], second[name])
        for name in first.keys() & second.keys()
        if isinstance(first[name], Mapping) and isinstance(second[name], Mapping)
    }
