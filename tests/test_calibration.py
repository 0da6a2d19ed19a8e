"""Calibration: hand-worked mid-ranks, laws, and a twin that counts by loops."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rheostat.calibration import Calibrator, Kind, Pile, fit
from rheostat.errors import RewardError

RAW = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)
POOLS = st.lists(st.one_of(RAW, st.sampled_from([0.0, -1.5, 2.0])), min_size=1, max_size=40)
LIGHT = settings(max_examples=40, deadline=None)
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def mid_rank(value: float, pool: Sequence[float]) -> float:
    """The slow twin: count what lies below and half of what ties."""
    return sum(1.0 if other < value else 0.5 if other == value else 0.0 for other in pool) / len(pool)


def test_quantile_by_hand() -> None:
    """Pool 1, 2, 2, 4 (n = 4).

    1: nothing below, itself ½ → 0.5/4 = 0.125. 2: one below, two tied → (1 + 1)/4 = 0.5. 4: three below →
    3.5/4 = 0.875. Between 2 and 4, at 3, half-way: 0.6875. Outside: clamped to 0.125 and 0.875. Biggest pile:
    2, half of the pool.
    """
    calibrator = fit("quantile", [2, 4, 1, 2])
    assert calibrator.apply([1, 2, 4, 3, -9, 9]).tolist() == [0.125, 0.5, 0.875, 0.6875, 0.125, 0.875]
    assert calibrator.largest_pile == Pile(2.0, 0.5)
    assert (calibrator.sample_size, calibrator.low, calibrator.high) == (4, 1.0, 4.0)


def test_lower_is_better_by_hand() -> None:
    """The same pool, sign turned: 4 is now least (0.125), 1 most (0.875); range and pile keep their sign."""
    calibrator = fit("quantile", [2, 4, 1, 2], higher_is_better=False)
    assert calibrator.apply([1, 2, 4, 3]).tolist() == [0.875, 0.5, 0.125, 0.3125]
    assert calibrator.largest_pile == Pile(2.0, 0.5)
    assert (calibrator.low, calibrator.high) == (1.0, 4.0)


def test_pile_at_the_safe_end_leaves_levels_unreachable() -> None:
    """Ten scores, eight of them tied at the top (9), the others 1 and 2.

    Mid-ranks: 0.05, 0.15 and (2 + 4)/10 = 0.6. Nearest levels: 0, 0.25, 0.5. So 0.75 and 1 are out of reach.
    """
    calibrator = fit("quantile", [1, 2] + [9] * 8)
    assert calibrator.apply([1, 2, 9]) == pytest.approx([0.05, 0.15, 0.6], abs=1e-15)
    assert calibrator.largest_pile == Pile(9.0, 0.8)
    assert calibrator.unreachable_levels(GRID) == (0.75, 1.0)


def test_sigmoid_by_hand() -> None:
    """σ(0) = ½, σ(ln 3) = 3/4, −ln 3 gives the rest; nothing overflows; of {0, 9} one is at ½, one near 1."""
    calibrator = fit("sigmoid", [0.0, 9.0])
    assert calibrator.apply([0, math.log(3), -math.log(3)]) == pytest.approx([0.5, 0.75, 0.25], abs=1e-15)
    assert calibrator.apply([-1e5, 1e5]).tolist() == [0.0, 1.0]
    assert calibrator.unreachable_levels(GRID) == (0.0, 0.25, 0.75)
    turned = fit("sigmoid", [0.0, 9.0], higher_is_better=False)
    assert turned.apply([math.log(3)]) == pytest.approx([0.25], abs=1e-15)


def test_identity_clips_rounding_and_refuses_more() -> None:
    calibrator = fit("identity", [0.0, 0.5, 1 + 5e-7])
    assert calibrator.apply([-5e-7, 0.3, 1.0]).tolist() == [0.0, 0.3, 1.0]
    assert fit("identity", [0.0, 1.0], higher_is_better=False).apply([0.25, 1 + 5e-7]).tolist() == [0.75, 0.0]
    with pytest.raises(RewardError, match=r"got 2 outside \[0, 1\] among 3 raw scores.*\n*hint: .*quantile"):
        calibrator.apply([0.5, 1.1, -3])


@pytest.mark.parametrize("kind", ["quantile", "sigmoid", "identity"])
def test_scores_that_are_not_finite_are_counted(kind: Kind) -> None:
    with pytest.raises(RewardError, match="got 2 NaN or infinite among 4 raw scores"):
        fit(kind, [0.5, math.nan, math.inf, 1.0])
    with pytest.raises(RewardError, match="got 1 NaN or infinite among 1 raw scores"):
        fit(kind, [0.5]).apply(-math.inf)
    with pytest.raises(RewardError, match="got no raw score"):
        fit(kind, [])


def test_one_value_calibrates_to_the_middle() -> None:
    calibrator = fit("quantile", [7.0] * 3)
    assert calibrator.apply([[6, 7], [8, 7]]).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert calibrator.unreachable_levels(GRID) == (0.0, 0.25, 0.75, 1.0)


@LIGHT
@given(POOLS)
def test_quantile_equals_counting(pool: list[float]) -> None:
    found = fit("quantile", pool).apply(pool)
    assert found == pytest.approx([mid_rank(value, pool) for value in pool], abs=1e-12)


@LIGHT
@given(POOLS, st.lists(RAW, min_size=2, max_size=30), st.sampled_from(["quantile", "sigmoid"]), st.booleans())
@example([0.0, 2.2250738585072014e-308], [0.0, 4.0], "quantile", False)  # knots that almost tie
def test_monotone_and_in_range(pool: list[float], raw: list[float], kind: Kind, higher: bool) -> None:
    scores = fit(kind, pool, higher_is_better=higher).apply(sorted(pool + raw, reverse=not higher))
    assert (np.diff(scores) >= 0).all()
    assert scores.min() >= 0 and scores.max() <= 1


@LIGHT
@given(POOLS)
def test_turning_the_sign_mirrors_quantiles(pool: list[float]) -> None:
    """With mid-ranks, the scores of −x are one minus those of x; so are those of lower-is-better."""
    up, down = fit("quantile", pool), fit("quantile", pool, higher_is_better=False)
    assert up.apply(pool) + down.apply(pool) == pytest.approx(np.ones(len(pool)), abs=1e-12)


@LIGHT
@given(POOLS, st.sampled_from(["quantile", "sigmoid"]), st.booleans())
def test_json_round_trip_is_exact(pool: list[float], kind: Kind, higher: bool) -> None:
    calibrator = fit(kind, pool, higher_is_better=higher)
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    assert again == calibrator
    assert again.apply(pool).tobytes() == calibrator.apply(pool).tobytes()


@LIGHT
@given(POOLS, st.sampled_from(["quantile", "sigmoid"]))
def test_unreachable_levels_equal_looking(pool: list[float], kind: Kind) -> None:
    calibrator = fit(kind, pool)
    reached = {min(GRID, key=lambda level: (abs(level - score), -level)) for score in calibrator.apply(pool)}
    assert calibrator.unreachable_levels(GRID) == tuple(level for level in GRID if level not in reached)


@pytest.mark.parametrize("kind", ["quantile", "sigmoid"])
def test_a_large_pool_is_thinned_within_its_bound(kind: Kind) -> None:
    """20 000 scores with two piles, 10 % each at −2 and at 1.5.

    At most 512 knots, both piles and what stands next to them exact, every other score within 1/256, and the
    unreachable levels as without thinning.
    """
    generator = np.random.default_rng(0)
    raw = np.concatenate([generator.normal(size=16_000), np.full(2000, -2.0), np.full(2000, 1.5)])
    calibrator = fit(kind, raw.tolist())
    assert len(calibrator.knots) <= 512
    unique, counts = np.unique(raw, return_counts=True)
    exact = (np.cumsum(counts) - counts / 2) / raw.size if kind == "quantile" else 1 / (1 + np.exp(-unique))
    found = calibrator.apply(unique)
    assert np.abs(found - exact).max() <= 1 / 256
    for value in (-2.0, 1.5):
        near = slice(int(np.searchsorted(unique, value)) - 1, int(np.searchsorted(unique, value)) + 2)
        assert found[near] == pytest.approx(exact[near], abs=1e-12)
    assert calibrator.largest_pile == Pile(1.5, 0.1)
    nearest = {min(GRID, key=lambda level: (abs(level - score), -level)) for score in exact}
    assert calibrator.unreachable_levels(GRID) == tuple(level for level in GRID if level not in nearest)


def test_many_middling_piles_stay_within_the_knot_bound() -> None:
    """1000 distinct values of share 1/1000 each: two knots a bin at most."""
    calibrator = fit("quantile", [float(i % 1000) for i in range(5000)])
    assert len(calibrator.knots) <= 512
    assert calibrator.apply(np.arange(1000.0)) == pytest.approx((np.arange(1000) + 0.5) / 1000, abs=1e-12)
