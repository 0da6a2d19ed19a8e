"""Pairs of responses: which are made, what an objective sees of them, DPO by hand and by its laws, trained for real."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rheostat import cli, plugins, preflight
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import PairsConfig, RunConfig
from rheostat.control import ControlFormat
from rheostat.errors import ConfigError
from rheostat.fine_tuning import fine_tune
from rheostat.logprobs import response_logprobs
from rheostat.method_name import MethodName
from rheostat.models import Policy, load_policy
from rheostat.objective_trainer import ROW_TENSORS
from rheostat.objectives import dpo
from rheostat.pair_batches import PairBatches
from rheostat.pairing import Paired, pairs
from rheostat.plugins import LogProbabilities, PairInputs
from rheostat.recipe import load_config
from rheostat.records import Message, Pair, Prompt, ScoredResponse
from rheostat.scored_pool import usable_pool
from rheostat.trainings import behind, models_of, trainings

pytestmark = pytest.mark.usefixtures("one_thread")
FORMAT = ControlFormat((plugins.attribute("helpfulness"), plugins.attribute("safety")))
UNIT = st.floats(0, 1)


def paired(points: list[tuple[float, float]], by: str | None = None, **options: float) -> Paired:
    """The pairs of one prompt, whose responses are named by their numbers, at (helpfulness, safety)."""
    rows = [
        ScoredResponse("p", place, str(place), 2, "stop", {}, {"helpfulness": one, "safety": other})
        for place, (one, other) in enumerate(points)
    ]
    pool = usable_pool({"p": rows}, FORMAT, with_repeats=False, with_truncated=False)
    prompts = {"p": Prompt("p", (Message("user", "ask"),), "train", "test")}
    return pairs(pool, prompts, control_format=FORMAT, by=by, options=PairsConfig(**options), seed=0)


def test_pairs_by_hand() -> None:
    """Means .8, .5, .45: the pairs that differ by .1 are (0, 1) and (0, 2); by safety (.6, 1, .1) all three."""
    points = [(1.0, 0.6), (0.0, 1.0), (0.8, 0.1)]
    by_mean = [(pair.chosen, pair.rejected) for pair in paired(points, minimum_gap=0.1).pairs]
    assert by_mean == [("0", "1"), ("0", "2")]
    by_safety = paired(points, "safety", minimum_gap=0.1)
    assert [(pair.chosen, pair.rejected) for pair in by_safety.pairs] == [("0", "2"), ("1", "0"), ("1", "2")]
    assert by_safety.pairs[0].rejected_scores == {"helpfulness": 0.8, "safety": 0.1}
    assert paired(points, "safety", minimum_gap=0.95).counts.prompts_without_pairs == 1


@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=9), st.integers(1, 6), UNIT)
@settings(max_examples=40, deadline=None)
def test_a_chosen_response_is_better_by_the_gap_and_no_pair_comes_twice(
    points: list[tuple[float, float]], per_prompt: int, gap: float
) -> None:
    found = paired(points, per_prompt=per_prompt, minimum_gap=gap).pairs
    unequal = [
        (one, other)
        for one in points
        for other in points
        if sum(one) / 2 > sum(other) / 2 and sum(one) / 2 - sum(other) / 2 >= gap + 1e-9
    ]
    assert min(per_prompt, len(unequal)) <= len(found) <= per_prompt
    assert len({(pair.chosen, pair.rejected) for pair in found}) == len(found)
    for pair in found:
        means = [float(np.mean(list(each.values()))) for each in (pair.chosen_scores, pair.rejected_scores)]
        assert means[0] > means[1] and means[0] - means[1] >= gap - 1e-9


def logprobs(*rows: tuple[float, ...]) -> LogProbabilities:
    return LogProbabilities(torch.tensor(rows).log(), torch.ones(len(rows), len(rows[0]), dtype=torch.bool))


def inputs(
    chosen: LogProbabilities,
    rejected: LogProbabilities,
    reference_chosen: LogProbabilities,
    reference_rejected: LogProbabilities,
) -> PairInputs:
    nothing = {name: torch.zeros(len(chosen.values)) for name in FORMAT.names}
    shared = torch.zeros(len(chosen.values), dtype=torch.long)
    return PairInputs(chosen, rejected, reference_chosen, reference_rejected, nothing, nothing, shared)


def test_dpo_by_hand() -> None:
    """Chosen ½ against ¼, rejected ¼ against ½: Δ = ln 4, −log σ(ln 4) = ln 1.25; with β = ½ −log σ(ln 2) = ln 1.5."""
    four = inputs(logprobs((0.5,)), logprobs((0.25,)), logprobs((0.25,)), logprobs((0.5,)))
    assert dpo.loss(four, dpo.OPTIONS(beta=1.0)).total.item() == pytest.approx(math.log(1.25))
    assert dpo.loss(four, dpo.OPTIONS(beta=0.5)).total.item() == pytest.approx(math.log(1.5))


@given(st.floats(0.01, 5), st.lists(st.floats(0.05, 1), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_dpo_at_the_reference_is_ln_2_and_mirrored_pairs_differ_by_the_margin(
    beta: float, probabilities: list[float]
) -> None:
    one, other, third, fourth = (logprobs((each,)) for each in probabilities)
    options = dpo.OPTIONS(beta=beta)
    assert dpo.loss(inputs(one, other, one, other), options).total.item() == pytest.approx(math.log(2))
    there, back = (
        dpo.loss(inputs(one, other, third, fourth), options),
        dpo.loss(inputs(other, one, fourth, third), options),
    )
    margin = there.parts["margin"].item()
    assert (back.total - there.total).item() == pytest.approx(beta * margin, abs=1e-4)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_dpo_refuses_a_beta_that_is_none(beta: float) -> None:
    with pytest.raises(ValueError, match="allowed is a finite number above 0"):
        dpo.OPTIONS(beta=beta)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("pocket:chat")


def made(count: int = 6) -> list[Pair]:
    good, bad = {"helpfulness": 0.9, "safety": 0.8}, {"helpfulness": 0.1, "safety": 0.7}
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
    values = {"batch_size": 3, "steps": 4, "learning_rate": 1e-3, **train}
    return load_config("pocket", [f"train.{key}={value}" for key, value in values.items()])


def test_a_batch_of_pairs_is_what_its_rows_are_one_by_one(policy: Policy) -> None:
    """Slow twin: each response alone through the model. The reference is the model itself, so every margin is 0."""
    made_pairs = made()
    batches = PairBatches(policy, made_pairs, FORMAT, config())
    batch = batches[1]
    with torch.no_grad():
        found = response_logprobs(policy.model, **{name: batch[name] for name in ROW_TENSORS})
    seen = batches.inputs(found, batch, warmth=1.0)
    torch.testing.assert_close(seen.chosen.sum(), seen.reference_chosen.sum(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.rejected.sum(), seen.reference_rejected.sum(), atol=1e-4, rtol=1e-4)
    for place, index in enumerate(batches.plan[1]):
        pair = made_pairs[index]
        prompt = encode_prompt(policy.tokenizer, pair.messages)
        both = [
            encode_response(policy.tokenizer, text, end_id=policy.end_ids[0]) for text in (pair.chosen, pair.rejected)
        ]
        for ids, log in zip(both, (seen.chosen, seen.rejected), strict=True):
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            alone = sum(logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(ids))
            assert log.sum()[place].item() == pytest.approx(alone, abs=1e-3)
        common = next(at for at, (one, other) in enumerate(zip(*both, strict=False)) if one != other)
        assert seen.shared[place].item() == common > 0
    assert seen.chosen_scores["helpfulness"].tolist() == pytest.approx([0.9] * 3)
    assert seen.rejected_scores["safety"].tolist() == pytest.approx([0.7] * 3)


def test_token_rewards_are_the_log_ratio_of_the_rewarder_to_the_reference(policy: Policy) -> None:
    tuned = load_policy("pocket:chat")
    with torch.no_grad():
        tuned.model.get_output_embeddings().weight.mul_(1.1)
    batches = PairBatches(policy, made(), FORMAT, config(), rewarder=tuned)
    batch = batches[0]
    with torch.no_grad():
        rows = {name: batch[name] for name in ROW_TENSORS}
        ours, theirs = (response_logprobs(each.model, **rows) for each in (policy, tuned))
    seen = batches.inputs(ours, batch, warmth=1.0)
    assert seen.chosen_token_rewards is not None and seen.rejected_token_rewards is not None
    found = torch.cat([seen.chosen_token_rewards, seen.rejected_token_rewards])
    torch.testing.assert_close(found, theirs.values - ours.values, atol=1e-4, rtol=1e-4)
    assert found.abs().max() > 0.01


@pytest.mark.parametrize("accumulation", [1, 2])
def test_dpo_training_makes_the_chosen_likelier_than_the_rejected(tmp_path: Path, accumulation: int) -> None:
    fresh = load_policy("pocket:chat")
    chosen = config(steps=12, accumulation=accumulation, objectives="{dpo: {beta: 0.5}}")
    figures = fine_tune(fresh, made(), objective="dpo", config=chosen, checkpoints=tmp_path / "c")
    batches = PairBatches(load_policy("pocket:chat"), made(), FORMAT, chosen)
    batch = batches[0]
    with torch.no_grad():
        found = response_logprobs(fresh.model, **{name: batch[name] for name in ROW_TENSORS})
    loss = dpo.loss(batches.inputs(found, batch, warmth=1.0), dpo.OPTIONS(beta=0.5))
    assert loss.parts["preferred"].item() == 1
    assert loss.total.item() < 0.3  # ln 2 at the reference
    assert figures["examples"] == 6 and figures["steps"] == 12


def test_methods_name_their_trainings_in_the_order_of_need() -> None:
    recipe = load_config("pocket", ["methods=[base,dpo+safety,exmate+round2,clm,dpo,clm+from_exmate]"])
    assert [str(each) for each in trainings(recipe)][:1] == ["dpo-pairs+safety"]
    order = [str(each) for each in trainings(recipe)]
    assert order.index("exmate-moec") < len(order) - 1
    assert "clm-moec-from-exmate-moec" in order and len(set(order)) == len(order)
    assert [str(each) for each in behind(MethodName.parse("clm+from_exmate"), recipe)] == [
        "exmate-moec",
        "clm-moec-from-exmate-moec",
    ]
    assert MethodName.parse("dpo").has_dial is False and MethodName.parse("dpo+reranking").has_dial is True


@pytest.mark.parametrize(
    ("name", "said"),
    [("dpo+raw", "dpo learns from pairs"), ("clm+safety", "clm learns from examples"),
     ("clm+fdc", "learns from examples"), ("dpo+from_dpoo", "allowed suffixes"),
     ("base+raw", "allowed suffixes of base are none"), ("dpo+safety+helpfulness", "each once")],
)  # fmt: skip
def test_a_suffix_that_says_nothing_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MethodName.parse(name)


def test_overrides_are_an_objectives_own_and_refused_whole_where_they_are_wrong() -> None:
    given = "{steps: 7, learning_rate: 1e-4, counterfactual: {fraction: 1}}"
    recipe = load_config("pocket", [f"train.overrides={{dpo: {given}}}"])
    own = recipe.train.of("dpo")
    assert (own.steps, own.learning_rate, own.counterfactual.fraction) == (7, 1e-4, 1)
    assert own.counterfactual.warmup_ratio == recipe.train.counterfactual.warmup_ratio
    assert recipe.train.of("clm").steps == recipe.train.steps
    with pytest.raises(ConfigError) as caught:
        load_config("pocket", ["train.overrides={dpo: {stepps: 7}, clm: {variant: raw}}"])
    assert "overrides.dpo.stepps: unknown key (did you mean 'steps'?)" in str(caught.value)
    assert "overrides.clm.variant: unknown key" in str(caught.value)
    with pytest.raises(ConfigError, match=r"overrides\.dpo\.steps: got -1"):
        load_config("pocket", ["train.overrides={dpo: {steps: -1}}"])
    with pytest.raises(ConfigError, match="nosuch"):
        load_config("pocket", ["method_options={nosuch: {}}"])
    with pytest.raises(ConfigError, match=r"method_options\.base\.x: unknown key"):
        load_config("pocket", ["method_options={base: {x: 1}}"])


def test_a_run_of_preferences_through_the_command_line(tmp_path: Path) -> None:
    small = (
        "prompts.train_limit=6", "prompts.evaluation_limit=2", "prompts.calibration_limit=0", "generate.samples=6",
        "generate.max_tokens=24", "evaluate.max_tokens=12", "evaluate.reachable_samples=2", "evaluate.bootstrap=100",
        "evaluate.forged_prompts=0", "levels=[0,1]", "train.steps=3", "train.batch_size=4", "distil.minimum_contrast=0",
        "distil.keep_truncated=true", "distil.pairs.minimum_gap=0.01", "judges={}", "suite=null",
        "methods=[base,dpo,clm+from_dpo,dpo+safety+reranking]",
        "prompts.generalization=null", "evaluate.rerank_samples=2", "train.overrides={dpo: {steps: 2}}",
    )  # fmt: skip
    out = tmp_path / "run"
    result = CliRunner().invoke(cli.app, ["run", "pocket", "--out", str(out), *(f"--set={each}" for each in small)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (out / "train").iterdir()} == {
        "dpo-pairs", "dpo-pairs+safety", "clm-moec-from-dpo-pairs",
    }  # fmt: skip
    assert json.loads((out / "train" / "dpo-pairs" / "done.json").read_text())["summary"]["steps"] == 2
    methods = json.loads((out / "evaluation.json").read_text())["evaluations"]["optimization"]
    assert {name: entry["has_dial"] for name, entry in methods.items()} == {
        "base": False, "dpo": False, "clm+from_dpo": True, "dpo+safety+reranking": True,
    }  # fmt: skip
    assert methods["clm+from_dpo"]["cost"]["training_seconds"] > methods["dpo"]["cost"]["training_seconds"] > 0


def test_token_rewards_come_from_a_model_of_the_same_pairs_and_start() -> None:
    recipe = load_config("pocket", ["methods=[adpo+safety+x0.5+from_clm]"])
    assert [str(each) for each in trainings(recipe)] == [
        "clm-moec",
        "dpo-pairs+safety+x0.5-from-clm-moec",
        "adpo-pairs+safety+x0.5-from-clm-moec",
    ]


def test_roles_come_in_the_order_of_the_control_text_whatever_the_recipes() -> None:
    recipe = load_config("pocket", ["methods=[base]"])
    turned = recipe.model_copy(update={"rewards": dict(reversed(recipe.rewards.items()))})
    assert list(models_of(MethodName.parse("soups"), turned)) == ["helpfulness", "safety"]


@pytest.mark.parametrize("method", ["safepatching", "safepatching_dials"])
def test_a_patch_against_harm_needs_a_reward_of_safety(method: str) -> None:
    one_dial = "rewards={helpfulness: pocket:reward-helpfulness}"
    recipe = load_config("pocket", [f"methods=[base, {method}]", one_dial, "judges={}", "suite=null"])
    with pytest.raises(ConfigError, match="needs the rewards safety"):
        preflight.check(recipe)
