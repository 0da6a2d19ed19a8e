"""The decode loop that requests join and leave: the engine's greedy tokens, a row's own random numbers, its bounds."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.buffers import free_without_the_collector
from tests.random_models import CONFIGS, FORMAT, random_policy, request, varied_requests
from transformers import DynamicCache

from rheostat.engines._beginnings import with_beginnings
from rheostat.engines._live import Drawn, Failed, LiveLoop, LiveRequest
from rheostat.engines._sampling import RowSampling, draw, draw_rows
from rheostat.engines._slots import SlotCache
from rheostat.engines.transformers import TransformersEngine
from rheostat.errors import ModelError
from rheostat.models import Policy
from rheostat.plugins import GenerationRequest, Sampling
from rheostat.records import Finish

pytestmark = pytest.mark.usefixtures("one_thread")

Tokens = dict[int, list[int]]


@dataclass
class Watched:
    """A loop, and what it has answered so far."""

    loop: LiveLoop
    tokens: defaultdict[LiveRequest, Tokens] = field(default_factory=lambda: defaultdict(dict))
    finished: dict[tuple[LiveRequest, int], Finish] = field(default_factory=dict)
    errors: dict[LiveRequest, ModelError] = field(default_factory=dict)

    def step(self) -> None:
        for event in self.loop.step():
            assert event.request not in self.errors
            if isinstance(event, Failed):
                self.errors[event.request] = event.error
                continue
            assert isinstance(event, Drawn)
            assert (event.request, event.sample) not in self.finished
            self.tokens[event.request].setdefault(event.sample, []).append(event.token)
            if event.finish is not None:
                self.finished[event.request, event.sample] = event.finish

    def run(self) -> None:
        while not self.loop.is_idle:
            self.step()

    def answer(self, requests: Sequence[LiveRequest]) -> list[Tokens]:
        for each in requests:
            self.loop.submit(each)
        self.run()
        assert set(self.finished) >= {(each, sample) for each in requests for sample in range(each.samples)}
        return [self.tokens[each] for each in requests]


def encoded(policy: Policy, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    engine = TransformersEngine(policy, FORMAT, 1)
    return [engine.encode(each) for each in requests]


def prompt_of(policy: Policy, text: str = "hi") -> tuple[int, ...]:
    return encoded(policy, [request(text)])[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_the_engines(name: str) -> None:
    """Whatever the architecture, alone, in a crowd, joining one by one, and where rows must give way to others."""
    policy = random_policy(name)
    requests = varied_requests()[::2]
    greedy = Sampling(temperature=0, max_tokens=14)
    likely = Counter(
        token
        for [each] in TransformersEngine(policy, FORMAT, 9999).sample(requests, greedy, seed=0)
        for token in each.ids
    ).most_common(9)
    policy = replace(policy, end_ids=(likely[len(likely) // 2][0], likely[-1][0]))
    expected = [row[0].ids for row in TransformersEngine(policy, FORMAT, 9999).sample(requests, greedy, seed=0)]
    prompts = encoded(policy, requests)
    for batch_tokens in (200, 100_000):
        asked = [LiveRequest(ids, greedy, seed=0) for ids in prompts]
        assert Watched(LiveLoop(policy, batch_tokens)).answer(asked) == [{0: ids} for ids in expected]
        watched = Watched(LiveLoop(policy, batch_tokens))
        asked = [LiveRequest(ids, greedy, seed=0) for ids in prompts]
        for each in asked:
            watched.loop.submit(each)
            watched.step()
        watched.run()
        assert [watched.tokens[each] for each in asked] == [{0: ids} for ids in expected]


def test_a_row_draws_by_its_own_seed_alone() -> None:
    """A request's tokens alone are those in a crowd of other prompts, samplings and seeds; another seed's are not."""
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    for sampling in (Sampling(1.0, 1.0, 16), Sampling(0.8, 0.7, 16)):
        [alone] = Watched(LiveLoop(policy, 1000)).answer([LiveRequest(ids, sampling, seed=5, samples=2)])
        assert alone[0] != alone[1]
        for batch_tokens in (120, 100_000):
            crowd = [
                LiveRequest(other, Sampling(place % 3 / 2, 1 - place % 2 / 2, 3 + place), seed=place)
                for place, other in enumerate(encoded(policy, varied_requests()[::2]))
            ]
            mine = LiveRequest(ids, sampling, seed=5, samples=2)
            found = Watched(LiveLoop(policy, batch_tokens)).answer([*crowd[:3], mine, *crowd[3:]])
            assert found[3] == alone
        [other] = Watched(LiveLoop(policy, 1000)).answer([LiveRequest(ids, sampling, seed=6, samples=2)])
        assert other != alone


def test_rows_that_give_way_go_on_where_they_were() -> None:
    """Eight answers of 40 tokens within 200: more start than fit in the end, and none is lost or drawn otherwise."""
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    sampling = Sampling(1.0, 1.0, 40)
    given: list[Sequence[int]] = []
    free = Watched(LiveLoop(policy, 100_000)).answer([LiveRequest(ids, sampling, seed=each) for each in range(8)])
    watched = Watched(LiveLoop(policy, 200, given.append))
    asked = [LiveRequest(ids, sampling, seed=each) for each in range(8)]
    for each in asked:
        watched.loop.submit(each)
    rows = []
    while not watched.loop.is_idle:
        watched.step()
        rows.append(watched.loop.in_flight)
        longest = max((len(ids) + len(tokens[0]) for tokens in watched.tokens.values()), default=0)
        assert rows[-1] <= max(1, 200 // min(longest, len(ids) + 1))
    assert any(later < earlier for earlier, later in zip(rows, rows[1:], strict=False))
    assert [watched.tokens[each] for each in asked] == free
    assert given == [ids] * 8


def test_what_is_in_flight_stays_within_batch_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows × the longest of them, at every forward; a single row may be longer."""
    policy = random_policy(end_ids=(1999,))
    seen: list[tuple[int, int]] = []
    step = SlotCache.step

    def noting(cache: SlotCache, row_ids: torch.Tensor, positions: torch.Tensor, longest: int) -> None:
        seen.append((len(row_ids), longest))
        step(cache, row_ids, positions, longest)

    monkeypatch.setattr(SlotCache, "step", noting)
    watched = Watched(LiveLoop(policy, 150))
    watched.answer(
        [LiveRequest(ids, Sampling(1.0, 1.0, 20), seed=0) for ids in encoded(policy, varied_requests()[::2])]
    )
    assert max(rows for rows, _ in seen) > 1
    assert all(rows * longest <= 150 or rows == 1 for rows, longest in seen)


