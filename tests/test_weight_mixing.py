"""Models mixed in weight space: by hand, by law, the base back to the last bit, and against a model built slowly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rheostat import plugins
from rheostat.config import LoraConfig
from rheostat.control import ControlFormat
from rheostat.errors import ConfigError, ModelError
from rheostat.fine_tuning import fine_tune
from rheostat.method_checks import method_problems
from rheostat.methods import soups, task_arithmetic
from rheostat.models import Policy, load_policy
from rheostat.plugins import (
    Completion,
    ControlledRequest,
    GenerationRequest,
    MethodContext,
    Progress,
    Sampling,
)
from rheostat.preflight import check
from rheostat.recipe import load_config
from rheostat.records import Message, Pair
from rheostat.simplex import simplex
from rheostat.weight_mixing import Delta, MixedWeights, WeightMixer, deltas, parameters_of

pytestmark = pytest.mark.usefixtures("one_thread")
FORMAT = ControlFormat((plugins.attribute("helpfulness"), plugins.attribute("safety")))
LEVEL = st.floats(0, 1)
DIALS = st.dictionaries(st.sampled_from("abcd"), LEVEL, min_size=1)


def test_a_recipe_that_cannot_be_mixed_is_told_of_beforehand() -> None:
    """Of one dial soups and logit mixing would be one expert; weights of 4 bits cannot be added."""
    methods = ["soups", "task_arithmetic", "safepatching", "safepatching_dials", "logit_mixing"]
    config = load_config("pocket", [f"methods={methods}"])
    assert not list(method_problems(config))
    one = {"rewards": {"safety": config.rewards["safety"]}, "judges": {}, "suite": None}
    told = [f"methods: got {name!r} with the dials safety, allowed are 2 or more" for name in ("soups", "logit_mixing")]
    with pytest.raises(ConfigError) as caught:
        check(config.model_copy(update=one))
    assert [each.rpartition(":")[0] for each in caught.value.problems] == told
    assert "relative" not in caught.value.hint
    short = list(method_problems(config.model_copy(update={"quantization": "4bit"})))
    assert [each.partition(" with")[0] for each in short] == [f"methods: got {name!r}" for name in methods[:4]]
    assert "weights of 4 bits cannot be mixed" in short[0]


def test_a_delta_by_hand() -> None:
    """1 2 / 3 4 and δ = 10 at place 2: half of it makes 8 of the 3. All over, δ = 1 1 / 1 1, twice adds 2."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Delta(torch.tensor([10.0]), torch.tensor([2])).added(weight, 0.5).tolist() == [[1, 2], [8, 4]]
    assert Delta(torch.ones(2, 2)).added(weight, 2).tolist() == [[3, 4], [5, 6]]
    assert weight.tolist() == [[1, 2], [3, 4]]
    assert Delta(torch.ones(2, 2)).added(weight.T, 1).tolist() == [[2, 4], [3, 5]]
    assert Delta(torch.tensor([1.0]), torch.tensor([1])).added(weight.T, 1).tolist() == [[1, 4], [2, 4]]


def test_deltas_are_of_what_was_changed() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    found = deltas(base, {"a": torch.tensor([1.5, 2.0]), "b": torch.tensor([3.0])})
    assert list(found) == ["a"] and found["a"].values.tolist() == [0.5, 0]
    for other, name in (({"a": torch.ones(3), "b": torch.ones(1)}, "a is"), ({"a": torch.ones(2)}, "b is")):
        with pytest.raises(ModelError, match=f"different architectures: {name}"):
            deltas(base, other)


