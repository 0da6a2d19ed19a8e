"""How well the dials work: mP, MP, Err, BT, cross-effect, reach, means, curves, Pareto front, perplexity ratio.

The names mP, MP, Err, BT and what they stand for (micro and macro Pearson, mean absolute error, binary test)
are the paper's (arXiv 2404.01295); the formulas, the intervals and all other figures are ours. Intervals are
95 % percentile bootstrap intervals over prompts: whole prompts are drawn, with all their cells.

Every statistic but mP is a mean of one number a prompt, and mP follows from three sums a prompt. So a
resample is a row of counts, all resamples are one matrix, and a bootstrap is a matrix product.

Pure: no disk, no device, no global state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheostat.grid import Grid as Grid

Array = NDArray[np.float64]

TIE = 1e-6
"""Achieved scores no further apart are the same: batching alone moves a float32 reward by about this."""

CONFIDENCE = 0.95
"""What an interval covers."""


class Interval(NamedTuple):
    """A figure with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class MicroPearson(NamedTuple):
    """mP, in [-1, 1]; undefined where all achieved scores are the same: then `constant`, and `value` is 0."""

    value: float
    constant: bool


class MacroPearson(NamedTuple):
    """MP, in [-1, 1], and how many prompts count 0 because their achieved score never changes."""

    value: float
    constant_prompts: int


class BinaryTest(NamedTuple):
    """BT and the share of its pairs that tie, both in [0, 1]."""

    value: float
    tie_rate: float


class LevelPoint(NamedTuple):
    """The mean achieved score of all cells that request `level`."""

    level: float
    achieved: Interval


class SettingMeans(NamedTuple):
    """The mean achieved score of each attribute at one setting of all dials."""

    requested: Mapping[str, float]
    achieved: Mapping[str, float]


@dataclass(frozen=True)
class AttributeFigures:
    """The figures of one dial.

    `achieved`: the mean achieved score over all cells; of a method without a dial that is all there is to say.
    `constant`: the method achieves one and the same score everywhere, mP is undefined and shown as 0.
    `constant_resamples`: in how many bootstrap resamples that was so; each counts 0. `reach` is None where no
    reachable range was given.
    """

    achieved: Interval
    micro_pearson: Interval
    macro_pearson: Interval
    mean_absolute_error: Interval
    binary_test: Interval
    tie_rate: float
    constant_prompts: int
    constant: bool
    constant_resamples: int
    reach: Interval | None

    def to_json(self) -> dict[str, Any]:
        """As an attribute stands in evaluation.json."""
        return {
            "achieved": self.achieved._asdict(),
            "mP": self.micro_pearson._asdict(),
            "MP": self.macro_pearson._asdict(),
            "Err": self.mean_absolute_error._asdict(),
            "BT": self.binary_test._asdict(),
            "tie_rate": self.tie_rate,
            "constant_prompts": self.constant_prompts,
            "constant": self.constant,
            "constant_resamples": self.constant_resamples,
            "reach": self.reach._asdict() if self.reach else None,
        }


@dataclass(frozen=True)
class MethodFigures:
    """All figures of a method; `cross_effects` is keyed by (attribute moved, dial that moves it)."""

    prompts: int
    attributes: Mapping[str, AttributeFigures]
    cross_effects: Mapping[tuple[str, str], Interval]

    def to_json(self) -> dict[str, Any]:
        """As `attributes` and `cross_effect` stand in evaluation.json."""
        effects = {f"{moved}_by_{by}": effect._asdict() for (moved, by), effect in self.cross_effects.items()}
        attributes = {name: figures.to_json() for name, figures in self.attributes.items()}
        return {"attributes": attributes, "cross_effect": effects}


