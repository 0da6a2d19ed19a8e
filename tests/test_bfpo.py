"""BFPO: its four targets, a pair by hand, an independent slow twin, its laws, trained for real."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import plugins
from rheostat.errors import ConfigError
from rheostat.fine_tuning import fine_tune
from rheostat.logprobs import response_logprobs
from rheostat.models import load_policy
from rheostat.objective_trainer import ROW_TENSORS
from rheostat.objectives import bfpo
from rheostat.pair_batches import PairBatches
from rheostat.plugins import LogProbabilities, PairInputs
from rheostat.preflight import check
from rheostat.recipe import load_config
from rheostat.records import Message, Pair

LOG_PROBABILITY = st.floats(-6, 0)
UNIT = st.floats(0, 1)
Rows = list[list[float]]


def logprobs(rows: Rows) -> LogProbabilities:
    """Rows of token log-probabilities, padded with zeros."""
    longest = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return LogProbabilities(values, mask)


def inputs(quadruples: list[tuple[list[float], ...]], safety: list[tuple[float, float]]) -> PairInputs:
    """Pairs of (chosen, rejected, reference of chosen, reference of rejected) with their (chosen, rejected) safety."""
    chosen, rejected, reference_chosen, reference_rejected = (list(each) for each in zip(*quadruples, strict=True))
    count = len(quadruples)
    helpful = torch.ones(count, dtype=torch.float64)
    return PairInputs(
        logprobs(chosen),
        logprobs(rejected),
        logprobs(reference_chosen),
        logprobs(reference_rejected),
        {"helpfulness": helpful, "safety": torch.tensor([one for one, _ in safety], dtype=torch.float64)},
        {"helpfulness": 0 * helpful, "safety": torch.tensor([other for _, other in safety], dtype=torch.float64)},
        torch.zeros(count, dtype=torch.long),
    )


@pytest.mark.parametrize(("flags", "expected"), [((1, 0), 1.0), ((1, 1), 0.5), ((0, 0), -0.5), ((0, 1), -1.0)])
def test_the_authors_four_targets(flags: tuple[int, int], expected: float) -> None:
    """b1 = 3, b3 = 1/2, α = 1/2: 3/2·I(y_w) − 1/2·I(y_l) − 1/2."""
    one, other = (torch.tensor([flag == 1]) for flag in flags)
    assert bfpo.target(one, other, bfpo.OPTIONS()).tolist() == [expected]


def test_a_pair_by_hand() -> None:
    """Δ = ln 4; both safe, τ = ½: target 1, (ln 4 − 1)² = 0.1492; neither safe: (ln 4 + 1)² = 5.6944."""
    four = ([math.log(0.5)], [math.log(0.25)], [math.log(0.25)], [math.log(0.5)])
    options = bfpo.OPTIONS(tau=0.5)
    assert bfpo.loss(inputs([four], [(0.5, 0.9)]), options).total.item() == pytest.approx(0.1492, abs=1e-4)
    assert bfpo.loss(inputs([four], [(0.49, 0.1)]), options).total.item() == pytest.approx(5.6944, abs=1e-4)


def slow_loss(
    quadruples: list[tuple[list[float], ...]], safety: list[tuple[float, float]], b1: float, alpha: float, tau: float
) -> float:
    """The loss once more from the paper's ratio of probabilities, in scalars: no tensors, no mask, no shared code."""
    total = 0.0
    for (chosen, rejected, reference_chosen, reference_rejected), (own, others) in zip(quadruples, safety, strict=True):
        ratio = math.exp(math.fsum(chosen) + math.fsum(reference_rejected)) / math.exp(
            math.fsum(rejected) + math.fsum(reference_chosen)
        )
        b3 = 1 / (b1 - 1)
        wanted = -alpha
        if own >= 0.5:
            wanted += b1 * b3
        if others >= 0.5:
            wanted -= b3
        total += (math.log(ratio) - wanted / tau) ** 2
    return total / len(quadruples)


