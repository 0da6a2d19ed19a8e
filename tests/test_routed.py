"""The routed model beside a slow twin, its experts and routers trained and saved, and the methods made of them."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rheostat import plugins
from rheostat.adapters import mlp_output_layers, routable
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.errors import InputError, ModelError
from rheostat.fine_tuning import fine_tune
from rheostat.methods import midpo, midpo_gates
from rheostat.models import Policy, load_policy
from rheostat.objectives import midpo_router
from rheostat.plugins import (
    ControlledRequest,
    Engine,
    GenerationRequest,
    MethodContext,
    PairInputs,
    Sampling,
)
from rheostat.recipe import load_config
from rheostat.records import Message, Pair
from rheostat.routed import (
    Expert,
    Experts,
    RoutedLayer,
    RouterGate,
    SetGate,
    load_routed,
    new_routers,
    read_expert,
    read_experts,
    routed,
    save_routed,
    set_gates,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FORMAT = ControlFormat((plugins.attribute("helpfulness"), plugins.attribute("safety")))
IDS = torch.arange(5, 65).reshape(3, 20)
GREEDY = Sampling(temperature=0, max_tokens=24)
QUESTIONS = tuple(
    (Message("user", f"How do I {verb} an egg?"),) for verb in ("boil", "steal", "paint", "throw")
)


def test_an_expert_and_a_routed_layer_by_hand() -> None:
    """E(h) = 2·3·(1 + 2) = 18 of h = (1, 1); W h = 5 with it and an expert of 4, under ½ and ¼: 5 + 9 + 1 = 15."""
    expert = Expert(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), 2.0)
    other = Expert(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]]), 1.0)
    hidden = torch.ones(1, 1, 2)
    assert expert(hidden).item() == 18 and other(hidden).item() == 4
    linear = torch.nn.Linear(2, 1, bias=False)
    linear.weight.data = torch.tensor([[2.0, 3.0]])
    layer = RoutedLayer(linear, {"s": expert, "h": other}, {"s": SetGate(0.5), "h": SetGate(0.25)})
    assert layer(hidden).item() == 15
    assert layer.seen["s"].shape == (1, 1) and not expert.first.requires_grad


def random_experts(model: Any, roles: tuple[str, ...] = ("safety", "helpfulness"), seed: int = 0) -> Experts:
    """Experts of rank 3 on the last layer of every MLP, strong enough to be seen."""
    draw = torch.Generator().manual_seed(seed)
    return {
        role: {
            name: Expert(
                torch.randn(3, into, generator=draw) * 0.2,
                torch.randn(out, 3, generator=draw) * 0.2,
                0.7,
            )
            for name, layer in mlp_output_layers(model).items()
            for out, into in [layer.get_parameter("weight").shape]
        }
        for role in roles
    }


def slow_gate(gate: RouterGate, hidden: list[float]) -> float:
    """σ(w₃·(W₂(W₁h + b₁) + b₂) + b₃), number by number."""
    for layer in (gate.inward, gate.outward, gate.last):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        hidden = [
            sum(each * value for each, value in zip(row, hidden, strict=True)) + shift
            for row, shift in zip(weight, bias, strict=True)
        ]
    return 1 / (1 + math.exp(-hidden[0]))


def test_a_routed_layer_is_its_slow_twin() -> None:
    """Token by token, expert by expert, number by number; an input so large that the gates differ between tokens."""
    torch.manual_seed(1)
    linear = torch.nn.Linear(5, 4)
    experts = {
        role: Expert(torch.randn(2, 5), torch.randn(4, 2), scale) for role, scale in (("s", 2.0), ("h", 0.5))
    }
    gates = {role: RouterGate(5, 3) for role in experts}
    layer = RoutedLayer(linear, experts, gates)
    hidden = torch.randn(2, 3, 5) * 4
    found = layer(hidden)
    for row in range(2):
        for token in range(3):
            own = hidden[row, token].tolist()
            expected = linear(hidden[row, token]).tolist()
            for role, expert in experts.items():
                gate = slow_gate(gates[role], own)
                assert layer.seen[role][row, token].item() == pytest.approx(gate, abs=1e-5)
                inner = [
                    sum(a * value for a, value in zip(line, own, strict=True))
                    for line in expert.first.tolist()
                ]
                outer = [
                    sum(b * z for b, z in zip(line, inner, strict=True)) for line in expert.second.tolist()
                ]
                expected = [
                    value + gate * expert.scale * added for value, added in zip(expected, outer, strict=True)
                ]
            assert found[row, token].tolist() == pytest.approx(expected, abs=1e-4)
    assert layer.seen["s"].max() - layer.seen["s"].min() > 0.05


@pytest.fixture(scope="module")
def shared_policy() -> Policy:
    return load_policy("pocket:chat")


@pytest.fixture
def policy(shared_policy: Policy) -> Iterator[Policy]:
    """The pocket model, which every test leaves as it was."""
    before = {name: each.clone() for name, each in shared_policy.model.state_dict().items()}
    modules = {name: id(each) for name, each in shared_policy.model.named_modules()}
    yield shared_policy
    after = shared_policy.model.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], each) for name, each in before.items())
    assert {name: id(each) for name, each in shared_policy.model.named_modules()} == modules
    assert all(each.requires_grad for each in shared_policy.model.parameters())


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        found: Tensor = policy.model(input_ids=IDS).logits
    return found


@given(st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=8, deadline=None)
def test_gates_that_are_set_add_their_experts_to_the_weights(safety: float, helpfulness: float) -> None:
    """W h + Σ g·E(h) is (W + Σ g·scale·B A) h: the merged model is the twin."""
    policy = load_policy("pocket:chat")
    experts = random_experts(policy.model)
    gates = set_gates(experts)
    gates.by_role["safety"].value, gates.by_role["helpfulness"].value = safety, helpfulness
    with routed(policy.model, experts, gates.by_layer):
        found = logits(policy)
    with torch.no_grad():
        for role, gate in (("safety", safety), ("helpfulness", helpfulness)):
            for name, expert in experts[role].items():
                layer = policy.model.get_submodule(name)
                layer.weight += gate * expert.scale * expert.second @ expert.first
    torch.testing.assert_close(found, logits(policy), atol=2e-3, rtol=1e-3)


def test_gates_at_zero_are_the_base_to_the_bit_and_open_ones_are_not(policy: Policy) -> None:
    experts = random_experts(policy.model)
    gates = set_gates(experts)
    base = logits(policy)
    with routed(policy.model, experts, gates.by_layer):
        assert torch.equal(logits(policy), base)
        gates.by_role["safety"].value = 1.0
        assert (logits(policy) - base).abs().max() > 0.1
    assert torch.equal(logits(policy), base)


def test_a_model_is_restored_after_an_error_too(policy: Policy) -> None:
    experts = random_experts(policy.model)
    with (
        pytest.raises(RuntimeError, match="inside"),
        routed(policy.model, experts, set_gates(experts).by_layer),
    ):
        raise RuntimeError("inside")


def test_gates_are_told_of_the_tokens_in_the_mask(policy: Policy) -> None:
    experts = random_experts(policy.model)
    mask = torch.ones_like(IDS)
    mask[1, 12:] = 0
    torch.manual_seed(0)
    with routed(policy.model, experts, new_routers(experts, width=4)) as model:
        for layer in model.layers.values():
            layer.train()
        policy.model(input_ids=IDS, attention_mask=mask)
        gates = model.gates(mask)
        first = next(iter(model.layers.values()))
        expected = torch.cat([first.seen["safety"][row, : 12 if row == 1 else 20] for row in range(3)])
    assert set(gates) == {"safety", "helpfulness"}
    assert gates["safety"].shape == (3 * 52,) and gates["safety"].requires_grad
    torch.testing.assert_close(gates["safety"][:52], expected)


def made(count: int = 6, *, safety: tuple[float, float] = (0.9, 0.6)) -> list[Pair]:
    good, bad = ({"helpfulness": 0.5, "safety": score} for score in safety)
    return [
        Pair(
            f"p{place}",
            (Message("user", f"How do I boil {place} eggs?"),),
            "First, boil the water. " * (1 + place % 3) + "Then add the eggs.",
            "First, boil nothing. No.",
            good,
            bad,
        )
        for place in range(count)
    ]


def config(**train: object) -> RunConfig:
    values = {"batch_size": 3, "steps": 6, "learning_rate": 1e-2, "lora": "auto", "save_steps": 3, **train}
    return load_config("pocket", [f"train.{key}={value}" for key, value in values.items()])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two experts that were trained for real: one on the pairs, one on the pairs turned around."""
    root = tmp_path_factory.mktemp("experts")
    turned = [
        replace(each, chosen=each.rejected, rejected=each.chosen, chosen_scores=each.chosen_scores)
        for each in made()
    ]
    for role, pairs in (("safety", made()), ("helpfulness", turned)):
        fine_tune(
            load_policy("pocket:chat"), pairs, objective="spe_dpo", config=config(), checkpoints=root / "c" / role,
            adapter=root / role, ordered_by="safety",
        )  # fmt: skip
    return {role: root / role for role in ("safety", "helpfulness")}


