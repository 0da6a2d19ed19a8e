"""A server behind the gateway that speaks OpenAI's API and serves a model which `rheostat export` wrote.

What is sent is built from the ask and passes nothing through: turns in which no content yields a special token or a
control, how tokens are drawn, and in `chat_template_kwargs` the granted dials, all of them and nothing else.
"""

import asyncio
import copy
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rheostat.card import read_card
from rheostat.chat import ServedPrompt, check_fits, encode_response, served_prompt
from rheostat.endpoint import SEEDS
from rheostat.errors import EndpointError, PromptTooLong
from rheostat.gateway.backend import Ask, Piece, ServedModel, Usage
from rheostat.gateway.event_stream import Event, EventReader
from rheostat.gateway.merged import merged
from rheostat.gateway.prompt_bound import PromptBound
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.upstream_answers import DONE, Answers, BrokenAnswer, read_event, read_whole
from rheostat.gateway.upstream_client import AT_ONCE, UpstreamClient, UpstreamOptions
from rheostat.stage import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHECK_S = 5.0
_CHECKED_FOR_S = 1.0
_LONG = 16_384
"""Characters of a conversation from which on it is encoded off the event loop."""

_MARGIN = 16
"""Tokens that a tokenizer may add to a text beside one a byte."""

_TOO_LONG = (400, 413, 422)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An ask made ready: its body but for seed and number of samples, and the prompt that it becomes at the server."""

    body: Mapping[str, Any]
    prompt: ServedPrompt
    until: float


class Upstream:
    """The backend over one server; `folder` is the exported model (its weights are not read), `name` what it is called.

    Raises `ModelError` where the folder is none that `rheostat export` wrote.
    """

    def __init__(self, folder: Path, options: UpstreamOptions, *, name: str | None = None) -> None:
        card = read_card(folder)
        self._tokenizer, context = _reader(folder)
        self._tokenizer.chat_template = card.chat_template  # what the server's renders before it puts the control
        self._threads_tokenizer = copy.deepcopy(self._tokenizer)  # one tokenizer must not be used by two threads
        self._bound = PromptBound(self._tokenizer)
        self._encoding = asyncio.Lock()
        self._served = ServedModel(name or folder.resolve().name, card.control_format, context)
        self._options, self._client = options, UpstreamClient(options)
        self._model = options.model
        self._honours_n = True
        self._waiting = 0
        self._fault: EndpointError | None = None
        self._known_until = 0.0
        self._checking = asyncio.Lock()
        self._is_stopping = False

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The one model."""
        return {self._served.name: self._served}

    @property
    def waiting(self) -> int:
        """Asks that have been taken and have no token yet."""
        return self._waiting

    async def start(self) -> None:
        """Asks the server which model it serves, unless the options say so. Raises `EndpointError`."""
        self._client.start()
        if self._model is not None:
            return
        try:
            self._learn(await self._client.models(_CHECK_S))
        except BaseException:
            await self._client.stop()
            raise

    async def stop(self) -> None:
        """Cuts every connection; asks under way end in a `Refusal` of status 503."""
        self._is_stopping = True
        await self._client.stop()

    async def check(self) -> None:
        """Raises `EndpointError` where the server lists no models; the finding, or an answer, holds for a second."""
        clock = asyncio.get_running_loop().time
        async with self._checking:
            if clock() >= self._known_until:
                try:
                    await self._client.models(_CHECK_S)
                    self._fault = None
                except EndpointError as error:
                    self._fault = error
                self._known_until = clock() + _CHECKED_FOR_S
            if self._fault is not None:
                raise self._fault

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        """The answers' pieces as they come, then their usage; see `Backend`."""
        self._waiting += 1
        is_waiting = True
        try:
            prepared = await self._prepare(ask)
            async with aclosing(self._answer(ask, prepared)) as parts:
                async for part in parts:
                    if is_waiting:
                        self._waiting, is_waiting = self._waiting - 1, False
                    yield part
        except EndpointError as error:
            if self._is_stopping:
                raise Refusal(503, "stopping", "the gateway is stopping", "try again", retry_after_s=1.0) from error
            raise
        finally:
            self._waiting -= is_waiting

    async def _answer(self, ask: Ask, prepared: _Prepared) -> AsyncGenerator[Piece | Usage, None]:
        together = ask.samples == 1 or self._honours_n
        missing = list(range(ask.samples))
        groups = [missing] if together else [[each] for each in missing]
        usage = Usage(0, 0)
        while groups:
            asked = [Answers(group, ask.stop) for group in groups]
            works = [self._pieces(ask, prepared, answers) for answers in asked]
            async with aclosing(works[0] if len(works) == 1 else merged(works, AT_ONCE)) as pieces:
                async for piece in pieces:
                    yield piece
            for answers in asked:
                usage = _with(usage, self._usage(prepared, answers))
            missing = [sample for answers in asked for sample in answers.missing]
            if missing:
                self._honours_n = False
            groups = [[each] for each in missing]
        self._fault, self._known_until = None, asyncio.get_running_loop().time() + _CHECKED_FOR_S
        yield usage

    async def _pieces(self, ask: Ask, prepared: _Prepared, answers: Answers) -> AsyncGenerator[Piece, None]:
        """The pieces of one request to the server, which has ended every answer that it began, and one at least."""
        body = {**prepared.body, **_drawn(ask, answers.samples)}
        try:
            async with aclosing(self._sent(body, prepared.until, answers)) as pieces:
                async for piece in pieces:
                    yield piece
        except BrokenAnswer as error:
            self._client.fail(f"gave {error}")
        except EndpointError as error:
            if error.status in _TOO_LONG and "context" in error.message:
                raise PromptTooLong(
                    "the conversation, with the answer asked for, exceeds the model's context",
                    hint="shorten it, or ask for fewer tokens",
                ) from error
            raise
        if answers.unended or not answers.finishes:
            self._client.fail("ended in the middle of an answer, without finish_reason")

    async def _sent(
        self, body: Mapping[str, Any], until: float, answers: Answers
    ) -> AsyncGenerator[Piece, None]:
        client, options, clock = self._client, self._options, asyncio.get_running_loop().time
        if not body["stream"]:
            async with client.post(body, "application/json", until=until) as response:
                part = read_whole(await client.whole(response, until=until))
            for piece in answers.take(part):
                yield piece
            return
        reader, limit = EventReader(), min(until, clock() + options.first_byte_s)
        async with client.post(body, "text/event-stream", until=limit) as response:
            while chunk := await client.chunk(response, until=limit):
                for event in _events(reader, chunk):
                    if event.data == DONE:
                        await client.drain(response)
                        return
                    for piece in answers.take(read_event(event)):
                        yield piece
                    if answers.are_cut:
                        return
                limit = min(until, clock() + options.between_s)
            for event in reader.end():
                if event.data != DONE:
                    for piece in answers.take(read_event(event)):
                        yield piece

    async def _prepare(self, ask: Ask) -> _Prepared:
        until = asyncio.get_running_loop().time() + self._options.whole_s
        if sum(len(turn.content) for turn in ask.messages) < _LONG:
            return self._prepared(ask, until, self._tokenizer)
        async with self._encoding:
            return await asyncio.to_thread(self._prepared, ask, until, self._threads_tokenizer)

    def _prepared(self, ask: Ask, until: float, tokenizer: "PreTrainedTokenizerBase") -> _Prepared:
        form, context = self._served.control_format, self._served.context
        self._bound.check(tokenizer, ask.messages, context)
        prompt = served_prompt(
            tokenizer, ask.messages, control_text=form.render(ask.control), neutralise=form.neutralise
        )
        max_tokens = ask.max_tokens
        if context is not None and len(prompt.text.encode("utf-8")) + _MARGIN + max_tokens > context:
            tokens = _tokens(tokenizer, prompt)
            check_fits(tokens, context)
            max_tokens = min(max_tokens, context - tokens)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": prompt.turns,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "max_tokens": max_tokens,
            "stream": ask.stream,
            "chat_template_kwargs": dict(ask.control),
        }
        if ask.stream:
            body["stream_options"] = {"include_usage": True}
        if ask.stop:
            body["stop"] = list(ask.stop)
        return _Prepared(body, prompt, until)

    def _usage(self, prepared: _Prepared, answers: Answers) -> Usage:
        """By the server's count, or where there is none, or an answer was cut here, by the tokenizer's."""
        if answers.usage is not None and not answers.are_cut:
            return answers.usage
        end = self._tokenizer.eos_token_id
        completion = 0
        for index, finish in answers.finishes.items():
            ids = encode_response(self._tokenizer, answers.text(index), end_id=0 if end is None else end)
            completion += len(ids) - (finish == "length")
        return Usage(_tokens(self._tokenizer, prepared.prompt), completion)

    def _learn(self, listed: Any) -> None:
        """The server's own name of the model, and its context where it says so, as vLLM does."""
        found = listed.get("data") if isinstance(listed, dict) else None
        ids = [each for each in found or [] if isinstance(each, dict) and isinstance(each.get("id"), str)]
        if len(ids) != 1:
            names = ", ".join(each["id"] for each in ids) or "none"
            self._client.fail(f"serves the models {names}; --upstream-model says which of several it is")
        self._model = ids[0]["id"]
        context = ids[0].get("max_model_len")
        if isinstance(context, int):
            self._served = replace(self._served, context=min(context, self._served.context or context))