def test_soups_weights_by_hand() -> None:
    """(1, ¼) is 4 to 1. Only the ratio counts; where all dials are 0 all experts count alike."""
    assert simplex({"helpfulness": 1.0, "safety": 0.25}) == {"helpfulness": 0.8, "safety": 0.2}
    assert simplex({"helpfulness": 0.0, "safety": 0.0}) == {"helpfulness": 0.5, "safety": 0.5}
    assert simplex({"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}) == dict.fromkeys("abcd", 0.25)
    assert task_arithmetic.signed({"a": 0.0, "b": 0.5, "c": 0.75}, 2.0) == {"a": -2, "b": 0, "c": 1}
    assert soups.models(["safety", "tone"]) == {"safety": "dpo+safety", "tone": "dpo+tone"}


@given(DIALS, st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_soups_weights_lie_on_the_simplex_whatever_the_scale_of_the_dials(
    dials: dict[str, float], factor: float
) -> None:
    weights = simplex(dials)
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 0
    if min(dials.values()) > 1e-6:
        assert simplex({name: factor * level for name, level in dials.items()}) == pytest.approx(weights)


@given(DIALS, st.floats(0.1, 4))
@settings(max_examples=60, deadline=None)
def test_task_arithmetic_is_odd_about_the_middle(dials: dict[str, float], scale: float) -> None:
    mirrored = task_arithmetic.signed({name: 1 - level for name, level in dials.items()}, scale)
    assert mirrored == pytest.approx({name: -each for name, each in task_arithmetic.signed(dials, scale).items()})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="allowed is a finite number above 0"):
        task_arithmetic.OPTIONS(scale=scale)


def shaken(seed: int, *, dtype: str = "float32", share: float = 1.0) -> Policy:
    """The pocket model with noise on about `share` of its tensors."""
    policy = load_policy("pocket:chat", dtype=dtype)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in policy.model.parameters():
            noise = torch.randn(each.shape, generator=generator) * 0.02
            if torch.rand(1, generator=generator) < share:
                each.add_(noise.to(each.dtype))
    return policy


def snapshot(policy: Policy) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in policy.model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixture_is_the_sum_and_the_base_comes_back_to_the_last_bit(dtype: str) -> None:
    """Slow twin: the sum tensor by tensor in float64, rounded once. Twice over, and after an error within."""
    base, one, other = (
        load_policy("pocket:chat", dtype=dtype),  # type: ignore[arg-type]
        shaken(1, dtype=dtype),
        shaken(2, dtype=dtype, share=0.5),
    )
    before = snapshot(base)
    weights = [parameters_of(each) for each in (base, one, other)]
    experts = {"one": deltas(weights[0], weights[1]), "other": deltas(weights[0], weights[2])}
    assert 0 < len(experts["other"]) < len(experts["one"])
    mixer = WeightMixer(base, experts)
    with mixer.mixed({"one": 0.75, "other": -2.0}):
        for name, each in parameters_of(base).items():
            start = before[name].double()
            slow = start + 0.75 * (weights[1][name].double() - start) - 2.0 * (weights[2][name].double() - start)
            # One rounding of the type: 2⁻²⁴ or 2⁻⁹ of the value, the terms' own in float32 beside it.
            torch.testing.assert_close(each.double(), slow, atol=1e-6, rtol=2**-22 if dtype == "float32" else 2**-8)
    after = snapshot(base)
    assert all(torch.equal(after[name], each) for name, each in before.items())
    with pytest.raises(RuntimeError, match="within"), mixer.mixed({"one": 1.0}):
        raise RuntimeError("within")
    assert all(torch.equal(each, before[name]) for name, each in snapshot(base).items())
    assert mixer.merges == 2


def test_coefficients_of_1_are_the_expert_and_of_0_the_base() -> None:
    base, expert = load_policy("pocket:chat"), shaken(3)
    before = snapshot(base)
    mixer = WeightMixer(base, {"it": deltas(parameters_of(base), parameters_of(expert))})
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        own, theirs = (each.model(input_ids=ids).logits for each in (base, expert))
        with mixer.mixed({"it": 1.0}):
            torch.testing.assert_close(base.model(input_ids=ids).logits, theirs, atol=1e-4, rtol=1e-4)
        with mixer.mixed({}):
            assert torch.equal(base.model(input_ids=ids).logits, own)
    assert not torch.allclose(own, theirs, atol=1e-2)
    assert all(torch.equal(each, before[name]) for name, each in snapshot(base).items())


def pairs() -> list[Pair]:
    return [
        Pair(
            f"p{place}", (Message("user", f"How do I boil {place} eggs?"),), "First, boil the water.", "No.",
            {"helpfulness": 0.9, "safety": 0.8}, {"helpfulness": 0.1, "safety": 0.7},
        )
        for place in range(4)
    ]  # fmt: skip


def test_an_experts_merged_adapter_changes_the_adapted_layers_alone(tmp_path: Path) -> None:
    """LoRA's δ is B·A·α/r: of the adapter's rank, on layers inside the decoder, nothing elsewhere."""
    base, tuned = load_policy("pocket:chat"), load_policy("pocket:chat")
    lora = LoraConfig(rank=2, alpha=4.0)
    settings_ = ["train.steps=3", "train.batch_size=2", "train.learning_rate=0.01", f"train.lora={lora.model_dump()}"]
    fine_tune(tuned, pairs(), objective="dpo", config=load_config("pocket", settings_), checkpoints=tmp_path)
    found = deltas(parameters_of(base), parameters_of(tuned))
    assert found and all(".layers." in name for name in found)
    for delta in found.values():
        singular = torch.linalg.svdvals(delta.values)
        assert singular[2] < 1e-3 * singular[0]  # merging rounds


@dataclass
class EngineDouble:
    """Answers with the value of one weight of the model, and remembers the seeds and sizes of its calls."""

    weight: Tensor
    calls: list[tuple[int, int]] = field(default_factory=list)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        self.calls.append((len(requests), seed))
        assert all(request.control is None for request in requests)
        if progress is not None:
            progress(len(requests))
        value = f"{self.weight.view(-1)[0].item():.4f}"
        return [[Completion(f"{value} {request.messages[0].content}", 3, "stop")] for request in requests]


def test_requests_are_answered_setting_by_setting_in_their_own_order() -> None:
    """Six requests of three distinct ratios are three merges: each answer is that of its own request and weights."""
    policy = load_policy("pocket:chat")
    name, weight = next(iter(parameters_of(policy).items()))
    start = weight.view(-1)[0].item()
    shape = weight.shape
    experts = {
        dial: {name: Delta(torch.full(shape, change))} for dial, change in (("helpfulness", 1.0), ("safety", 2.0))
    }
    mixer, engine = WeightMixer(policy, experts), EngineDouble(weight)
    method = MixedWeights(mixer, engine, simplex)
    asked = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.25, 0.0), (1.0, 1.0), (0.0, 0.0)]
    requests = [
        ControlledRequest((Message("user", str(place)),), {"helpfulness": one, "safety": other})
        for place, (one, other) in enumerate(asked)
    ]
    told: list[int] = []
    answers = method.respond(requests, Sampling(), seed=5, progress=told.append)
    changes = [1.0, 2.0, 1.5, 1.0, 1.5, 1.5]
    for place, (answer, change) in enumerate(zip(answers, changes, strict=True)):
        value, content = answer.completion.text.split()
        assert float(value) == pytest.approx(start + change, abs=1e-3) and content == str(place)
        assert answer.generated_tokens == 3
    assert [size for size, _ in engine.calls] == [2, 1, 3] and mixer.merges == 3
    assert len({seed for _, seed in engine.calls}) == 3 and sum(told) == 6
    again = method.respond(requests, Sampling(), seed=5)
    assert engine.calls[3:] == engine.calls[:3] and again == answers
    assert weight.view(-1)[0].item() == start