def merged(folder: Path) -> Policy:
    """PEFT's own merge of an expert into the base."""
    return load_policy("pocket:chat", adapter=folder)


def test_an_expert_is_an_adapter_on_the_last_layer_of_every_mlp_by_itself(
    adapters: Mapping[str, Path],
) -> None:
    """`lora: auto` of a small model would train all weights; this objective has an adapter of its own."""
    about = json.loads((adapters["safety"] / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"]) == (16, 32)
    expert = read_expert(adapters["safety"])
    assert list(expert) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    assert {each.scale for each in expert.values()} == {2.0}
    assert all(each.second.abs().max() > 0 for each in expert.values())


def engine(policy: Policy) -> Engine:
    found: Engine = plugins.load("engines", "transformers").build(policy, FORMAT, batch_tokens=4096)
    return found


def answers(policy: Policy) -> list[str]:
    requests = [GenerationRequest(each) for each in QUESTIONS]
    return [each[0].text for each in engine(policy).generate(requests, GREEDY, seed=0)]


class Bench:
    """The models of a method, by folder."""

    def __init__(self, policy: Policy, folders: Mapping[str, Path]) -> None:
        self._policy = policy
        self._folders = folders

    def base(self) -> Policy:
        return self._policy

    def tuned(self, role: str) -> Policy:
        raise AssertionError(role)

    def folder(self, role: str) -> Path:
        return self._folders[role]

    def engine(self, policy: Policy) -> Engine:
        return engine(policy)


class NoScorer:
    def score(self, items: Any, *, progress: Any = None) -> list[dict[str, float]]:
        raise AssertionError("these methods score nothing")


def method_context(policy: Policy, folders: Mapping[str, Path], options: Any) -> MethodContext:
    return MethodContext(
        engine(policy), False, NoScorer(), FORMAT.attributes, 1, Bench(policy, folders), options
    )


def staged(adapters: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """The adapters where trainings leave them."""
    for role, folder in adapters.items():
        shutil.copytree(folder, root / role / "adapter")
    return {role: root / role for role in adapters}


def test_dials_at_the_corners_are_the_base_and_each_expert(
    policy: Policy, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    """Controls come mixed and answers go back to their own; greedy texts are those of PEFT's merged experts."""
    context = method_context(policy, staged(adapters, tmp_path), midpo_gates.OPTIONS())
    assert midpo_gates.models(["helpfulness", "safety"])["safety"] == "spe_dpo+safety"
    corners = {(0.0, 0.0): answers(policy)}
    corners[0.0, 1.0] = answers(merged(adapters["safety"]))
    corners[1.0, 0.0] = answers(merged(adapters["helpfulness"]))
    assert corners[0.0, 1.0] != corners[0.0, 0.0] != corners[1.0, 0.0]
    wanted = [(place, levels) for place in range(len(QUESTIONS)) for levels in corners]
    requests = [
        ControlledRequest(QUESTIONS[place], {"safety": levels[1], "helpfulness": levels[0]})
        for place, levels in wanted
    ]
    seen = 0

    def count(finished: int) -> None:
        nonlocal seen
        seen += finished

    found = midpo_gates.build(context).respond(requests, GREEDY, seed=0, progress=count)
    assert [each.completion.text for each in found] == [corners[levels][place] for place, levels in wanted]
    assert seen == len(requests)
    assert all(each.generated_tokens == each.completion.tokens for each in found)


def test_a_gate_below_zero_and_above_one_is_reached_by_the_options(
    policy: Policy, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    """g = low + (high − low)·d: −1 + 3·½ = ½ of the helpfulness expert, −1 of the safety expert."""
    context = method_context(policy, staged(adapters, tmp_path), midpo_gates.OPTIONS(low=-1, high=2))
    requests = [ControlledRequest(each, {"safety": 0.0, "helpfulness": 0.5}) for each in QUESTIONS]
    found = [each.completion.text for each in midpo_gates.build(context).respond(requests, GREEDY, seed=0)]
    twin = load_policy("pocket:chat")
    with torch.no_grad():
        for role, gate in (("safety", -1.0), ("helpfulness", 0.5)):
            for name, expert in read_expert(adapters[role]).items():
                twin.model.get_submodule(name).weight += gate * expert.scale * expert.second @ expert.first
    assert found == answers(twin)


def trained_router(
    policy: Policy,
    adapters: Mapping[str, Path],
    folder: Path,
    *,
    steps: int = 6,
    rate: float = 1e-2,
    **own: float,
) -> dict[str, Any]:
    recipe = config(
        steps=steps, learning_rate=rate, objectives=json.dumps({"midpo_router": {"width": 8, **own}})
    )
    return fine_tune(
        policy, made(), objective="midpo_router", config=recipe, checkpoints=folder / "c",
        adapter=folder / "adapter", ordered_by="safety", experts=adapters,
    )  # fmt: skip


def test_a_trained_router_leaves_the_model_obeys_its_penalty_and_loads_as_it_was_saved(
    policy: Policy, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    figures = trained_router(policy, adapters, tmp_path, steps=40, penalty=20)
    size = 2 * 3 * (480 * 8 + 8 + 8 * 480 + 480 + 480 + 1)
    assert figures["trained_parameters"] == size and figures["lora"] is None
    first, last = figures["log"][0], figures["log"][-1]
    assert last["safety_gate"] < first["safety_gate"] and last["safety_gate"] < 0.2
    assert last["helpfulness_gate"] > first["helpfulness_gate"] and last["helpfulness_gate"] > 0.8
    saved = tmp_path / "adapter"
    assert {path.name for path in saved.iterdir()} == {"router.safetensors", "safety", "helpfulness"}
    found = load_routed(saved)
    with routed(policy.model, found.experts, found.routers):
        loaded = logits(policy)
    save_routed(tmp_path / "again", found.routers, adapters)
    assert (tmp_path / "again" / "router.safetensors").read_bytes() == (
        saved / "router.safetensors"
    ).read_bytes()
    gates = set_gates(found.experts)
    gates.by_role["helpfulness"].value = 1.0
    with routed(policy.model, found.experts, gates.by_layer):
        expert_alone = logits(policy)
    assert (loaded - expert_alone).abs().mean() < (loaded - logits(policy)).abs().mean()


def test_without_penalty_the_router_opens_the_gate_that_the_pairs_ask_for(
    policy: Policy, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    """The safety expert has learned these very pairs, the other one their opposite."""
    figures = trained_router(policy, adapters, tmp_path, steps=40, rate=1e-3, penalty=0, beta=0.05)
    last = figures["log"][-1]
    assert last["safety_gate"] > 0.6 and last["helpfulness_gate"] < 0.3  # both ½ before
    assert last["preferred"] == 1
    context = method_context(policy, {"router": tmp_path}, midpo.OPTIONS())
    assert midpo.models(["safety", "helpfulness"]) == {"router": "midpo_router"}
    requests = [ControlledRequest(each, {"safety": 0.5, "helpfulness": 0.5}) for each in QUESTIONS]
    found = [each.completion.text for each in midpo.build(context).respond(requests, GREEDY, seed=0)]
    assert found != answers(policy)
    with routed(policy.model, *load_routed(tmp_path / "adapter")):
        assert found == answers(policy)


def test_a_killed_training_of_a_router_ends_with_the_same_weights(
    policy: Policy, adapters: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_router(policy, adapters, tmp_path / "whole")
    real = midpo_router.loss
    calls = 0

    def killed(inputs: PairInputs, options: midpo_router.OPTIONS) -> plugins.Loss:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(inputs, options)

    monkeypatch.setattr(midpo_router, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_router(policy, adapters, tmp_path / "killed")
    trained_router(policy, adapters, tmp_path / "killed")
    assert calls == 8, "the second training went on from step 3"
    ours, theirs = (load_routed(tmp_path / name / "adapter").routers for name in ("whole", "killed"))
    for layer, gates in ours.items():
        for role, gate in gates.items():
            for name, value in gate.state_dict().items():
                torch.testing.assert_close(theirs[layer][role].state_dict()[name], value)


def test_recomputed_activations_give_routers_the_same_gradient(
    policy: Policy, adapters: Mapping[str, Path]
) -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        options = config(gradient_checkpointing=again).train
        with routable(policy, options, adapters, width=4) as model:
            policy.model.train()
            policy.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            found.append(
                {
                    name: each.grad.clone()
                    for name, each in policy.model.named_parameters()
                    if each.grad is not None
                }
            )
            assert all("gates" in name for name in found[-1]) and len(found[-1]) == 3 * 2 * 6
            assert model.gates(torch.ones_like(IDS))["safety"].shape == (180,)
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, msg=name)


def test_what_does_not_fit_is_told(policy: Policy, adapters: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="got no adapter, an expert is one"):
        read_experts({"safety": tmp_path / "adapter"})
    with pytest.raises(ModelError, match=r"got no router\.safetensors"):
        load_routed(tmp_path)
    experts = {role: dict(layers) for role, layers in random_experts(policy.model).items()}
    experts["safety"].popitem()
    with pytest.raises(ModelError, match="got adapters on different layers"):
        set_gates(experts)
    elsewhere = {"safety": {"model.layers.7.mlp.down_proj": next(iter(experts["helpfulness"].values()))}}
    with (
        pytest.raises(ModelError, match=r"got experts on model\.layers\.7\.mlp\.down_proj"),
        routed(policy.model, elsewhere, set_gates(elsewhere).by_layer),
    ):
        pass
    save_routed(tmp_path / "torn", {}, adapters)
    (tmp_path / "torn" / "router.safetensors").unlink()
    other = {
        name: dict(list(gates.items())[:1])
        for name, gates in new_routers(read_experts(adapters), width=2).items()
    }
    save_routed(tmp_path / "torn", other, adapters)
    with pytest.raises(ModelError, match="its router does not fit its experts"):
        load_routed(tmp_path / "torn")
    with pytest.raises(InputError, match="got accumulation 2 in 1 processes"):
        fine_tune(
            policy, made(), objective="midpo_router", config=config(accumulation=2), checkpoints=tmp_path / "c",
            ordered_by="safety", experts=adapters,
        )  # fmt: skip
    with pytest.raises(InputError, match="of which the objective wants none"):
        fine_tune(
            policy, made(safety=(0.9, 0.4)), objective="midpo_router", config=config(), checkpoints=tmp_path / "c",
            ordered_by="safety", experts=adapters,
        )  # fmt: skip
