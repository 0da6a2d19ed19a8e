"""In-process generation: the same tokens as transformers' own greedy decoding, the right distribution, the rest."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.buffers import free_without_the_collector
from tests.random_models import (
    CONFIGS,
    FORMAT,
    GREEDY,
    TOKENIZER,
    as_completion,
    cut_at,
    own_greedy,
    random_policy,
    request,
    varied_requests,
)
from transformers import AutoModelForCausalLM, DynamicCache, Mamba2Config

from rheostat.engines._sampling import draw
from rheostat.engines._slots import SlotCache
from rheostat.engines.transformers import TransformersEngine, build
from rheostat.errors import ModelError, PromptTooLong
from rheostat.model_files import quiet
from rheostat.models import load_policy
from rheostat.plugins import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_transformers_own(name: str) -> None:
    """Token for token, whatever the architecture, and however often rows leave and others take their place.

    The end tokens are three that this model likes, so that some responses end early, some at once, and others not
    at all: 64 tokens in flight hold one row, 200 a few.
    """
    policy = random_policy(name)
    requests = varied_requests()
    endless = own_greedy(policy, requests)
    likely = [token for token, _ in Counter(each for ids in endless for each in ids).most_common(9)]
    policy = replace(policy, end_ids=(endless[2][0], likely[len(likely) // 2], likely[-1]))
    expected = [as_completion(cut_at(ids, policy.end_ids), policy.end_ids) for ids in endless]
    for batch_tokens in (64, 200, 100_000):
        found = build(policy, FORMAT, batch_tokens=batch_tokens).generate(requests, GREEDY, seed=0)
        assert [row[0] for row in found] == expected
    if name == "llama":
        assert {each.finish for each in expected} == {"stop", "length"}
        assert min(each.tokens for each in expected) == 1


def test_a_model_with_a_recurrent_state_is_refused() -> None:
    config = Mamba2Config(
        vocab_size=2048, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, n_groups=1
    )
    with quiet():
        policy = replace(random_policy(), model=AutoModelForCausalLM.from_config(config))
    with pytest.raises(ModelError, match="mamba2: got .*, allowed are full_attention and sliding_attention"):
        build(policy, None, batch_tokens=1000).generate([request("hi")], GREEDY, seed=0)


def test_logits_that_are_not_numbers_are_refused() -> None:
    policy = random_policy()
    policy.model.get_input_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ModelError, match="not numbers"):
        build(policy, None, batch_tokens=1000).generate([request("hi")], GREEDY, seed=0)


def test_the_same_seed_gives_the_same_texts() -> None:
    engine = build(random_policy(), FORMAT, batch_tokens=300)
    requests = [replace(each, samples=3) for each in varied_requests()]
    sampling = Sampling(max_tokens=12)
    first = engine.generate(requests, sampling, seed=5)
    assert engine.generate(requests, sampling, seed=5) == first
    assert engine.generate(requests, sampling, seed=6) != first


def test_every_request_gets_its_samples_and_progress_counts_them() -> None:
    told: list[int] = []
    requests = [request("hi", samples=2), request("yes"), request("hi", samples=3), request("no", samples=0)]
    found = build(random_policy(), None, batch_tokens=150).generate(
        requests, Sampling(max_tokens=5), seed=0, progress=told.append
    )
    assert [len(row) for row in found] == [2, 1, 3, 0]
    assert sum(told) == 6
    assert all(1 <= each.tokens <= 5 for row in found for each in row)
    assert build(random_policy(), None, batch_tokens=150).generate([], Sampling(), seed=0) == []


def test_a_response_stops_at_the_context() -> None:
    """A prompt of n tokens leaves context - n for the response; none left is the user's fault."""
    policy = random_policy(end_ids=(1999,))
    length = len(TransformersEngine(policy, None, 1).encode(request("hi")))
    near = replace(policy, context=length + 4)
    [[completion]] = build(near, None, batch_tokens=1000).generate([request("hi")], GREEDY, seed=0)
    assert (completion.tokens, completion.finish) == (4, "length")
    with pytest.raises(PromptTooLong):
        build(replace(policy, context=length), None, batch_tokens=1000).generate(
            [request("hi")], GREEDY, seed=0
        )


def test_a_prompt_goes_through_the_model_once_and_its_beginning_once_for_all_controls() -> None:
    """Four samples of one prompt cost its n tokens once; the 25 controls of the grid share the first n of n + c_i.

    A prefill pads to its longest row, so the second pass counts 25 times the longest control's tokens.
    """
    policy = random_policy()
    seen: list[torch.Size] = []
    policy.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    engine = TransformersEngine(policy, FORMAT, 100_000)
    length = len(engine.encode(request("How do I clean my shoes?")))
    one_token = Sampling(max_tokens=1)
    engine.generate([request("How do I clean my shoes?", samples=4)], one_token, seed=0)
    assert seen == [(1, length)]
    seen.clear()
    requests = [request("How do I clean my shoes?", control) for control in FORMAT.grid()]
    engine.generate(requests, one_token, seed=0)
    longest = max(len(engine.encode(each)) for each in requests)
    (heads, head_length), (tails, tail_length) = seen
    assert (heads, tails) == (1, 25)
    assert head_length >= length
    assert head_length + tail_length == longest


