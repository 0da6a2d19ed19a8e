"""MidPO: its experts' loss and its router's, by hand and by their laws, and a whole run."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rheostat import cli, preflight
from rheostat.config import LoraConfig
from rheostat.errors import ConfigError
from rheostat.methods import midpo_gates
from rheostat.objectives import dpo, midpo_router, spe_dpo
from rheostat.plugins import (
    LogProbabilities,
    PairInputs,
)
from rheostat.recipe import load_config
from rheostat.train import _plain

pytestmark = pytest.mark.usefixtures("one_thread")
PROBABILITY = st.floats(0.05, 0.95)
SCORE = st.floats(0, 1)


def logprobs(*rows: tuple[float, ...]) -> LogProbabilities:
    return LogProbabilities(torch.tensor(rows).log(), torch.ones(len(rows), len(rows[0]), dtype=torch.bool))


def pair_inputs(
    chosen: tuple[float, ...],
    rejected: tuple[float, ...],
    reference_chosen: tuple[float, ...],
    reference_rejected: tuple[float, ...],
    *,
    shared: int = 0,
    scores: tuple[float, float] = (0.9, 0.4),
    by: str | None = "safety",
) -> PairInputs:
    """One pair, by its tokens' probabilities; `scores` of the chosen and the rejected response, safety's alone."""
    return PairInputs(
        logprobs(chosen),
        logprobs(rejected),
        logprobs(reference_chosen),
        logprobs(reference_rejected),
        {"helpfulness": torch.tensor([0.5]), "safety": torch.tensor([scores[0]])},
        {"helpfulness": torch.tensor([0.5]), "safety": torch.tensor([scores[1]])},
        shared=torch.tensor([shared]),
        ordered_by=by,
    )


BY_HAND = ((0.5, 0.5), (0.5, 0.25), (0.5, 0.25), (0.5, 0.5))


def test_spe_dpo_by_hand() -> None:
    """Δ = ln 4 from the second token; the gap of .5 asks for a margin of .5 · scale; exchanged scores for none.

    −log σ(ln 4 − .5) = ln(1 + e^.5 / 4) = 0.3451; scale 2: ln(1 + e / 4) = 0.5185; no margin: ln 1.25.
    """
    right = pair_inputs(*BY_HAND, shared=1)
    options = spe_dpo.OPTIONS(beta=1.0, scale=1.0)
    assert spe_dpo.loss(right, options).total.item() == pytest.approx(math.log(1 + math.exp(0.5) / 4))
    assert spe_dpo.loss(right, options).total.item() == pytest.approx(0.3451, abs=1e-4)
    double = spe_dpo.loss(right, spe_dpo.OPTIONS(beta=1.0, scale=2.0)).total.item()
    assert double == pytest.approx(math.log(1 + math.e / 4))
    mislabelled = pair_inputs(*BY_HAND, shared=1, scores=(0.4, 0.9))
    assert spe_dpo.loss(mislabelled, options).total.item() == pytest.approx(math.log(1.25))
    by_mean = pair_inputs(*BY_HAND, shared=1, by=None)  # helpfulness is equal, so half the gap
    assert spe_dpo.loss(by_mean, options).total.item() == pytest.approx(math.log(1 + math.exp(0.25) / 4))
    by_helpfulness = pair_inputs(*BY_HAND, shared=1, by="helpfulness")
    assert spe_dpo.loss(by_helpfulness, options).total.item() == pytest.approx(math.log(1.25))


def test_the_papers_two_losses_are_this_one() -> None:
    """A cost C = −S·scale in −log σ(βΔ + min(0, C_w − C_l)), a reward R = S·scale in −log σ(βΔ − max(0, R_w − R_l))."""
    scale, beta, delta = 3.0, 0.5, math.log(4)
    for scores in ((0.9, 0.4), (0.4, 0.9), (0.7, 0.7)):
        ours = spe_dpo.loss(
            pair_inputs(*BY_HAND, shared=1, scores=scores), spe_dpo.OPTIONS(beta=beta, scale=scale)
        ).total.item()
        chosen, rejected = scores
        cost = min(0.0, -chosen * scale + rejected * scale)
        reward = -max(0.0, chosen * scale - rejected * scale)
        for margin in (cost, reward):
            assert ours == pytest.approx(math.log(1 + math.exp(-(beta * delta + margin))), rel=1e-5)


@given(st.lists(PROBABILITY, min_size=8, max_size=8), SCORE, SCORE, st.floats(0.01, 3), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_mislabelled_pair_is_dpos_and_a_gap_only_asks_for_more(
    probabilities: list[float], one: float, other: float, beta: float, scale: float
) -> None:
    low, high = sorted((one, other))
    rows = [(probabilities[place], probabilities[place + 1]) for place in (0, 2, 4, 6)]
    options, plain = spe_dpo.OPTIONS(beta=beta, scale=scale), dpo.OPTIONS(beta=beta)
    mislabelled = pair_inputs(*rows, scores=(low, high))
    expected = dpo.loss(mislabelled, plain).total.item()
    assert spe_dpo.loss(mislabelled, options).total.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    right = pair_inputs(*rows, scores=(high, low))
    asked = spe_dpo.loss(right, options)
    assert asked.parts["wanted"].item() == pytest.approx(scale * (high - low), abs=1e-5)
    assert asked.total.item() >= expected - 1e-5


@given(st.lists(PROBABILITY, min_size=4, max_size=4), st.lists(PROBABILITY, min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_shared_tokens_do_not_count_and_cancel_where_they_are_as_likely(
    shared: list[float], own: list[float]
) -> None:
    options = spe_dpo.OPTIONS()
    alone = spe_dpo.loss(pair_inputs(*((each,) for each in own)), options).total.item()
    unlike = pair_inputs(*((first, each) for first, each in zip(shared, own, strict=True)), shared=1)
    assert spe_dpo.loss(unlike, options).total.item() == pytest.approx(alone, rel=1e-4, abs=1e-6)
    here, there = shared[:2]  # of a causal model: as likely in both, by the model and by the reference
    equal = [(here, own[0]), (here, own[1]), (there, own[2]), (there, own[3])]
    margin = dpo.loss(pair_inputs(*equal), dpo.OPTIONS()).parts["margin"].item()
    from_there = spe_dpo.loss(pair_inputs(*equal, shared=1), options).parts["margin"].item()
    assert margin == pytest.approx(from_there, abs=1e-5)


def test_the_tokens_of_a_prompt_are_not_counted_as_shared() -> None:
    """A row of log-probabilities begins at its prompt, whose tokens the mask leaves out."""
    values = torch.tensor([[9.0, 9.0, 0.5, 0.25, 0.125, 9.0]]).log()
    mask = torch.tensor([[0, 0, 1, 1, 1, 0]]).bool()
    found = spe_dpo.summed_from(LogProbabilities(values, mask), torch.tensor([1]))
    assert found.item() == pytest.approx(math.log(0.25 * 0.125))


def test_the_routers_loss_by_hand() -> None:
    """Δ = ln 4, β = 1: ln 1.25 + λ·(mean(.25, .75) + mean(0, .5)) = 0.2231 + λ · .75."""
    gates = {"safety": torch.tensor([0.25, 0.75]), "helpfulness": torch.tensor([1.0, 0.5])}
    inputs = replace(pair_inputs(*BY_HAND), gates=gates)
    found = midpo_router.loss(inputs, midpo_router.OPTIONS(beta=1.0))
    assert found.total.item() == pytest.approx(0.9731, abs=1e-4)
    half = midpo_router.loss(inputs, midpo_router.OPTIONS(beta=1.0, penalty=0.5)).total.item()
    assert half == pytest.approx(math.log(1.25) + 0.375)
    assert found.parts["safety_gate"].item() == 0.5 and found.parts["helpfulness_gate"].item() == 0.75


@given(SCORE, SCORE, SCORE)
def test_the_router_learns_from_pairs_of_two_safe_responses(one: float, other: float, third: float) -> None:
    keeps = midpo_router.NEEDS.keeps
    assert keeps is not None
    kept = keeps({"safety": one, "helpfulness": third}, {"safety": other, "helpfulness": 0.0})
    assert kept == (one >= 0.5 and other >= 0.5)


@pytest.mark.parametrize(
    ("module", "bad"),
    [(spe_dpo, {"beta": 0.0}), (spe_dpo, {"scale": -1.0}), (spe_dpo, {"scale": math.inf}),
     (midpo_router, {"beta": math.nan}), (midpo_router, {"penalty": -0.1}), (midpo_router, {"width": 0}),
     (midpo_gates, {"low": 1.0}), (midpo_gates, {"high": math.inf})],
)  # fmt: skip
def test_bad_options_are_refused(module: Any, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got .* allowed"):
        module.OPTIONS(**bad)


def test_a_training_of_routers_is_no_method_and_older_adapters_keep_their_fingerprint() -> None:
    with pytest.raises(ConfigError, match="got 'midpo_router', which trains routers .* allowed are midpo") as caught:
        preflight.check(load_config("pocket", ["methods=[base,midpo_router]"]))
    assert "paths" not in caught.value.hint
    older = load_config("pocket", ["train.lora.rank=4"]).train
    assert _plain(older)["lora"] == {"rank": 4, "alpha": 32.0, "dropout": 0.0}
    elsewhere = load_config("pocket", ["train.lora.layers=mlp_output"]).train
    assert _plain(elsewhere)["lora"]["layers"] == "mlp_output"
    assert LoraConfig().layers == "all"


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("midpo", "train.lora=null", "train.lora: got null for spe_dpo, whose adapter is an expert of midpo_router"),
        ("midpo_gates", "train.overrides={spe_dpo: {lora: null}}",
         "train.overrides.spe_dpo.lora: got null for spe_dpo, whose adapter is an expert of midpo_gates"),
        ("midpo", "train.accumulation=2", "train.accumulation: got 2 for midpo_router, allowed is 1"),
    ],
)  # fmt: skip
def test_what_its_trainings_would_refuse_is_told_beforehand(method: str, given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight.check(load_config("pocket", [f"methods=[base,{method}]", given]))
    (problem,) = caught.value.problems
    assert problem.startswith(said) and "paths" not in caught.value.hint
    preflight.check(load_config("pocket", [f"methods=[base,{method}]"]))
    preflight.check(load_config("pocket", ["methods=[base,spe_dpo]", given]))


def test_a_run_of_midpo_through_the_command_line(tmp_path: Path) -> None:
    small = (
        "prompts.train_limit=8", "prompts.evaluation_limit=2", "prompts.calibration_limit=0", "generate.samples=8",
        "generate.max_tokens=24", "evaluate.max_tokens=12", "evaluate.reachable_samples=2", "evaluate.bootstrap=100",
        "evaluate.forged_prompts=0", "levels=[0,1]", "train.steps=3", "train.batch_size=4", "distil.minimum_contrast=0",
        "distil.keep_truncated=true", "distil.pairs.minimum_gap=0.01", "judges={}", "suite=null",
        "methods=[base,midpo,midpo_gates]", "prompts.generalization=null",
        "method_options={midpo_gates: {high: 1.5}}",
    )  # fmt: skip
    out = tmp_path / "run"
    result = CliRunner().invoke(
        cli.app, ["run", "pocket", "--out", str(out), *(f"--set={each}" for each in small)]
    )
    assert result.exit_code == 0, result.output
    trained = {
        path.name: {each.name for each in path.iterdir() if each.is_dir()}
        for path in (out / "train").iterdir()
    }
    assert trained == {
        "spe_dpo-pairs+safety": {"adapter", "model"},
        "spe_dpo-pairs+helpfulness": {"adapter", "model"},
        "midpo_router-pairs+safety": {"adapter"},
    }
    methods = json.loads((out / "evaluation.json").read_text())["evaluations"]["optimization"]
    assert {name: entry["has_dial"] for name, entry in methods.items()} == {
        "base": False, "midpo": False, "midpo_gates": True,
    }  # fmt: skip
    assert (
        methods["midpo"]["cost"]["training_seconds"] > methods["midpo_gates"]["cost"]["training_seconds"] > 0
    )
