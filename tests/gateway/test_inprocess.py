"""The engine in process: each ask answered under its own dials, sampling and seed, whoever else is asking."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import pytest
from tests.random_models import FORMAT, random_policy
from transformers import Mamba2Config, PreTrainedModel

from rheostat.dialled import DialledModel, load
from rheostat.engines._live import LiveLoop
from rheostat.engines.transformers import TransformersEngine
from rheostat.errors import ModelError, PromptTooLong
from rheostat.gateway.backend import Ask, Backend, Piece, Usage
from rheostat.gateway.inprocess import InProcess, in_process
from rheostat.gateway.refusals import Refusal
from rheostat.models import Policy
from rheostat.plugins import GenerationRequest, Sampling
from rheostat.records import Control, Finish, Message

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = FORMAT.grid()
TEXTS = ("How do I clean my shoes?", "I want to repair an old bike. What should I do first?", "hi")


@pytest.fixture(scope="module")
def pocket() -> DialledModel:
    return load(device="cpu")


@dataclass
class Answer:
    """What an ask came to."""

    pieces: list[Piece] = field(default_factory=list)
    usage: Usage | None = None
    finishes: dict[int, Finish | str] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """By sample."""
        texts: dict[int, str] = defaultdict(str)
        for piece in self.pieces:
            texts[piece.sample] += piece.text
        return [texts[sample] for sample in sorted(texts)]


async def answered(backend: Backend, ask: Ask) -> Answer:
    answer = Answer()
    async for event in backend.answer(ask):
        assert answer.usage is None, "the usage comes last"
        if isinstance(event, Usage):
            answer.usage = event
            continue
        assert event.sample not in answer.finishes, "a sample's last piece was not its last"
        answer.pieces.append(event)
        if event.finish is not None:
            answer.finishes[event.sample] = event.finish
    assert set(answer.finishes) == set(range(ask.samples))
    return answer


async def rest(answer: AsyncIterator[object]) -> None:
    async for _ in answer:
        pass


def ask(text: str = TEXTS[0], control: Control = GRID[0], model: str = "pocket", **fields: Any) -> Ask:
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 24, **fields}
    return Ask(model, (Message("user", text),), control, **values)


@asynccontextmanager
async def started(backend: InProcess) -> AsyncIterator[InProcess]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def run(backend: InProcess, work: Callable[[InProcess], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with started(backend):
            await asyncio.wait_for(work(backend), 120)

    asyncio.run(whole())


def tiny(policy: Policy | None = None, batch_tokens: int = 10_000) -> InProcess:
    """A random model, of which no token ends an answer."""
    return InProcess({"pocket": TransformersEngine(policy or random_policy(end_ids=(1999,)), FORMAT, batch_tokens)})


@contextmanager
def gated(model: PreTrainedModel, after: int = 0) -> Iterator[threading.Event]:
    """Holds the model's forwards back from number `after` on, until the event is set."""
    gate, forwards = threading.Event(), iter(range(1_000_000))

    def wait(*_: object) -> None:
        if next(forwards) >= after:
            assert gate.wait(120)

    hook = model.register_forward_pre_hook(wait)
    try:
        yield gate
    finally:
        gate.set()
        hook.remove()


def test_many_at_once_each_under_its_own_dials(pocket: DialledModel) -> None:
    """75 asks of 3 texts under the 25 controls: each the engine's own answer, and the model got each control."""
    received: list[tuple[int, ...]] = []
    asks = [ask(text, control) for text in TEXTS for control in GRID]
    backend = in_process({"pocket": pocket}, received=lambda ids: received.append(tuple(ids)))

    async def work(backend: InProcess) -> None:
        answers = await asyncio.gather(*(answered(backend, each) for each in asks))
        engine = pocket.engine
        assert isinstance(engine, TransformersEngine)
        requests = [GenerationRequest(each.messages, each.control) for each in asks]
        expected = engine.generate(requests, Sampling(0.0, 1.0, 24), seed=0)
        for answer, [completion], request in zip(answers, expected, requests, strict=True):
            assert answer.texts == [completion.text]
            assert answer.finishes == {0: completion.finish}
            assert answer.usage == Usage(len(engine.encode(request)), completion.tokens)
        assert sorted(received) == sorted(map(engine.encode, requests))

    run(backend, work)


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(pocket: DialledModel) -> None:
    mine = ask(control=GRID[-1], temperature=2.0, seed=11, samples=2)
    crowd = [ask(TEXTS[place % 3], GRID[place], temperature=place % 3 / 2, seed=place) for place in range(12)]

    async def work(backend: InProcess) -> None:
        alone = await answered(backend, mine)
        among = await asyncio.gather(*(answered(backend, each) for each in [*crowd, mine, *crowd]))
        assert among[12].texts == alone.texts
        assert alone.texts[0] != alone.texts[1]
        assert among[:12] == among[13:]
        other = await answered(backend, replace(mine, seed=12))
        assert other.texts != alone.texts
        free = [await answered(backend, replace(mine, seed=None)) for _ in range(2)]
        assert free[0].texts != free[1].texts

    run(in_process({"pocket": pocket}), work)