def evaluate(
    grid: Grid, *, resamples: int, seed: int, reachable: Mapping[str, tuple[float, float]] | None = None
) -> MethodFigures:
    """All figures of a method with intervals; `reachable` gives the (low, high) of an attribute's `reach`.

    The same seed and number of prompts draw the same prompts, whatever the method.
    """
    reachable = reachable or {}
    draws = _draws(grid.prompts, resamples, seed)
    attributes: dict[str, AttributeFigures] = {}
    for name in grid.attributes:
        micro, constant = _micro_pearson(grid, name, draws)
        wins, ties = _wins_and_ties(grid, name)
        correlations, constant_prompts = _correlations(grid, name)
        attributes[name] = AttributeFigures(
            achieved=_mean_interval(grid.outcome(name).mean(axis=1), draws),
            micro_pearson=_interval(micro),
            macro_pearson=_mean_interval(correlations, draws),
            mean_absolute_error=_mean_interval(_errors(grid, name), draws),
            binary_test=_mean_interval(wins, draws),
            tie_rate=float(ties.mean()),
            constant_prompts=int(constant_prompts.sum()),
            constant=bool(constant[0]),
            constant_resamples=int(constant[1:].sum()),
            reach=(
                _mean_interval(_reaches(grid, name, *reachable[name]), draws) if name in reachable else None
            ),
        )
    effects = {
        (moved, by): _mean_interval(_slopes(grid, moved, by), draws)
        for moved, by in product(grid.attributes, repeat=2)
        if moved != by
    }
    return MethodFigures(grid.prompts, attributes, effects)


def micro_pearson(grid: Grid, attribute: str) -> MicroPearson:
    """mP: Pearson correlation of requested and achieved over all cells of all prompts."""
    value, constant = _micro_pearson(grid, attribute, np.ones((1, grid.prompts)))
    return MicroPearson(float(value[0]), bool(constant[0]))


def macro_pearson(grid: Grid, attribute: str) -> MacroPearson:
    """MP: Pearson correlation over each prompt's cells, averaged over prompts; a constant prompt counts 0."""
    correlations, constant = _correlations(grid, attribute)
    return MacroPearson(float(correlations.mean()), int(constant.sum()))


def mean_absolute_error(grid: Grid, attribute: str) -> float:
    """Err: mean |requested − achieved| over all cells."""
    return float(_errors(grid, attribute).mean())


def binary_test(grid: Grid, attribute: str) -> BinaryTest:
    """BT: share of pairs (same prompt, other dials equal) in which the highest level outscores the lowest.

    A tie counts one half. Raises `ValueError` where the cells hold no such pair.
    """
    wins, ties = _wins_and_ties(grid, attribute)
    return BinaryTest(float(wins.mean()), float(ties.mean()))


def cross_effect(grid: Grid, moved: str, by: str) -> float:
    """Least-squares slope of the achieved score of `moved` on the requested level of `by`, over all cells.

    In score units per full turn of the dial; with `moved` equal to `by` it is the dial's own effect.
    """
    return float(_slopes(grid, moved, by).mean())


def reach(grid: Grid, attribute: str, reachable_low: float, reachable_high: float) -> float:
    """Share of the reachable range that a dial covers: (mean at the top − mean at the bottom) / its width.

    Raises `ValueError` where the reachable range is empty.
    """
    return float(_reaches(grid, attribute, reachable_low, reachable_high).mean())


def level_curve(grid: Grid, attribute: str, *, resamples: int, seed: int) -> tuple[LevelPoint, ...]:
    """Mean achieved score at each requested level that occurs, ascending, with intervals."""
    draws = _draws(grid.prompts, resamples, seed)
    request, outcome = grid.request(attribute), grid.outcome(attribute)
    return tuple(
        LevelPoint(float(level), _mean_interval(outcome[:, request == level].mean(axis=1), draws))
        for level in np.unique(request)
    )


def heat_map(grid: Grid, attribute: str) -> Array:
    """Mean achieved score of an attribute in each cell, an axis a dial, as long as it has levels.

    Axis i is the grid's dial i, levels ascending; of two dials, rows are the first. Raises `ValueError` where
    a cell of the full grid is missing.
    """
    levels = [grid.levels_of(name) for name in grid.attributes]
    means = grid.outcome(attribute).mean(axis=0)
    cells = np.empty([len(each) for each in levels])
    for place in np.ndindex(cells.shape):
        request = [own[index] for own, index in zip(levels, place, strict=True)]
        here = (grid.requested[0] == request).all(axis=1)
        if not here.any():
            raise ValueError(f"no response was requested at {request}")
        cells[place] = means[here].mean()
    return cells