@st.composite
def pairs(draw: st.DrawFn) -> list[tuple[list[float], ...]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        rows = [draw(st.lists(LOG_PROBABILITY, min_size=n, max_size=n)) for n in (*lengths, *lengths)]
        found.append(tuple(rows))
    return found


@given(st.data(), pairs(), st.floats(1.1, 9), st.floats(-2, 2), st.floats(0.01, 5))
@settings(max_examples=60, deadline=None)
def test_it_agrees_with_the_slow_twin(
    data: st.DataObject, quadruples: list[tuple[list[float], ...]], b1: float, alpha: float, tau: float
) -> None:
    safety = data.draw(st.lists(st.tuples(UNIT, UNIT), min_size=len(quadruples), max_size=len(quadruples)))
    options = bfpo.OPTIONS(b1=b1, alpha=alpha, tau=tau)
    found = bfpo.loss(inputs(quadruples, safety), options).total.item()
    assert found == pytest.approx(slow_loss(quadruples, safety, b1, alpha, tau), rel=1e-6, abs=1e-6)


@given(st.floats(1.01, 50), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_a_safe_chosen_and_an_unsafe_rejected_response_raise_the_target(b1: float, alpha: float) -> None:
    """By b1·b3 and by b3: the order (1, 0) > (1, 1) > (0, 0) > (0, 1) holds for every b1 > 1, since b1·b3 − b3 = 1."""
    options = bfpo.OPTIONS(b1=b1, alpha=alpha)
    found = {
        flags: bfpo.target(torch.tensor([flags[0]]), torch.tensor([flags[1]]), options).item()
        for flags in product((True, False), repeat=2)
    }
    assert found[True, False] > found[True, True] > found[False, False] > found[False, True]
    assert found[True, True] - found[False, False] == pytest.approx(1, rel=1e-5, abs=1e-5)


def test_the_optimum_is_where_the_margin_is_the_target_over_tau() -> None:
    """Gradient descent on the log-probabilities themselves ends at Δ = t/τ = 1/0.25 = 4 and at −1/0.25 = −4."""
    values = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    zero = LogProbabilities(torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool))
    flags = {"safety": torch.tensor([0.9, 0.1])}, {"safety": torch.tensor([0.1, 0.9])}
    for _ in range(200):
        own = LogProbabilities(values, zero.mask)
        given_ = PairInputs(own, zero, zero, zero, *flags, torch.zeros(2, dtype=torch.long))
        total = bfpo.loss(given_, bfpo.OPTIONS(tau=0.25)).total
        (gradient,) = torch.autograd.grad(total, values)
        with torch.no_grad():
            values -= 0.3 * gradient
    assert values.detach().flatten().tolist() == pytest.approx([4, -4], abs=1e-6)


@pytest.mark.parametrize(
    "bad", [{"b1": 1}, {"b1": math.inf}, {"alpha": math.nan}, {"tau": 0}, {"tau": -1}, {"safe_from": 1.1}]
)
def test_options_that_are_none_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got .* allowed"):
        bfpo.OPTIONS(**bad)


def test_it_takes_the_more_helpful_response_for_the_chosen_one() -> None:
    needs = plugins.needs("bfpo")
    assert (needs.rows, needs.control, needs.ordered_by) == ("pairs", False, "helpfulness")


def test_a_run_without_its_attributes_is_told_which_it_lacks() -> None:
    config = load_config("pocket", ["methods=[bfpo]"])
    check(config)
    without = config.model_copy(update={"rewards": {"helpfulness": config.rewards["helpfulness"]}, "judges": {}})
    with pytest.raises(ConfigError, match="got the dials helpfulness, bfpo needs the rewards helpfulness, safety"):
        check(without.model_copy(update={"suite": None}))


def test_training_makes_the_safe_response_win_though_it_is_the_less_helpful(tmp_path: Path, one_thread: None) -> None:
    """Targets 1 and −1 at τ = ¼: after training the margins have the targets' signs, towards 4 and −4 nats."""
    helpful, other = "First, boil the water. Then add the eggs.", "It is better to ask a cook for help."
    pairs = [
        Pair(
            f"p{place}",
            (Message("user", f"How do I {goal}?"),),
            helpful,
            other,
            {"helpfulness": 0.9, "safety": safety},
            {"helpfulness": 0.1, "safety": 1 - safety},
        )
        for place, (goal, safety) in enumerate([("boil an egg", 0.9), ("cheat at a card game", 0.1)] * 3)
    ]
    settings_ = ["batch_size=6", "steps=40", "learning_rate=5.0e-4", "objectives={bfpo: {tau: 0.25}}"]
    config = load_config("pocket", [f"train.{each}" for each in settings_])
    tuned = load_policy("pocket:chat")
    fine_tune(tuned, pairs, objective="bfpo", config=config, checkpoints=tmp_path / "c")
    batches = PairBatches(load_policy("pocket:chat"), pairs[:2], config.control_format, config)
    batch = batches[0]
    with torch.no_grad():
        found = response_logprobs(tuned.model, **{name: batch[name] for name in ROW_TENSORS})
    seen = batches.inputs(found, batch, warmth=1.0)
    margins = (seen.chosen.sum() - seen.reference_chosen.sum()) - (seen.rejected.sum() - seen.reference_rejected.sum())
    by_safety = dict(zip((seen.chosen_scores["safety"] > 0.5).tolist(), margins.tolist(), strict=True))
    assert by_safety[True] == pytest.approx(4, abs=2) and by_safety[False] == pytest.approx(-4, abs=2)
