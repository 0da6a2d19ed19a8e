"""What to request of a dial so that what is achieved is what was wanted: a monotone map, fitted and inverted. Pure.

A model is trained on a few levels and knows them as words: of a request between two of them it makes nothing (LOG.md).
So a map chooses among the levels: for a wanted value that one whose mean achieved score is nearest. The means are those
of calibration prompts, made monotone by isotonic regression. Each dial is fitted by itself, all others averaged over
their levels: where the other dials move this one's score (the cross-effect), the map is right on average only. Ours.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from rheostat.grid import Grid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DialMap:
    """A dial's requests and what they come to.

    `levels` ascend strictly; `achieved` is the mean achieved score in [0, 1] of each, `fitted` the same made monotone.
    """

    levels: tuple[float, ...]
    achieved: tuple[float, ...]
    fitted: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.levels) == len(self.achieved) == len(self.fitted) > 1, self
        assert all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False)), self.levels
        assert all(a <= b for a, b in zip(self.fitted, self.fitted[1:], strict=False)), self.fitted

    @classmethod
    def fit(cls, levels: Sequence[float], achieved: ArrayLike) -> Self:
        """From achieved scores `(levels,)`, or `(levels, responses)`, by the level that was requested.

        The least-squares monotone fit (pool adjacent violators). Raises `ValueError` on numbers that are not finite.
        """
        scores = np.asarray(achieved, dtype=np.float64).reshape(len(levels), -1)
        if not np.isfinite(scores).all():
            raise ValueError("got NaN or infinite achieved scores, allowed are finite numbers")
        means = scores.mean(axis=1)
        # To four decimals, as levels have: what differs by less is a tie.
        fitted = np.round(isotonic_regression(means).x, 4)
        return cls(tuple(map(float, levels)), tuple(means.tolist()), tuple(fitted.tolist()))

    @classmethod
    def nominal(cls, levels: Sequence[float]) -> Self:
        """The map that requests the level nearest to the wanted value: that of a dial on the diagonal."""
        return cls(tuple(levels), tuple(levels), tuple(levels))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return cls(*(tuple(map(float, values[key])) for key in ("levels", "achieved", "fitted")))

    def to_json(self) -> dict[str, list[float]]:
        """As it stands in evaluation.json and rheostat.json."""
        return {
            "levels": list(self.levels),
            "achieved": list(self.achieved),
            "fitted": list(self.fitted),
            "thresholds": list(self.thresholds),
        }

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The wanted values at which the request goes one level up, ascending, one less than the levels.

        Half-way between what two levels come to. Levels that come to the same share their part of the scale as without
        a map, half-way between the levels themselves, as far as it goes. On the diagonal nothing changes.
        """
        middles = [(low + high) / 2 for low, high in zip(self.fitted, self.fitted[1:], strict=False)]
        is_tie = [low == high for low, high in zip(self.fitted, self.fitted[1:], strict=False)]
        found = list(middles)
        for place, tied in enumerate(is_tie):
            if tied:
                below = next((middles[at] for at in range(place, -1, -1) if not is_tie[at]), 0.0)
                above = next((middles[at] for at in range(place, len(middles)) if not is_tie[at]), 1.0)
                nominal = (self.levels[place] + self.levels[place + 1]) / 2
                found[place] = min(max(nominal, below), above)
        return tuple(round(each, 6) for each in found)

    def request(self, wanted: float) -> float:
        """The level to request for a wanted value: the one that comes nearest to it, of two equally near the upper."""
        return self.levels[bisect_right(self.thresholds, wanted)]

    def expected(self, wanted: float) -> float:
        """The fitted mean score that the request for a wanted value comes to."""
        return self.fitted[self.levels.index(self.request(wanted))]


def fit_maps(grid: Grid) -> dict[str, DialMap]:
    """The map of each dial, by the achieved scores of a grid of calibration prompts."""
    maps = {}
    for name in grid.attributes:
        request, outcome = grid.request(name), grid.outcome(name)
        levels = np.unique(request).tolist()
        maps[name] = DialMap.fit(levels, [outcome[:, request == level].mean() for level in levels])
    return maps


def errors(grid: Grid, attribute: str, maps: Mapping[str, DialMap], wanted: Sequence[float]) -> Array:
    """|wanted − achieved| of a dial, averaged over `wanted` and the other dials' levels, `(prompts,)`.

    Nothing is generated anew: what a map requests is a level, so the answer to it stands in the grid already. The other
    dials are wanted at each of their levels, and mapped too.
    """
    return np.asarray(np.abs(_misses(grid, attribute, maps, wanted)).mean(axis=(1, 2)))


def curve(grid: Grid, attribute: str, maps: Mapping[str, DialMap], wanted: Sequence[float]) -> Array:
    """Mean achieved score of a dial at each wanted value, `(prompts, wanted)`; the others as in `errors`."""
    return np.asarray(_misses(grid, attribute, maps, wanted).mean(axis=2) + np.asarray(wanted))


def gap(grid: Grid, attribute: str, maps: Mapping[str, DialMap], wanted: Sequence[float]) -> float:
    """How far the curve of mean achieved scores lies from the diagonal: mean |wanted − mean achieved| over `wanted`."""
    return float(np.abs(curve(grid, attribute, maps, wanted).mean(axis=0) - np.asarray(wanted)).mean())


def _misses(grid: Grid, attribute: str, maps: Mapping[str, DialMap], wanted: Sequence[float]) -> Array:
    """Achieved less wanted, `(prompts, wanted, cells of the other dials)`."""
    places = {tuple(cell): place for place, cell in enumerate(grid.requested[0].tolist())}
    choices = [[maps[name].request(level) for level in maps[name].levels] for name in grid.attributes]
    own = grid.attributes.index(attribute)
    rows = []
    for value in wanted:
        choices[own] = [maps[attribute].request(value)]
        rows.append([places[cell] for cell in product(*choices)])
    achieved = grid.outcome(attribute)[:, np.array(rows)]
    return np.asarray(achieved - np.asarray(wanted)[None, :, None])