def setting_means(grid: Grid) -> tuple[SettingMeans, ...]:
    """Where each setting of the dials lands on average over prompts, in ascending order of the settings."""
    cells, places = np.unique(grid.requested[0], axis=0, return_inverse=True)
    means = grid.achieved.mean(axis=0)
    found = []
    for index, cell in enumerate(cells):
        here = means[places.reshape(-1) == index].mean(axis=0)
        found.append(
            SettingMeans(
                dict(zip(grid.attributes, map(float, cell), strict=True)),
                dict(zip(grid.attributes, map(float, here), strict=True)),
            )
        )
    return tuple(found)


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which `points` `(n, k)` no other beats: is at least as high everywhere and higher somewhere.

    Higher is better on every axis; equal points stand or fall together. Raises `ValueError` on NaN.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or np.isnan(values).any():
        raise ValueError(f"got points of shape {values.shape} or with NaN, allowed are (n, k) numbers")
    beaten = [((values >= point).all(axis=1) & (values > point).any(axis=1)).any() for point in values]
    return ~np.array(beaten, dtype=bool)


def perplexity_ratio(
    logprob_sums: ArrayLike,
    tokens: ArrayLike,
    base_logprob_sums: ArrayLike,
    base_tokens: ArrayLike,
    *,
    resamples: int,
    seed: int,
) -> Interval:
    """Perplexity of a method's responses over that of the base's own, both under the base; 1 is as fluent.

    exp(mean negative log-probability a token) of each, token-weighted. All are `(prompts,)` or
    `(prompts, responses)`; the method and the base share prompts and their order, and are drawn together.
    Raises `ValueError` on other shapes, numbers that are not finite, or a prompt without tokens.
    """
    sums, counts = _per_prompt(logprob_sums, tokens)
    base_sums, base_counts = _per_prompt(base_logprob_sums, base_tokens)
    if sums.shape != base_sums.shape:
        raise ValueError(f"got {sums.size} prompts and {base_sums.size} of the base, allowed is the same")
    draws = _draws(sums.size, resamples, seed)
    method, base = (draws @ sums) / (draws @ counts), (draws @ base_sums) / (draws @ base_counts)
    return _interval(np.exp(base - method))


def reachable_error(candidates: ArrayLike, levels: Sequence[Sequence[float]]) -> Array:
    """Err of the best choice among `candidates` `(prompts, samples, attributes)`, `(attributes,)`.

    For each prompt and cell of the product of `levels`, one list an attribute, |requested − achieved| of the
    candidate nearest to the request in L1 over all attributes (of equally near ones the first), averaged. No method
    that only picks among these candidates has a smaller summed Err. Raises `ValueError` on another shape or numbers
    that are not finite.
    """
    achieved = np.asarray(candidates, dtype=np.float64)
    if achieved.ndim != 3 or 0 in achieved.shape or not np.isfinite(achieved).all():
        raise ValueError(f"got {achieved.shape}, allowed are finite (prompts, samples, attributes), none 0")
    assert len(levels) == achieved.shape[2], (levels, achieved.shape)
    cells = list(product(*levels))
    total = np.zeros(achieved.shape[2])
    for cell in cells:
        distances = np.abs(achieved - np.array(cell))
        nearest = distances.sum(axis=2).argmin(axis=1)
        total += distances[np.arange(len(achieved)), nearest].mean(axis=0)
    return total / len(cells)


def mean_interval(per_prompt: ArrayLike, *, resamples: int, seed: int) -> Interval:
    """The mean of one number a prompt, `(prompts,)`. Raises `ValueError` where there is none or one is not finite."""
    values = np.asarray(per_prompt, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"got {values.shape}, allowed are finite (prompts,), at least one")
    return _mean_interval(values, _draws(values.size, resamples, seed))


def _draws(prompts: int, resamples: int, seed: int) -> Array:
    """How often each prompt is drawn, `(1 + resamples, prompts)`; the first row is the sample itself."""
    if resamples < 1:
        raise ValueError(f"got {resamples} resamples, allowed is at least 1")
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.vstack([np.ones((1, prompts)), counts])


