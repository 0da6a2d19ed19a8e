"""ADPO: a pair by hand, an independent slow twin, that it is DPO where all tokens count, and where its gradient is."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rheostat import cli, plugins
from rheostat.objectives import adpo, dpo
from rheostat.plugins import LogProbabilities, PairInputs
from rheostat.recipe import load_config
from rheostat.trainings import trainings

LOG_PROBABILITY = st.floats(-6, 0)
REWARD = st.floats(-3, 3)
Rows = list[list[float]]


def padded(rows: Rows) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)


def logprobs(rows: Rows) -> LogProbabilities:
    mask = padded([[1.0] * len(row) for row in rows]).bool()
    return LogProbabilities(padded(rows), mask)


Pair = tuple[list[float], ...]
"""Log-probabilities of the chosen and the rejected, of their references, and the tokens' rewards of both."""


def inputs(found: list[Pair]) -> PairInputs:
    columns = [list(each) for each in zip(*found, strict=True)]
    chosen, rejected, reference_chosen, reference_rejected, good, bad = columns
    scores = {name: torch.full((len(found),), 0.5) for name in ("helpfulness", "safety")}
    return PairInputs(
        logprobs(chosen),
        logprobs(rejected),
        logprobs(reference_chosen),
        logprobs(reference_rejected),
        scores,
        scores,
        torch.zeros(len(found), dtype=torch.long),
        padded(good),
        padded(bad),
    )


def test_a_pair_by_hand() -> None:
    """Log-ratios (ln 2, −ln 8) and (ln 8, −ln 2), rewards (1, −1): ln 2 + ln 2 = ln 4; β = 1: ln 1.25, ½: ln 1.5.

    With the ends kept −ln 8 counts too: −ln 2, and −log σ(−ln 2) = ln 3; DPO has −ln 16.
    """
    two, eight = math.log(2), math.log(8)
    one: Pair = ([-eight + two, -eight], [-eight + eight, -eight - two], [-eight, 0.0], [-eight] * 2, [1, -1], [1, -1])
    papers = adpo.OPTIONS(beta=1, keep_end=False)
    assert adpo.loss(inputs([one]), papers).total.item() == pytest.approx(math.log(1.25))
    with_end = adpo.loss(inputs([one]), adpo.OPTIONS(beta=1))
    assert with_end.total.item() == pytest.approx(math.log(3)) and with_end.parts["kept_chosen"].item() == 1
    found = adpo.loss(inputs([one]), adpo.OPTIONS(beta=0.5, keep_end=False))
    assert found.total.item() == pytest.approx(math.log(1.5))
    assert found.parts["kept_chosen"].item() == found.parts["kept_rejected"].item() == 0.5
    assert dpo.loss(inputs([one]), dpo.OPTIONS(beta=1)).parts["margin"].item() == pytest.approx(-math.log(16))


def test_the_baseline_by_hand() -> None:
    """Rewards (2, ½) of the chosen, (−1, ½) of the rejected: b = 1 keeps the first and both, b = ½ each first one."""
    one: Pair = ([0.0, 0.0], [-1.0, -2.0], [-1.0, -3.0], [-4.0, -8.0], [2, 0.5], [-1, 0.5])
    at_one = adpo.loss(inputs([one]), adpo.OPTIONS(baseline=1.0, keep_end=False)).parts["margin"].item()
    assert at_one == pytest.approx(1 - (3 + 6))
    at_half = adpo.loss(inputs([one]), adpo.OPTIONS(baseline=0.5, keep_end=False)).parts["margin"].item()
    assert at_half == pytest.approx(1 - 3)


def slow_loss(found: list[Pair], beta: float, baseline: float, keep_end: bool) -> float:
    """The loss once more, a token at a time, in scalars."""
    losses = []
    for chosen, rejected, reference_chosen, reference_rejected, rewards_chosen, rewards_rejected in found:
        margin = 0.0
        for place, reward in enumerate(rewards_chosen):
            if reward > baseline or (keep_end and place == len(rewards_chosen) - 1):
                margin += chosen[place] - reference_chosen[place]
        for place, reward in enumerate(rewards_rejected):
            if reward < baseline or (keep_end and place == len(rewards_rejected) - 1):
                margin -= rejected[place] - reference_rejected[place]
        losses.append(math.log1p(math.exp(-beta * margin)))
    return math.fsum(losses) / len(losses)


@st.composite
def pairs(draw: st.DrawFn) -> list[Pair]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        one, other = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        rows = [draw(st.lists(LOG_PROBABILITY, min_size=n, max_size=n)) for n in (one, other, one, other)]
        rows += [draw(st.lists(REWARD, min_size=n, max_size=n)) for n in (one, other)]
        found.append(tuple(rows))
    return found