def test_pieces_are_whole_characters_and_the_engines_text() -> None:
    """A random model draws bytes that are half a character, and special tokens."""
    policy = random_policy(end_ids=(1999,))
    asked = ask(temperature=1.0, max_tokens=60, samples=4, seed=3)

    async def work(backend: InProcess) -> None:
        answer = await answered(backend, asked)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 240
        assert len(answer.pieces) > 40
        told: list[list[int]] = [[], [], [], []]
        step = LiveLoop.step

        def noting(loop: LiveLoop) -> Any:
            events = step(loop)
            for event in events:
                told[event.sample].append(event.token)  # type: ignore[union-attr]
            return events

        with mock.patch.object(LiveLoop, "step", noting):
            again = await answered(backend, asked)
        assert again.texts == answer.texts
        assert answer.texts == [
            policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in told
        ]

    run(tiny(policy), work)


def test_a_stop_text_ends_an_answer_and_is_left_out(pocket: DialledModel) -> None:
    async def work(backend: InProcess) -> None:
        whole = await answered(backend, ask())
        text = whole.texts[0]
        stop = text[len(text) // 2 : len(text) // 2 + 5]
        found = await answered(backend, ask(stop=("never said", stop)))
        assert found.texts == [text[: text.index(stop)]]
        assert found.finishes == {0: "stop"}
        assert found.usage is not None and whole.usage is not None
        assert found.usage.completion_tokens < whole.usage.completion_tokens
        both = await answered(backend, ask(stop=(stop,), samples=2))
        assert both.texts == found.texts * 2

    run(in_process({"pocket": pocket}), work)


def test_a_prompt_that_is_too_long_is_refused_before_the_model_gets_anything() -> None:
    received: list[Sequence[int]] = []
    engine = TransformersEngine(random_policy(), FORMAT, 1000)
    backend = InProcess({"pocket": engine}, received=received.append)

    async def work(backend: InProcess) -> None:
        with pytest.raises(PromptTooLong):
            await answered(backend, ask("word " * 500))
        assert received == []
        assert backend.waiting == 0
        await answered(backend, ask())

    run(backend, work)


def test_closing_an_answer_frees_its_rows() -> None:
    """Held in the third forward, two of three rows are closed: the forward after the next has a single one."""
    policy = random_policy(end_ids=(1999,))
    rows: list[int] = []
    policy.model.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True)

    async def work(backend: InProcess) -> None:
        with gated(policy.model, after=3) as gate:
            async with aclosing(backend.answer(ask(max_tokens=90, samples=2))) as closed:
                await anext(closed)
                other = asyncio.create_task(answered(backend, ask(TEXTS[2], max_tokens=10)))
                while backend.waiting == 0:
                    await asyncio.sleep(0)
            gate.set()
            answer = await other
        assert rows[-1] == 1
        assert len(rows) < 20
        assert answer.usage is not None and answer.usage.completion_tokens == 10
        assert backend.waiting == 0

    run(tiny(policy), work)


def test_an_ask_given_up_before_it_is_encoded_leaves_nothing() -> None:
    async def work(backend: InProcess) -> None:
        asked = asyncio.create_task(answered(backend, ask()))
        await asyncio.sleep(0)
        assert backend.waiting == 1
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert backend.waiting == 0
        await answered(backend, ask())

    run(tiny(), work)


def test_waiting_counts_asks_without_a_token() -> None:
    policy = random_policy(end_ids=(1999,))

    async def work(backend: InProcess) -> None:
        with gated(policy.model) as gate:
            asks = [asyncio.create_task(answered(backend, ask(seed=each))) for each in range(5)]
            await asyncio.sleep(0)
            assert backend.waiting == 5
            gate.set()
            await asyncio.gather(*asks)
        assert backend.waiting == 0

    run(tiny(policy), work)


