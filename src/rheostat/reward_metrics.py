"""How good a reward is: pairwise accuracy, AUC, balanced accuracy, calibration curve, agreement of two.

Pure: no disk, no device, no global state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rheostat.metrics import Interval

Array = NDArray[np.float64]

_Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases of like predicted probability: how many, the mean prediction, and the share that came true."""

    count: int
    predicted: float
    observed: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A calibration curve and its expected error Σ (count / all) |observed − predicted|, in [0, 1]."""

    bins: tuple[Bin, ...]
    error: float


def wilson(share: float, count: int) -> Interval:
    """A share with its 95 % Wilson score interval (Wilson 1927), all in [0, 1].

    Worked: 8 of 10 gives .8 with (.4902, .9433).
    """
    assert count > 0, count
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> Interval:
    """The share of pairs whose better response scores higher, a tie counting one half, with a Wilson interval.

    Worked: chosen 2, 1, 0 against rejected 1, 1, 1 gives (1 + ½ + 0) / 3 = .5.
    """
    margins = np.asarray(chosen, float) - np.asarray(rejected, float)
    wins = (margins > 0).sum() + 0.5 * (margins == 0).sum()
    return wilson(float(wins) / margins.size, margins.size)


def auc(positive: ArrayLike, negative: ArrayLike) -> Interval:
    """The chance that a positive scores above a negative, ties one half, with the interval of Hanley & McNeil (1982).

    Worked: positives 3, 1 against negatives 2, 0: of four pairs 3 > 2, 3 > 0, 1 > 0 hold, so .75.
    """
    above, below = np.asarray(positive, float), np.asarray(negative, float)
    assert above.size and below.size, (above.size, below.size)
    ranks = stats.rankdata(np.concatenate([above, below]))
    area = (ranks[: above.size].sum() - above.size * (above.size + 1) / 2) / (above.size * below.size)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (above.size - 1) * (one - area**2) + (below.size - 1) * (two - area**2)
    ) / (above.size * below.size)
    half = _Z * math.sqrt(max(variance, 0.0))
    return Interval(float(area), max(0.0, float(area) - half), min(1.0, float(area) + half))


def balanced_accuracy(scores: ArrayLike, positive: ArrayLike, threshold: float) -> float:
    """The mean of the share of positives scored at or above `threshold` and of negatives scored below it.

    Worked: scores 1, 0, −1, 2 of which the first two are positive, at 0: (2/2 + 1/2) / 2 = .75.
    """
    values, truth = np.asarray(scores, float), np.asarray(positive, bool)
    assert truth.any() and not truth.all(), truth.mean()
    return float(((values[truth] >= threshold).mean() + (values[~truth] < threshold).mean()) / 2)


def calibration_curve(probabilities: ArrayLike, came_true: ArrayLike, *, bins: int = 10) -> Curve:
    """Cases in order of their predicted probability, in `bins` groups of like size.

    Worked: predictions .2, .4, .6, .8 with outcomes 0, 1, 1, 1 in two bins: (.3, .5) and (.7, 1), error
    ½ · .2 + ½ · .3 = .25.
    """
    predicted = np.asarray(probabilities, float)
    outcomes = np.asarray(came_true, float)
    order = np.argsort(predicted, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, predicted.size)) if group.size]
    found = tuple(
        Bin(int(group.size), float(predicted[group].mean()), float(outcomes[group].mean())) for group in groups
    )
    error = sum(each.count * abs(each.observed - each.predicted) for each in found) / max(1, predicted.size)
    return Curve(found, float(error))


def expit(values: ArrayLike) -> Array:
    """1 / (1 + exp(−v)), without overflow."""
    clipped = np.clip(np.asarray(values, float), -500, 500)
    result: Array = 1 / (1 + np.exp(-clipped))
    return result


def logit(probabilities: ArrayLike) -> Array:
    """log p − log (1 − p), of p kept 10⁻⁶ away from 0 and 1."""
    kept = np.clip(np.asarray(probabilities, float), 1e-6, 1 - 1e-6)
    result: Array = np.log(kept) - np.log1p(-kept)
    return result


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rank correlations of two rewards' scores of the same responses, in [−1, 1]; NaN of a constant one is None."""

    spearman: float | None
    kendall: float | None


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Spearman's ρ and Kendall's τ-b.

    Worked: 1, 2, 3 against 1, 3, 2: ρ = 1 − 6 · 2 / 24 = .5, τ = (2 − 1) / 3 = ⅓.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return Agreement(None, None)
    return Agreement(
        float(stats.spearmanr(first, second).statistic), float(stats.kendalltau(first, second).statistic)
    )


def pairwise_agreement(first: ArrayLike, second: ArrayLike) -> float:
    """The share of pairs that two rewards order alike, from the margins each gives; a tie of either counts one half.

    Worked: margins 1, −1, 2 against 3, 1, 0: alike, unlike, a tie: (1 + 0 + ½) / 3 = .5.
    """
    product = np.sign(np.asarray(first, float)) * np.sign(np.asarray(second, float))
    return float(((product > 0).sum() + 0.5 * (product == 0).sum()) / product.size)