@dataclass
class ModelsDouble:
    """A base and one model a role, in memory: `plugins.Models`."""

    policy: Policy
    experts: dict[str, Policy]

    def base(self) -> Policy:
        return self.policy

    def tuned(self, role: str) -> Policy:
        return self.experts[role]

    def folder(self, role: str) -> Path:
        raise AssertionError(role)

    def engine(self, policy: Policy) -> plugins.Engine:
        engine: plugins.Engine = plugins.load("engines", "transformers").build(policy, FORMAT, batch_tokens=4096)
        return engine


class NoScorer:
    def score(
        self, items: Sequence[plugins.Judged], *, progress: Progress | None = None
    ) -> list[dict[str, float]]:
        raise AssertionError("no method of weights scores")


@pytest.mark.parametrize("name", ["soups", "task_arithmetic"])
def test_a_dial_at_its_end_answers_as_its_expert(name: str) -> None:
    """Greedily, through the real engine: safety alone at 1 is the safety expert's own answer, ½ and ½ none of both.

    For task arithmetic helpfulness at ½ has the coefficient 0. Afterwards the base answers as it did.
    """
    experts = {"helpfulness": shaken(4), "safety": shaken(5)}
    models = ModelsDouble(load_policy("pocket:chat"), experts)
    file: plugins.MethodKind = plugins.load("methods", name)
    engine = models.engine(models.policy)
    context = MethodContext(engine, False, NoScorer(), FORMAT.attributes, 4, models, file.OPTIONS())
    method = file.build(context)
    messages = (Message("user", "How do I boil an egg?"),)
    greedy = Sampling(temperature=0, max_tokens=24)
    own = engine.generate([GenerationRequest(messages)], greedy, seed=0)[0][0]
    rest = 0.0 if name == "soups" else 0.5
    (answer,) = method.respond(
        [ControlledRequest(messages, {"helpfulness": rest, "safety": 1.0})], greedy, seed=0
    )
    expert = models.engine(experts["safety"]).generate([GenerationRequest(messages)], greedy, seed=0)[0][0]
    assert answer.completion == expert and expert.text != own.text
    assert engine.generate([GenerationRequest(messages)], greedy, seed=0)[0][0] == own