def _tokens(tokenizer: "PreTrainedTokenizerBase", prompt: ServedPrompt) -> int:
    return len(tokenizer(prompt.text, add_special_tokens=False, verbose=False)["input_ids"])


def _reader(folder: Path) -> "tuple[PreTrainedTokenizerBase, int | None]":
    from rheostat.models import load_reader, load_tokenizer

    where = str(folder.resolve())
    if not (folder / "config.json").is_file():  # an adapter: the base is the server's alone
        return load_tokenizer(where), None
    reader = load_reader(where)
    return reader.tokenizer, reader.context


def _drawn(ask: Ask, samples: Sequence[int]) -> dict[str, Any]:
    """How many answers one request asks for, and their seed: the ask's for its first sample, else one made from it."""
    found = {} if len(samples) == 1 else {"n": len(samples)}
    if ask.seed is not None:
        found["seed"] = (ask.seed if samples[0] == 0 else derive_seed(ask.seed, str(samples[0]))) % SEEDS
    return found


def _with(usage: Usage, own: Usage) -> Usage:
    """The tokens of a prompt, once, and of further answers to it."""
    return Usage(max(usage.prompt_tokens, own.prompt_tokens), usage.completion_tokens + own.completion_tokens)


def _events(reader: EventReader, chunk: bytes) -> Sequence[Event]:
    try:
        return reader.feed(chunk)
    except ValueError as error:
        raise BrokenAnswer(str(error)) from None