@given(pairs(), st.floats(0.05, 3), st.floats(-2, 2), st.booleans())
@settings(max_examples=80, deadline=None)
def test_it_agrees_with_the_slow_twin(found: list[Pair], beta: float, baseline: float, keep_end: bool) -> None:
    ours = adpo.loss(inputs(found), adpo.OPTIONS(beta=beta, baseline=baseline, keep_end=keep_end)).total.item()
    assert ours == pytest.approx(slow_loss(found, beta, baseline, keep_end), rel=1e-6)


@given(pairs(), st.floats(0.05, 3))
@settings(max_examples=40, deadline=None)
def test_where_every_token_counts_it_is_dpo(found: list[Pair], beta: float) -> None:
    """Rewards above b throughout the chosen response and below it throughout the rejected one mask nothing."""
    kept = [(*each[:4], [1.0] * len(each[0]), [-1.0] * len(each[1])) for each in found]
    ours = adpo.loss(inputs(kept), adpo.OPTIONS(beta=beta)).total.item()
    assert ours == pytest.approx(dpo.loss(inputs(kept), dpo.OPTIONS(beta=beta)).total.item(), rel=1e-9)


@given(pairs())
@settings(max_examples=20, deadline=None)
def test_where_no_token_counts_the_loss_is_ln_2_and_nothing_is_learned(found: list[Pair]) -> None:
    none = [(*each[:4], [-1.0] * len(each[0]), [1.0] * len(each[1])) for each in found]
    batch = inputs(none)
    batch.chosen.values.requires_grad_()
    total = adpo.loss(batch, adpo.OPTIONS(keep_end=False)).total
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(math.log(2))
    assert batch.chosen.values.grad is not None and not batch.chosen.values.grad.any()


def test_the_gradient_is_on_good_tokens_of_the_chosen_and_bad_ones_of_the_rejected() -> None:
    """At the reference σ(0) = ½: each token that counts gets β/2, up in the chosen, down in the rejected response."""
    one: Pair = ([-1.0] * 3, [-1.0] * 2, [-1.0] * 3, [-1.0] * 2, [0.5, 0.0, -0.5], [0.5, -0.5])
    batch = inputs([one])
    for each in (batch.chosen, batch.rejected):
        each.values.requires_grad_()
    adpo.loss(batch, adpo.OPTIONS(beta=0.1, keep_end=False)).total.backward()  # type: ignore[no-untyped-call]
    assert batch.chosen.values.grad is not None and batch.rejected.values.grad is not None
    assert batch.chosen.values.grad.tolist() == [pytest.approx([-0.05, 0, 0])]
    assert batch.rejected.values.grad.tolist() == [pytest.approx([0, 0.05])]


@pytest.mark.parametrize("bad", [{"beta": 0}, {"beta": math.inf}, {"baseline": math.nan}, {"baseline": -math.inf}])
def test_options_that_are_none_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got .* allowed"):
        adpo.OPTIONS(**bad)  # type: ignore[arg-type]


def test_the_run_trains_dpo_first_for_its_token_rewards() -> None:
    assert plugins.needs("adpo").token_rewards_of == "dpo"
    assert [str(each) for each in trainings(load_config("pocket", ["methods=[adpo]"]))] == ["dpo-pairs", "adpo-pairs"]


def test_a_run_through_the_command_line(tmp_path: Path, one_thread: None) -> None:
    """ADPO after the DPO that rewards its tokens, some of which count and some do not; BFPO; CLM on the whole pool."""
    small = (
        "prompts.train_limit=6", "prompts.evaluation_limit=2", "prompts.calibration_limit=0", "generate.samples=6",
        "generate.max_tokens=24", "evaluate.max_tokens=12", "evaluate.reachable_samples=2", "evaluate.bootstrap=100",
        "evaluate.forged_prompts=0", "levels=[0,1]", "train.steps=10", "train.batch_size=4", "judges={}", "suite=null",
        "distil.keep_truncated=true", "distil.pairs.minimum_gap=0.01", "distil.raw_decimals=1",
        "methods=[base,adpo,bfpo,clm+pool]", "prompts.generalization=null",
    )  # fmt: skip
    out = tmp_path / "run"
    result = CliRunner().invoke(cli.app, ["run", "pocket", "--out", str(out), *(f"--set={each}" for each in small)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (out / "train").iterdir()} == {
        "dpo-pairs", "adpo-pairs", "bfpo-pairs+helpfulness", "clm-pool",
    }  # fmt: skip
    last = json.loads((out / "train" / "adpo-pairs" / "done.json").read_text())["summary"]["log"][-1]
    assert 0 < last["kept_chosen"] < 1 and 0 < last["kept_rejected"] < 1
    distilled = json.loads((out / "distil" / "clm-pool".removeprefix("clm-") / "done.json").read_text())["summary"]
    assert distilled["examples"] == distilled["pool"] - distilled.get("empty_dropped", 0) == 36
    methods = json.loads((out / "evaluation.json").read_text())["evaluations"]["optimization"]
    assert {name: entry["has_dial"] for name, entry in methods.items()} == {
        "base": False, "adpo": False, "bfpo": False, "clm+pool": True,
    }  # fmt: skip