def _interval(statistics: Array) -> Interval:
    """From a statistic of each row of `_draws`."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistics[1:], [tail, 1 - tail])
    return Interval(float(statistics[0]), float(low), float(high))


def _mean_interval(per_prompt: Array, draws: Array) -> Interval:
    return _interval(draws @ per_prompt / per_prompt.size)


def _micro_pearson(grid: Grid, attribute: str, draws: Array) -> tuple[Array, NDArray[np.bool_]]:
    """mP of each row of draws, and where it is undefined; pooled sums of numbers centred beforehand."""
    request, outcome = grid.request(attribute), grid.outcome(attribute)
    x, y = request - request.mean(), outcome - outcome.mean()
    sums = draws @ np.stack([y.sum(axis=1), (y * y).sum(axis=1), y @ x], axis=1)
    total, squares, products = sums.T
    spread = squares / outcome.size - (total / outcome.size) ** 2
    constant = spread <= (TIE / 2) ** 2
    scale = np.sqrt(np.where(constant, 1.0, spread) * (x @ x) / x.size) * outcome.size
    return np.where(constant, 0.0, np.clip(products / scale, -1.0, 1.0)), constant


def _correlations(grid: Grid, attribute: str) -> tuple[Array, NDArray[np.bool_]]:
    """Pearson correlation of each prompt, 0 where constant, and which are: `(prompts,)` both."""
    request, outcome = grid.request(attribute), grid.outcome(attribute)
    x, y = request - request.mean(), outcome - outcome.mean(axis=1, keepdims=True)
    constant = np.ptp(outcome, axis=1) <= TIE
    scale = np.sqrt((x @ x) * np.where(constant, 1.0, (y * y).sum(axis=1)))
    return np.where(constant, 0.0, np.clip(y @ x / scale, -1.0, 1.0)), constant


def _errors(grid: Grid, attribute: str) -> Array:
    errors: Array = np.abs(grid.request(attribute) - grid.outcome(attribute)).mean(axis=1)
    return errors


def _wins_and_ties(grid: Grid, attribute: str) -> tuple[Array, Array]:
    """Share of a prompt's pairs that the highest level wins (a tie is half), and that tie: `(prompts,)`."""
    request, outcome = grid.request(attribute), grid.outcome(attribute)
    others = np.delete(grid.requested[0], grid.attributes.index(attribute), axis=1)
    tops, bottoms = (np.flatnonzero(request == end) for end in _ends(grid, attribute))
    pairs = [(top, low) for top in tops for low in bottoms if (others[top] == others[low]).all()]
    if not pairs:
        raise ValueError(f"{attribute}: no two cells differ in this dial alone, from lowest to highest")
    top, low = np.array(pairs).T
    gain = outcome[:, top] - outcome[:, low]
    ties = (np.abs(gain) <= TIE).mean(axis=1)
    return (gain > TIE).mean(axis=1) + ties / 2, ties


def _slopes(grid: Grid, moved: str, by: str) -> Array:
    """The slope within each prompt; cells being the same for all, the pooled slope is their mean."""
    x = grid.request(by) - grid.request(by).mean()
    slopes: Array = grid.outcome(moved) @ x / (x @ x)
    return slopes


def _reaches(grid: Grid, attribute: str, reachable_low: float, reachable_high: float) -> Array:
    if not reachable_low < reachable_high:
        raise ValueError(f"{attribute}: got the empty reachable range {reachable_low} to {reachable_high}")
    request, outcome = grid.request(attribute), grid.outcome(attribute)
    top, bottom = (outcome[:, request == end].mean(axis=1) for end in _ends(grid, attribute))
    reaches: Array = (top - bottom) / (reachable_high - reachable_low)
    return reaches


def _ends(grid: Grid, attribute: str) -> tuple[float, float]:
    """The highest and the lowest level of a dial."""
    levels = grid.levels_of(attribute)
    return levels[-1], levels[0]


def _per_prompt(logprob_sums: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
    sums, counts = np.asarray(logprob_sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    same = sums.shape == counts.shape and sums.ndim in (1, 2) and 0 not in sums.shape
    if not same or not np.isfinite(sums).all():
        raise ValueError(f"got {sums.shape} and {counts.shape}, allowed are finite (prompts[, responses])")
    sums, counts = (values.reshape(len(values), -1).sum(axis=1) for values in (sums, counts))
    if not (counts > 0).all():
        raise ValueError("got a prompt without tokens, allowed is at least one a prompt")
    return sums, counts
