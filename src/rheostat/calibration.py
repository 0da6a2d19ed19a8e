"""Raw rewards onto [0, 1]: monotone maps, fitted once on the self-generated pool.

A reward's raw score has its own range and sign. A `Calibrator` turns it into a calibrated score, 1 being
most of the attribute, and knows what the pool looked like: its size, its range, its largest pile of tied
scores, the levels nothing in it reaches. All of it is ours (the paper only says that scores are quantised).

Pure: no disk, no device, no global state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rheostat.control import nearest_level
from rheostat.errors import RewardError

Kind = Literal["quantile", "sigmoid", "identity"]
Array = NDArray[np.float64]

KNOT_BINS = 256
"""Knots are thinned to the first and last of each such share of [0, 1]; no score moves by more than 1/256."""

IDENTITY_TOLERANCE = 1e-6
"""How far outside [0, 1] an `identity` reward may stray by rounding; it is clipped."""


class Knot(NamedTuple):
    """A point of the map: `oriented` raw score (negated where lower is better) and its calibrated score."""

    oriented: float
    calibrated: float


class Pile(NamedTuple):
    """Tied scores: their raw `value` and their `share` of the pool, in (0, 1]."""

    value: float
    share: float


@dataclass(frozen=True)
class Calibrator:
    """A monotone map from raw scores to [0, 1], with what its fit saw.

    `low` and `high` are the range of the pool in the reward's own units, before the sign is applied. `knots`
    ascend strictly in `oriented` and never fall in `calibrated`; they are the map of kind `quantile`, and for
    every kind a thinned record of where the pool's calibrated scores lie. `largest_pile` is the biggest group
    of tied raw scores (of equally big ones the highest in the attribute).
    """

    kind: Kind
    higher_is_better: bool
    sample_size: int
    low: float
    high: float
    largest_pile: Pile
    knots: tuple[Knot, ...]

    def apply(self, raw: ArrayLike) -> Array:
        """Calibrated scores in [0, 1], same shape; monotone in `raw`, clamped outside the range of the fit.

        Raises `RewardError` where a raw score is not finite, or for `identity` lies outside [0, 1].
        """
        oriented = _oriented(_finite(raw), self.higher_is_better)
        if self.kind == "quantile":
            return _interpolate(oriented, *self._map)
        return _fixed(self.kind, oriented, self.higher_is_better)

    def unreachable_levels(self, levels: Sequence[float]) -> tuple[float, ...]:
        """The levels that no calibrated score of the pool is nearest to.

        Exact for levels at least 1/128 apart: thinning leaves no wider gap.
        """
        reached = {nearest_level(knot.calibrated, levels) for knot in self.knots}
        return tuple(level for level in levels if level not in reached)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` gives an equal calibrator, to the last bit."""
        return {
            "kind": self.kind,
            "higher_is_better": self.higher_is_better,
            "sample_size": self.sample_size,
            "low": self.low,
            "high": self.high,
            "largest_pile": {"value": self.largest_pile.value, "share": self.largest_pile.share},
            "knots": [list(knot) for knot in self.knots],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibrator":
        """From what `to_json` gave."""
        return cls(
            kind=values["kind"],
            higher_is_better=values["higher_is_better"],
            sample_size=values["sample_size"],
            low=values["low"],
            high=values["high"],
            largest_pile=Pile(**values["largest_pile"]),
            knots=tuple(Knot(*knot) for knot in values["knots"]),
        )

    @cached_property
    def _map(self) -> tuple[Array, Array]:
        knots = np.array(self.knots, dtype=np.float64)
        return knots[:, 0], knots[:, 1]


def fit(kind: Kind, raw: Sequence[float], *, higher_is_better: bool = True) -> Calibrator:
    """Fit a calibrator on the raw scores of the pool.

    - `quantile`: the empirical distribution function at mid-ranks, (scores below + ½ tied scores) / n, so
      ties share their mid-rank; linear between the pool's scores, constant outside them. A pile of share p at
      the top therefore calibrates to 1 − p/2, and no score is promised that the pool does not hold.
    - `sigmoid`: 1 / (1 + exp(−raw)), for a reward whose output is a logit.
    - `identity`: for a reward that already lies in [0, 1].

    Where lower is better, `raw` is negated first (`identity`: 1 − raw). Raises `RewardError` on an empty pool,
    on scores that are not finite, and for `identity` on scores outside [0, 1] by more than 1e-6.
    """
    if len(raw) == 0:
        raise RewardError(
            f"cannot fit a {kind} calibration: got no raw score, allowed is at least one",
            hint="generate and score responses first; every one of them may have been dropped",
        )
    scores = _finite(raw)
    oriented, counts = np.unique(_oriented(scores, higher_is_better), return_counts=True)
    size = int(scores.size)
    if kind == "quantile":
        calibrated = (np.cumsum(counts) - counts / 2) / size
    else:
        calibrated = _fixed(kind, oriented, higher_is_better)
    largest = int(np.flatnonzero(counts == counts.max())[-1])
    kept = _first_and_last_of_bins(calibrated)
    return Calibrator(
        kind=kind,
        higher_is_better=higher_is_better,
        sample_size=size,
        low=float(scores.min()),
        high=float(scores.max()),
        largest_pile=Pile(
            float(oriented[largest] if higher_is_better else 0.0 - oriented[largest]),
            float(counts[largest] / size),
        ),
        knots=tuple(Knot(float(x), float(y)) for x, y in zip(oriented[kept], calibrated[kept], strict=True)),
    )


def _finite(raw: ArrayLike) -> Array:
    scores = np.asarray(raw, dtype=np.float64)
    broken = int(scores.size - np.isfinite(scores).sum())
    if broken:
        raise RewardError(
            f"got {broken} NaN or infinite among {scores.size} raw scores, allowed are finite numbers",
            hint="look at what the reward model returns for these responses; lower precision often overflows",
        )
    return scores


def _oriented(scores: Array, higher_is_better: bool) -> Array:
    """Higher is more of the attribute; 0.0 − x keeps zero unsigned, so that knots compare exactly."""
    return scores + 0.0 if higher_is_better else 0.0 - scores


def _fixed(kind: Kind, oriented: Array, higher_is_better: bool) -> Array:
    """The kinds that need no fit."""
    if kind == "sigmoid":
        return np.asarray(expit(oriented), dtype=np.float64)
    shifted = oriented if higher_is_better else 1.0 + oriented
    outside = int(((shifted < -IDENTITY_TOLERANCE) | (shifted > 1 + IDENTITY_TOLERANCE)).sum())
    if outside:
        raise RewardError(
            f"identity calibration: got {outside} outside [0, 1] among {shifted.size} raw scores, "
            "allowed are scores from 0 to 1",
            hint="use `calibration: quantile`, or `sigmoid` where the reward's output is a logit",
        )
    return np.clip(shifted, 0.0, 1.0)


def _first_and_last_of_bins(calibrated: Array) -> NDArray[np.bool_]:
    """Which ascending scores to keep: at most 512, every pile of 1/128 or more and its neighbours among them.

    Neighbouring mid-ranks differ by half the sum of their piles, so a pile that large has a bin of its own.
    """
    bins = np.minimum((calibrated * KNOT_BINS).astype(np.int64), KNOT_BINS - 1)
    starts = np.append(True, bins[1:] != bins[:-1])
    kept: NDArray[np.bool_] = starts | np.append(starts[1:], True)
    return kept


def _interpolate(points: Array, positions: Array, heights: Array) -> Array:
    """Linear between knots, constant outside; unlike `np.interp`, monotone to the last bit.

    `points` any shape; `positions` and `heights` `(knots,)`, ascending. Points are clamped to their piece
    before the division, which knots that almost tie would let overflow, and heights after it, which rounding would
    let overshoot.
    """
    if positions.size == 1:
        return np.full(points.shape, heights[0])
    left = np.clip(np.searchsorted(positions, points, side="right") - 1, 0, positions.size - 2)
    low, high = positions[left], positions[left + 1]
    share = (np.clip(points, low, high) - low) / (high - low)
    rising = heights[left] + share * (heights[left + 1] - heights[left])
    return np.asarray(np.minimum(rising, heights[left + 1]), dtype=np.float64)
