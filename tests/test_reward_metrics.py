"""The figures of `rheostat reward check`: hand numbers, and laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.reward_metrics import (
    agreement,
    auc,
    balanced_accuracy,
    calibration_curve,
    expit,
    logit,
    pairwise_accuracy,
    pairwise_agreement,
    wilson,
)

numbers = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


def test_wilson() -> None:
    """Of 10, 8: centre (.8 + z²/20) / (1 + z²/10), half √(.016 + z²/400) z / (1 + z²/10), z = 1.96."""
    assert wilson(0.8, 10) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert wilson(1.0, 4).high == 1.0 and wilson(0.0, 4).low == 0.0


def test_pairwise_accuracy_counts_a_tie_one_half() -> None:
    assert pairwise_accuracy([2, 1, 0], [1, 1, 1]).value == 0.5


def test_auc() -> None:
    """3 > 2, 3 > 0, 1 > 0 of four pairs; with a tie for one of them (3 + ½) / 4."""
    assert auc([3, 1], [2, 0]).value == 0.75
    assert auc([3, 1], [1, 0]).value == 0.875
    assert auc([2.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)


def test_the_interval_of_hanley_and_mcneil() -> None:
    """A = ¾ of 2 and 2: Q₁ = .75/1.25 = .6, Q₂ = 1.125/1.75 = .642857; variance (.1875 + .0375 + .080357) / 4."""
    half = 1.959963984540054 * math.sqrt((0.1875 + 0.6 - 0.5625 + 1.125 / 1.75 - 0.5625) / 4)
    assert auc([3, 1], [2, 0]).low == pytest.approx(0.75 - half)
    assert auc([3, 1], [2, 0]).high == 1.0


@given(numbers, numbers)
def test_an_auc_is_the_share_of_pairs_and_turns_round_with_the_sign(above: list[float], below: list[float]) -> None:
    slow = sum((a > b) + 0.5 * (a == b) for a in above for b in below) / (len(above) * len(below))
    found = auc(above, below)
    assert found.value == pytest.approx(slow)
    assert found.low <= found.value <= found.high
    assert auc([-a for a in above], [-b for b in below]).value == pytest.approx(1 - slow)


def test_balanced_accuracy() -> None:
    assert balanced_accuracy([1, 0, -1, 2], [True, True, False, False], 0.0) == 0.75


def test_a_calibration_curve() -> None:
    curve = calibration_curve([0.8, 0.2, 0.6, 0.4], [1, 0, 1, 1], bins=2)
    assert [(each.count, each.observed) for each in curve.bins] == [(2, 0.5), (2, 1.0)]
    assert [each.predicted for each in curve.bins] == pytest.approx([0.3, 0.7])
    assert curve.error == pytest.approx(0.25)
    assert len(calibration_curve([0.5], [1]).bins) == 1


def test_agreement() -> None:
    found = agreement([1, 2, 3], [1, 3, 2])
    assert found.spearman == pytest.approx(0.5) and found.kendall == pytest.approx(1 / 3)
    assert agreement([1, 1, 1], [1, 2, 3]).spearman is None
    assert pairwise_agreement([1, -1, 2], [3, 1, 0]) == 0.5


@given(st.floats(-10, 10))
def test_expit_and_logit_undo_each_other(value: float) -> None:
    assert float(logit(expit(value))) == pytest.approx(value, abs=1e-6)
    assert 0 <= float(expit(value * 1000)) <= 1