def test_a_cancelled_request_frees_its_rows_at_the_next_step() -> None:
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    watched = Watched(LiveLoop(policy, 100_000))
    kept, dropped, unborn = (LiveRequest(ids, Sampling(1.0, 1.0, 12), seed=each, samples=2) for each in range(3))
    watched.loop.submit(kept)
    watched.loop.submit(dropped)
    watched.step()
    assert watched.loop.in_flight == 4
    watched.loop.submit(unborn)
    watched.loop.cancel(dropped)
    watched.loop.cancel(unborn)
    watched.step()
    assert watched.loop.in_flight == 2
    watched.run()
    assert [len(tokens) for tokens in watched.tokens[dropped].values()] == [2, 2]
    assert unborn not in watched.tokens
    [alone] = Watched(LiveLoop(policy, 100_000)).answer([replace(kept)])
    assert watched.tokens[kept] == alone
    watched.loop.cancel(kept)
    watched.run()


def test_an_answer_ends_at_its_limits() -> None:
    """At its `max_tokens`, at the context, and at an end token."""
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    near = replace(policy, context=len(ids) + 4)
    for limited, most, expected in ((policy, 1, 1), (policy, 7, 7), (near, 50, 4)):
        watched = Watched(LiveLoop(limited, 1000))
        asked = LiveRequest(ids, Sampling(1.0, 1.0, most), seed=0)
        [tokens] = watched.answer([asked])
        assert len(tokens[0]) == expected
        assert watched.finished[asked, 0] == "length"
    greedy = LiveRequest(ids, Sampling(0.0, 1.0, 9), seed=0)
    [tokens] = Watched(LiveLoop(policy, 1000)).answer([greedy])
    end = tokens[0][3]
    watched = Watched(LiveLoop(replace(policy, end_ids=(end,)), 1000))
    [cut] = watched.answer([replace(greedy)])
    assert cut[0] == tokens[0][: tokens[0].index(end) + 1]
    assert set(watched.finished.values()) == {"stop"}


def test_a_shared_beginning_and_the_prompt_of_several_samples_go_through_the_model_once() -> None:
    """Four samples cost a prompt once, also where they wait for room; 25 controls cost what they share once."""
    policy = random_policy(end_ids=(1999,))
    seen: list[torch.Size] = []
    policy.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    ids = prompt_of(policy, "How do I clean my shoes?")
    for batch_tokens in (100_000, len(ids) + 20):
        seen.clear()
        Watched(LiveLoop(policy, batch_tokens)).answer([LiveRequest(ids, Sampling(max_tokens=2), 0, samples=4)])
        assert [shape for shape in seen if shape[1] > 1] == [(1, len(ids))]
    seen.clear()
    prompts = encoded(policy, [request("How do I clean my shoes?", control) for control in FORMAT.grid()])
    Watched(LiveLoop(policy, 100_000)).answer([LiveRequest(each, Sampling(max_tokens=1), 0) for each in prompts])
    (heads, head_length), (tails, tail_length) = seen
    assert (heads, tails) == (1, 25)
    assert head_length >= len(ids)
    assert head_length + tail_length == max(map(len, prompts))


