"""Every objective: hand numbers, laws, and that none gives NaN on an empty row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import plugins
from rheostat.objectives import clm, contrast, exmate
from rheostat.plugins import LogProbabilities, ObjectiveInputs, PairInputs


def rows(*probabilities: tuple[float, ...]) -> LogProbabilities:
    """Rows of token probabilities as padded log-probabilities."""
    longest = max(map(len, probabilities))
    values = torch.zeros(len(probabilities), longest)
    mask = torch.zeros(len(probabilities), longest, dtype=torch.bool)
    for index, row in enumerate(probabilities):
        values[index, : len(row)] = torch.tensor(row).log()
        mask[index, : len(row)] = True
    return LogProbabilities(values, mask)


def pair(factual: LogProbabilities, counterfactual: LogProbabilities) -> ObjectiveInputs:
    count = len(counterfactual.values)
    return ObjectiveInputs(factual, counterfactual, torch.arange(count), torch.tensor([[1.0, 0.0]] * count))


def test_clm_by_hand() -> None:
    """Tokens with probabilities 1/2 and 1/4: (ln 2 + ln 4) / 2 = 1.0397."""
    assert clm.loss(ObjectiveInputs(rows((0.5, 0.25))), clm.OPTIONS()).total.item() == pytest.approx(
        1.0397, abs=1e-4
    )


def test_exmate_by_hand() -> None:
    """ln 2 + 0.05 * exp(ln 1/4) = 0.6931 + 0.0125 = 0.7056."""
    loss = exmate.loss(pair(rows((0.5,)), rows((0.25,))), exmate.OPTIONS(weight=0.05))
    assert loss.total.item() == pytest.approx(0.7056, abs=1e-4)


def test_exmate_reductions_by_hand() -> None:
    """Counterfactual rows with probabilities 1/4 and 1/16, λ = 1.

    Per sequence: (0.25 + 0.0625) / 2 = 0.15625. Of the batch mean: exp((ln 1/4 + ln 1/16) / 2) = 1/8.
    """
    inputs = pair(rows((0.5,), (0.5,)), rows((0.25,), (0.0625,)))
    own = exmate.loss(inputs, exmate.OPTIONS(weight=1.0)).parts["penalty"].item()
    batch = exmate.loss(inputs, exmate.OPTIONS(weight=1.0, reduction="batch")).parts["penalty"].item()
    assert own == pytest.approx(0.15625)
    assert batch == pytest.approx(0.125)


def test_exmate_sum_and_weights_by_hand() -> None:
    """Two tokens of 1/2: the summed exponent is 1/4, the mean one 1/2; only the first attribute changed, λ = (2, 7)."""
    inputs = pair(rows((0.5, 0.5)), rows((0.5, 0.5)))
    options = exmate.OPTIONS(weights=(2.0, 7.0), log_probability="sum")
    assert exmate.loss(inputs, options).parts["penalty"].item() == pytest.approx(0.5)
    assert exmate.loss(inputs, exmate.OPTIONS(weights=(2.0, 7.0))).parts["penalty"].item() == pytest.approx(
        1.0
    )


def test_contrast_by_hand() -> None:
    """Δ = ln 2 over two tokens: ln 2 + ln 1.5 / 2 = 0.8959."""
    loss = contrast.loss(pair(rows((0.5, 0.5)), rows((0.25, 0.5))), contrast.OPTIONS(weight=1, margin=0))
    assert loss.total.item() == pytest.approx(math.log(2) + math.log(1.5) / 2, abs=1e-5)


probability = st.floats(0.01, 0.99)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=5))
def test_without_weight_every_counterfactual_objective_is_clm(pairs: list[tuple[float, float]]) -> None:
    inputs = pair(rows(*((own,) for own, _ in pairs)), rows(*((other,) for _, other in pairs)))
    expected = clm.loss(inputs, clm.OPTIONS()).total
    assert exmate.loss(inputs, exmate.OPTIONS(weight=0)).total == expected
    assert contrast.loss(inputs, contrast.OPTIONS(weight=0)).total == expected


@pytest.mark.parametrize(
    "name", [name for name in plugins.available("objectives") if plugins.needs(name).rows != "prompts"]
)
def test_a_fully_masked_row_gives_no_nan(name: str) -> None:
    module = plugins.load("objectives", name)
    values = torch.zeros(2, 3, requires_grad=True)
    masked = LogProbabilities(values, torch.zeros(2, 3, dtype=torch.bool))
    inputs: ObjectiveInputs | PairInputs = pair(masked, masked)
    if module.NEEDS.rows == "pairs":
        scores = {"helpfulness": torch.tensor([0.9, 0.4]), "safety": torch.tensor([0.6, 0.2])}
        nothing = torch.zeros(2, 3)
        shared = torch.zeros(2, dtype=torch.long)
        gates = {role: torch.full((2,), 0.5) for role in module.NEEDS.experts}
        inputs = PairInputs(masked, masked, masked, masked, scores, scores, shared, nothing, nothing, gates)
    loss = module.loss(inputs, module.OPTIONS())
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_the_contrast_gradient_vanishes_once_the_control_is_identified() -> None:
    """At Δ = 50 nats the derivative of softplus(−Δ) is below e⁻⁵⁰; ExMATE's only fades with exp(ℓ)."""
    values = torch.tensor([[-60.0]], requires_grad=True)
    counterfactual = LogProbabilities(values, torch.ones(1, 1, dtype=torch.bool))
    factual = LogProbabilities(torch.tensor([[-10.0]]), torch.ones(1, 1, dtype=torch.bool))
    contrast.loss(pair(factual, counterfactual), contrast.OPTIONS(weight=1.0, margin=0.0)).total.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert abs(values.grad.item()) < 1e-20


@pytest.mark.parametrize(
    "bad", [{"weight": -1}, {"weight": float("nan")}, {"reduction": "x"}, {"log_probability": "y"}]
)
def test_exmate_refuses_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got .* allowed"):
        exmate.OPTIONS(**bad)  # type: ignore[arg-type]