def test_the_buffer_holds_no_more_rows_than_there_are_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three responses within 100,000 tokens get three rows; forty within 320 the ten rows of 32 columns that fit."""
    reserved: list[int] = []
    reserve = SlotCache.reserve

    def noting(cache: SlotCache, like: DynamicCache, rows: int, columns: int, used: int) -> None:
        reserved.append(rows)
        reserve(cache, like, rows, columns, used)

    monkeypatch.setattr(SlotCache, "reserve", noting)
    sampling = Sampling(max_tokens=4)
    build(random_policy(), None, batch_tokens=100_000).generate([request("hi", samples=3)], sampling, seed=0)
    assert reserved == [3]
    reserved.clear()
    build(random_policy(), None, batch_tokens=320).generate([request("hi", samples=40)], sampling, seed=0)
    assert reserved == [10]


def test_the_buffer_is_free_when_generate_returns() -> None:
    with free_without_the_collector() as held:
        build(random_policy(), None, batch_tokens=1000).generate([request("hi")], GREEDY, seed=0)
        assert len(held) == 2


@pytest.fixture
def frequencies() -> Callable[[torch.Tensor, float, float], torch.Tensor]:
    """How often each token is drawn in 20,000 draws."""

    def draws(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = draw(logits.expand(20_000, -1), temperature, top_p, generator)
        return torch.bincount(drawn, minlength=len(logits)) / 20_000

    return draws


Frequencies = Callable[[torch.Tensor, float, float], torch.Tensor]


def test_drawing_follows_the_softmax(frequencies: Frequencies) -> None:
    """Weights 1 : 2 : 0 : 5 give 1/8, 2/8, 0, 5/8; at temperature 1/2 their squares, 1/30, 4/30, 0, 25/30.

    The standard error of a share is at most 0.0035; the tolerance is four of them.
    """
    logits = torch.tensor([1.0, 2.0, 0.0, 5.0]).log()
    torch.testing.assert_close(frequencies(logits, 1.0, 1.0), torch.tensor([1, 2, 0, 5]) / 8, atol=0.014, rtol=0)
    torch.testing.assert_close(
        frequencies(logits, 0.5, 1.0), torch.tensor([1, 4, 0, 25]) / 30, atol=0.014, rtol=0
    )


def test_a_nucleus_keeps_the_fewest_tokens_that_reach_its_probability(frequencies: Frequencies) -> None:
    """Of .2, .5, .3 the nucleus of .7 holds .5 and .3, renormalised .625 and .375; that of .5 holds .5 alone."""
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    torch.testing.assert_close(
        frequencies(logits, 1.0, 0.7), torch.tensor([0, 0.625, 0.375]), atol=0.014, rtol=0
    )
    assert frequencies(logits, 1.0, 0.5).tolist() == [0, 1, 0]
    assert frequencies(logits, 0.0, 1.0).tolist() == [0, 1, 0]


def test_samples_follow_the_models_distribution() -> None:
    """Second tokens of 3,000 samples against softmax of the logits after each first token, pooled.

    The likeliest pair of tokens is expected p · 3,000 times, with a standard deviation of √(3,000 p (1 − p)); the
    tolerance is four of them. A row that read another row's cache would not come near.
    """
    policy = random_policy(end_ids=(1999,))
    ids = TransformersEngine(policy, None, 1).encode(request("hi"))
    samples = 3000
    [row] = build(policy, None, batch_tokens=20_000).generate(
        [request("hi", samples=samples)], Sampling(temperature=0.3, max_tokens=2), seed=0
    )
    with torch.inference_mode():
        first = torch.softmax(policy.model(torch.tensor([ids])).logits[0, -1] / 0.3, -1)
        likely = first.topk(20).indices
        rows = torch.tensor([[*ids, int(each)] for each in likely])
        second = torch.softmax(policy.model(rows).logits[:, -1] / 0.3, -1)
    joint = first[likely, None] * second
    best = int(joint.argmax())
    pair = [int(likely[best // second.shape[1]]), best % second.shape[1]]
    expected = float(joint.max())
    count = Counter(each.text for each in row)[TOKENIZER.decode(pair)]
    assert expected > 0.02
    assert abs(count - samples * expected) < 4 * math.sqrt(samples * expected * (1 - expected))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories260K", "bitllama-3M", "real-chat-5M"])
def test_greedy_of_real_models_is_transformers_own(name: str, shared: Path) -> None:
    policy = load_policy(str(shared / "models" / name), device="cpu")
    policy.model.generation_config.eos_token_id = None
    requests = [request(text, samples=2) for text in ("hi", "How do I clean my shoes?")]
    endless = own_greedy(policy, requests)
    found = build(policy, FORMAT, batch_tokens=150).generate(requests, GREEDY, seed=0)
    for row, ids in zip(found, endless, strict=True):
        assert row[0] == row[1] == as_completion(cut_at(ids, policy.end_ids), policy.end_ids, policy.tokenizer)
