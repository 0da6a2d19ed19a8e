"""The engine of this process: one thread draws the tokens of all asks at once, the event loop hands on their text.

Each model has a decode loop of its own; the thread steps them in turn, since they would share the processor anyhow.
After a step the event loop is woken once, for all answers together.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from rheostat.dialled import DialledModel
from rheostat.engines._live import LiveLoop, LiveRequest, Received
from rheostat.engines.transformers import TransformersEngine
from rheostat.errors import ModelError
from rheostat.gateway.backend import Ask, Piece, ServedModel, Usage
from rheostat.gateway.engine_thread import EngineThread, News, Ticket
from rheostat.gateway.prompt_bound import PromptBound
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.text_stream import Detokeniser, TextStream
from rheostat.plugins import GenerationRequest, Sampling


def in_process(models: Mapping[str, DialledModel], *, received: Received | None = None) -> "InProcess":
    """A backend of models as `rheostat.dialled.load` gives them, by the names they are asked for, the default first.

    `received` is told, in the engine's thread, the token ids of each ask's prompt when its model first gets them.
    Raises `ModelError` for a model that is not a single one of this process.
    """
    engines = {}
    for name, model in models.items():
        engine = model.engine
        if not isinstance(engine, TransformersEngine) or engine.mixture is not None:
            raise ModelError(
                f"{name}: got a model that another engine answers, allowed is a single one of this process",
                hint="serve it elsewhere and give its address with --upstream",
            )
        engines[name] = engine
    return InProcess(engines, received=received)


@dataclass(slots=True, eq=False)
class _Stream:
    """What has come of an ask and was not handed on yet."""

    open_samples: int
    has_come: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    error: Exception | None = None


class InProcess:
    """A `Backend` of engines of this process, by model, each with a control format; answers between start and stop."""

    def __init__(self, engines: Mapping[str, TransformersEngine], *, received: Received | None = None) -> None:
        assert engines, "no model"
        self._engines = dict(engines)
        self._received = received
        self._models: dict[str, ServedModel] = {}
        self._detokenisers: dict[str, Detokeniser] = {}
        self._bounds: dict[str, PromptBound] = {}
        for name, engine in engines.items():
            assert engine.control_format is not None, name
            self._models[name] = ServedModel(name, engine.control_format, engine.policy.context)
            self._detokenisers[name] = Detokeniser(engine.policy.tokenizer)
            self._bounds[name] = PromptBound(engine.policy.tokenizer)
        self._streams: dict[Ticket, _Stream] = {}
        self._encoding = 0
        self._encoder: ThreadPoolExecutor | None = None
        self._thread: EngineThread | None = None

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """By name, the default model first."""
        return self._models

    @property
    def waiting(self) -> int:
        """Asks that have been taken and have no token yet."""
        return self._encoding + sum(not stream.tokens for stream in self._streams.values())

    async def start(self) -> None:
        """Ready to answer afterwards. Raises `ModelError` for a model that the engine cannot run."""
        assert self._thread is None, "started already"
        loops = {
            name: LiveLoop(engine.policy, engine.batch_tokens, self._received)
            for name, engine in self._engines.items()
        }
        here = asyncio.get_running_loop()

        def on_news(news: list[News]) -> None:
            with suppress(RuntimeError):  # an event loop that was closed without `stop` hears nothing more
                here.call_soon_threadsafe(self._hear, news)

        def on_end() -> None:
            with suppress(RuntimeError):
                here.call_soon_threadsafe(self._end_all)

        self._encoder = ThreadPoolExecutor(1, "rheostat-encoder")
        self._thread = EngineThread(loops, on_news, on_end)

    async def stop(self) -> None:
        """Ends the thread after the step that it is in; asks under way end in a `Refusal` of status 503."""
        thread, encoder = self._thread, self._encoder
        if thread is None or encoder is None:
            return
        self._thread = self._encoder = None
        thread.stop()
        self._end_all()
        await asyncio.get_running_loop().run_in_executor(encoder, thread.join)
        encoder.shutdown(wait=False)

    async def check(self) -> None:
        """Raises `ModelError` where the engine's thread is not there to answer."""
        if self._thread is None or not self._thread.is_alive:
            raise ModelError("the engine does not run", hint="start the service again; its log says what happened")

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        """The answers' pieces as they are drawn, then their usage; closing it frees their place at the next step.

        Raises `InputError` (`PromptTooLong`) for a conversation that the model cannot take, before it is queued,
        `ModelError` where the model fails, `Refusal` (503) where the engine stops or is not there.
        """
        engine = self._engines[ask.model]
        self._encoding += 1
        try:
            ids = await self._encoded(engine, ask)
        finally:
            self._encoding -= 1
        request = LiveRequest(
            ids,
            Sampling(ask.temperature, ask.top_p, ask.max_tokens),
            secrets.randbits(63) if ask.seed is None else ask.seed,
            ask.samples,
        )
        detokeniser = self._detokenisers[ask.model]
        ticket = Ticket(
            ask.model, request, [TextStream(detokeniser, ask.stop) for _ in range(ask.samples)]
        )
        stream = _Stream(ask.samples)
        thread = self._running()
        self._streams[ticket] = stream
        thread.submit(ticket)
        try:
            while stream.open_samples:
                await stream.has_come.wait()
                stream.has_come.clear()
                pieces, stream.pieces = stream.pieces, []
                for piece in pieces:
                    stream.open_samples -= piece.finish is not None
                    yield piece
                if stream.error is not None and stream.open_samples:
                    raise stream.error
            yield Usage(len(ids), stream.tokens)
        finally:
            del self._streams[ticket]
            if stream.open_samples:
                thread.cancel(ticket)

    async def _encoded(self, engine: TransformersEngine, ask: Ask) -> tuple[int, ...]:
        """Off the event loop: a long conversation takes milliseconds."""
        self._running()
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, engine, ask)

    def _encode(self, engine: TransformersEngine, ask: Ask) -> tuple[int, ...]:
        """In one thread for all: what can never fit keeps nobody waiting while it is tokenised."""
        self._bounds[ask.model].check(engine.policy.tokenizer, ask.messages, engine.policy.context)
        return engine.encode(GenerationRequest(ask.messages, ask.control))

    def _running(self) -> EngineThread:
        if self._thread is None or not self._thread.is_alive:
            raise _stopped()
        return self._thread

    def _hear(self, news: list[News]) -> None:
        for each in news:
            stream = self._streams.get(each.ticket)
            if stream is not None:
                stream.pieces.extend(each.pieces)
                stream.tokens += each.tokens
                stream.error = stream.error or each.error
                stream.has_come.set()

    def _end_all(self) -> None:
        for stream in self._streams.values():
            stream.error = _stopped()
            stream.has_come.set()


def _stopped() -> Refusal:
    return Refusal(
        503, "engine_stopped", "the engine has stopped", "ask again when the service is up", retry_after_s=5
    )