@settings(deadline=None)
@example([(0,), (1,), (2,), (0, 0)])
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, unique=True))
def test_a_shared_beginning_is_one(prompts: list[tuple[int, ...]]) -> None:
    """It leaves an end, and whoever shares it shares it with another; the prompts keep their order."""
    found = with_beginnings(prompts)
    assert [prompt.ids for prompt in found] == prompts
    heads = Counter(tuple(prompt.ids[: prompt.shared]) for prompt in found if prompt.shared)
    assert all(prompt.shared < len(prompt.ids) for prompt in found)
    assert all(count > 1 for count in heads.values())


def test_a_fault_of_one_prompt_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 1777 is not a number: who has it in the prompt fails, who draws it fails then, the others go on as ever."""
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    assert 1777 not in ids
    fine = LiveRequest(ids, Sampling(1.0, 1.0, 12), seed=1)
    [expected] = Watched(LiveLoop(policy, 10_000)).answer([fine])
    assert 1777 not in expected[0]
    policy.model.get_input_embeddings().weight.data[1777] = math.nan
    watched = Watched(LiveLoop(policy, 10_000))
    broken = LiveRequest((*ids, 1777), Sampling(1.0, 1.0, 12), seed=1, samples=2)
    later = LiveRequest(ids, Sampling(1.0, 1.0, 12), seed=1)
    again = replace(fine)
    forward = type(watched.loop._forward).__call__

    def drawing_it(*arguments: torch.Tensor) -> torch.Tensor:
        logits = forward(*arguments)  # type: ignore[arg-type]
        if logits.shape[0] == 2 and not logits.isnan().any():
            logits[1, 1777] = 1000.0
        return logits

    for each in (again, broken, later):
        watched.loop.submit(each)
    watched.step()
    assert set(watched.errors) == {broken}
    monkeypatch.setattr(type(watched.loop._forward), "__call__", drawing_it)
    watched.step()
    assert watched.tokens[later][0][-1] == 1777
    watched.step()
    assert set(watched.errors) == {broken, later}
    assert "not numbers" in str(watched.errors[later])
    monkeypatch.undo()
    beside = replace(fine)
    watched.loop.submit(beside)
    watched.run()
    assert watched.tokens[again] == watched.tokens[beside] == expected


def test_a_device_out_of_memory_ends_those_in_flight_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy(end_ids=(1999,))
    ids = prompt_of(policy)
    watched = Watched(LiveLoop(policy, 10_000))
    asked = [LiveRequest(ids, Sampling(1.0, 1.0, 4), seed=each) for each in range(3)]
    for each in asked[:2]:
        watched.loop.submit(each)
    watched.step()

    def full(cache: SlotCache, like: DynamicCache, rows: int, columns: int, used: int) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(SlotCache, "reserve", full)
    watched.loop.submit(asked[2])
    watched.step()
    assert set(watched.errors) == set(asked)
    assert all("out of memory" in str(error) for error in watched.errors.values())
    monkeypatch.undo()
    assert watched.loop.is_idle
    [tokens] = watched.answer([replace(asked[0])])
    assert len(tokens[0]) == 4


def test_the_buffer_is_free_when_nothing_is_in_flight() -> None:
    policy = random_policy()
    watched = Watched(LiveLoop(policy, 1000))
    with free_without_the_collector():
        watched.answer([LiveRequest(prompt_of(policy), Sampling(max_tokens=5), seed=0, samples=3)])


def test_drawing_by_rows_is_drawing() -> None:
    """Rows of unlike samplings in one call get what `draw` gives each by the same uniform number."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 50, generator=generator) * 3
    rows = [((place % 4) / 2, (1.0, 0.9, 0.3)[place % 3]) for place in range(60)]
    numbers = [torch.rand(1, 1, generator=torch.Generator().manual_seed(place)) for place in range(60)]
    found = draw_rows(logits, RowSampling.of(rows, torch.device("cpu")), torch.cat(numbers))
    expected = [
        draw(logits[place : place + 1], temperature, top_p, torch.Generator().manual_seed(place)).item()
        for place, (temperature, top_p) in enumerate(rows)
    ]
    assert found.tolist() == expected


def test_a_temperature_near_0_draws_the_likeliest() -> None:
    """1e-40 divides to infinity in float32, and infinity less infinity is not a number."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    sampling = RowSampling.of([(1e-40, 1.0)], torch.device("cpu"))
    assert draw_rows(logits, sampling, torch.tensor([[0.99]])).tolist() == [1]