def test_stopping_under_load_ends_every_ask_in_a_503() -> None:
    policy = random_policy(end_ids=(1999,))

    async def work() -> None:
        backend = tiny(policy, 200)
        await backend.start()
        await backend.check()
        with gated(policy.model, after=4) as gate:
            asks: list[asyncio.Task[Any]] = [
                asyncio.create_task(answered(backend, ask(max_tokens=90, samples=2))) for _ in range(6)
            ]
            first = backend.answer(ask(max_tokens=90))
            await anext(first)
            asks.append(asyncio.create_task(rest(first)))
            stopping = asyncio.create_task(backend.stop())
            outcomes = await asyncio.gather(*asks, return_exceptions=True)
            gate.set()
            await stopping
        assert [outcome.status for outcome in outcomes if isinstance(outcome, Refusal)] == [503] * 7
        with pytest.raises(Refusal):
            await answered(backend, ask())
        with pytest.raises(ModelError, match="does not run"):
            await backend.check()
        await backend.stop()
        await backend.start()
        assert (await answered(backend, ask(max_tokens=3))).finishes == {0: "length"}
        await backend.stop()

    asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_ends_every_ask_and_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    step = LiveLoop.step
    steps = iter(range(1000))

    def dying(loop: LiveLoop) -> Any:
        assert next(steps) < 3, "a fault of ours"
        return step(loop)

    monkeypatch.setattr(LiveLoop, "step", dying)

    async def work(backend: InProcess) -> None:
        asks = (answered(backend, ask(max_tokens=90)) for _ in range(6))
        outcomes = await asyncio.gather(*asks, return_exceptions=True)
        assert [outcome.status for outcome in outcomes if isinstance(outcome, Refusal)] == [503] * 6
        with pytest.raises(ModelError, match="does not run"):
            await backend.check()
        with pytest.raises(Refusal):
            await answered(backend, ask())
        assert backend.waiting == 0

    run(tiny(), work)


def test_a_fault_of_the_model_ends_the_ask_and_the_service_goes_on() -> None:
    """The embedding of a token that the second text alone has is not a number."""
    policy = random_policy(end_ids=(1999,))
    engine = TransformersEngine(policy, FORMAT, 10_000)
    ids = [set(engine.encode(GenerationRequest(ask(text).messages, GRID[0]))) for text in TEXTS]
    policy.model.get_input_embeddings().weight.data[list(ids[1] - ids[0] - ids[2])] = float("nan")

    async def work(backend: InProcess) -> None:
        asks = (answered(backend, ask(text, max_tokens=3)) for text in TEXTS)
        first, second, third = await asyncio.gather(*asks, return_exceptions=True)
        assert isinstance(first, Answer) and isinstance(third, Answer)
        assert isinstance(second, ModelError)
        await backend.check()

    run(InProcess({"pocket": engine}), work)


def test_several_models_by_name() -> None:
    """Each of two models answers the asks to its name, at once."""
    engines = {
        name: TransformersEngine(random_policy(end_ids=(1999,), seed=place), FORMAT, 10_000)
        for place, name in enumerate(("first", "second"))
    }
    backend = InProcess(engines)
    assert list(backend.models) == ["first", "second"]
    assert backend.models["second"].context == engines["second"].policy.context

    async def work(backend: InProcess) -> None:
        asks = [ask(control=control, model=name) for control in GRID[:4] for name in engines]
        answers = await asyncio.gather(*(answered(backend, each) for each in asks))
        for each, answer in zip(asks, answers, strict=True):
            [[completion]] = engines[each.model].generate(
                [GenerationRequest(each.messages, each.control)], Sampling(0.0, 1.0, 24), seed=0
            )
            assert answer.texts == [completion.text]
        assert answers[0].texts != answers[1].texts

    run(backend, work)


def test_a_model_that_cannot_be_run_is_refused_at_the_start() -> None:
    from transformers import AutoModelForCausalLM

    config = Mamba2Config(vocab_size=2048, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, n_groups=1)
    policy = replace(random_policy(), model=AutoModelForCausalLM.from_config(config))
    with pytest.raises(ModelError, match="mamba2"):
        asyncio.run(tiny(policy).start())


def test_what_can_never_fit_is_not_tokenised(pocket: DialledModel) -> None:
    """One thread encodes for all."""
    backend = in_process({"pocket": pocket})

    async def work(backend: InProcess) -> None:
        untouched = mock.patch.object(TransformersEngine, "encode", side_effect=AssertionError)
        with untouched, pytest.raises(PromptTooLong, match="at least"):
            await answered(backend, ask("[s" * 2**19))
        assert backend.waiting == 0

    run(backend, work)
