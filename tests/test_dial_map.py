"""Calibrated dials: the monotone map, its inversion, and what they do to Err."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import dial_map, metrics
from rheostat.control import ControlFormat, nearest_level
from rheostat.control_template import dialled_template
from rheostat.dial_map import DialMap
from rheostat.errors import DialError
from rheostat.grid import Grid
from rheostat.plugins import attribute

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
scores = st.lists(st.floats(0, 1), min_size=5, max_size=5)
wanted = st.floats(0, 1)


def test_the_map_by_hand() -> None:
    """.1, .5, .3, .7, .9: .5 and .3 violate, and pool to .4. Half-way: (.1+.4)/2 = .25; within the pool the levels' own
    middle, .375; (.4+.7)/2 = .55; (.7+.9)/2 = .8.
    """
    fitted = DialMap.fit(LEVELS, [0.1, 0.5, 0.3, 0.7, 0.9])
    assert fitted.fitted == pytest.approx((0.1, 0.4, 0.4, 0.7, 0.9))
    assert fitted.achieved == (0.1, 0.5, 0.3, 0.7, 0.9)
    assert fitted.thresholds == pytest.approx((0.25, 0.375, 0.55, 0.8))
    requests = [fitted.request(value) for value in (0, 0.24, 0.26, 0.4, 0.54, 0.55, 0.79, 1)]
    assert requests == [0, 0, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
    assert fitted.expected(0.6) == pytest.approx(0.7)


def test_the_map_averages_responses() -> None:
    fitted = DialMap.fit((0.0, 1.0), [[0.2, 0.4], [0.5, 0.7]])
    assert fitted.achieved == pytest.approx((0.3, 0.6))
    assert fitted.thresholds == pytest.approx((0.45,))


def test_a_dial_that_moves_nothing_is_left_as_it_is() -> None:
    assert DialMap.fit(LEVELS, [0.6] * 5).thresholds == DialMap.nominal(LEVELS).thresholds


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        DialMap.fit((0.0, 1.0), [0.1, float("nan")])


@given(scores)
def test_the_request_is_monotone_and_keeps_the_ends(achieved: list[float]) -> None:
    fitted = DialMap.fit(LEVELS, achieved)
    requests = [fitted.request(value / 100) for value in range(101)]
    assert requests == sorted(requests)
    assert (requests[0], requests[-1]) == (0.0, 1.0)
    assert list(fitted.fitted) == sorted(fitted.fitted)
    assert DialMap.from_json(fitted.to_json()) == fitted


@given(scores, wanted)
def test_no_level_comes_nearer_than_the_one_requested(achieved: list[float], value: float) -> None:
    """So on the calibration data no wanted value is further away than without a map."""
    fitted = DialMap.fit(LEVELS, achieved)
    nearest = min(abs(value - each) for each in fitted.fitted)
    assert abs(value - fitted.expected(value)) <= nearest + 1e-4
    nominal = fitted.fitted[LEVELS.index(nearest_level(value, LEVELS))]
    assert abs(value - fitted.expected(value)) <= abs(value - nominal) + 1e-4


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6, unique=True).map(sorted), wanted)
def test_a_dial_on_the_diagonal_is_left_as_it_is(places: list[int], value: float) -> None:
    levels = tuple(place / 10_000 for place in places)
    assert DialMap.fit(levels, levels).thresholds == DialMap.nominal(levels).thresholds
    if min(abs(value - each) for each in DialMap.nominal(levels).thresholds) > 1e-6:
        assert DialMap.nominal(levels).request(value) == nearest_level(value, levels)


def grid_of(curves: Sequence[Sequence[float]], *, prompts: int = 1, spread: float = 0.0) -> Grid:
    """Two dials whose scores depend on their own level alone, by a curve each."""
    cells = np.array(list(product(LEVELS, repeat=2)))
    means = np.stack([np.interp(cells[:, at], LEVELS, curve) for at, curve in enumerate(curves)], axis=1)
    noise = np.random.default_rng(0).normal(0, spread, (prompts, *means.shape)) if spread else 0.0
    requested = np.broadcast_to(cells, (prompts, *cells.shape)).copy()
    return Grid(
        ("helpfulness", "safety"), LEVELS, requested, np.broadcast_to(means, requested.shape) + noise
    )


def test_err_before_and_after_by_hand() -> None:
    """Safety comes out one level too high: 0, ¼, ½, ¾, 1 achieve ¼, ½, ¾, 1, 1. Err is (4 × ¼ + 0) / 5 = .2. With the
    map ¼ requests 0, ½ requests ¼ and so on, and only 0 still misses, by ¼: .05. Its curve's gap is the same.
    """
    shifted = [0.25, 0.5, 0.75, 1.0, 1.0]
    grid = grid_of([LEVELS, shifted])
    maps = dial_map.fit_maps(grid)
    nominal = {name: DialMap.nominal(LEVELS) for name in grid.attributes}
    for measure in (lambda *given: dial_map.errors(*given).mean(), dial_map.gap):
        assert measure(grid, "safety", nominal, LEVELS) == pytest.approx(0.2)
        assert measure(grid, "safety", maps, LEVELS) == pytest.approx(0.05)
        assert measure(grid, "helpfulness", maps, LEVELS) == pytest.approx(0.0)
    assert dial_map.curve(grid, "safety", maps, [0.5]).tolist() == [[pytest.approx(0.5)]]


def test_without_a_map_err_is_the_metric() -> None:
    """At the levels themselves an unmapped dial's Err is that of the evaluation."""
    grid = grid_of([[0.1, 0.2, 0.6, 0.7, 0.8], LEVELS], prompts=3, spread=0.1)
    nominal = {name: DialMap.nominal(LEVELS) for name in grid.attributes}
    for name in grid.attributes:
        found = dial_map.errors(grid, name, nominal, LEVELS)
        assert found.shape == (3,)
        assert found.mean() == pytest.approx(metrics.mean_absolute_error(grid, name))


@given(scores, scores)
def test_on_the_calibration_data_the_curve_comes_no_further_from_the_diagonal(
    first: list[float], second: list[float]
) -> None:
    """Exactly so where the achieved means rise as requested; elsewhere the fitted curve, not the raw one, obeys."""
    grid = grid_of([sorted(first), sorted(second)])
    maps = dial_map.fit_maps(grid)
    nominal = {name: DialMap.nominal(LEVELS) for name in grid.attributes}
    fine = [value / 20 for value in range(21)]
    for name in grid.attributes:
        assert dial_map.gap(grid, name, maps, fine) <= dial_map.gap(grid, name, nominal, fine) + 1e-4


CALIBRATED = ControlFormat(
    (attribute("safety"), attribute("helpfulness")), thresholds={"safety": (0.3, 0.4, 0.6, 0.9)}
)


def test_a_calibrated_dial_switches_at_its_thresholds() -> None:
    requests = [CALIBRATED.quantise("safety", value) for value in (0, 0.29, 0.3, 0.4, 0.89, 0.9, 1)]
    assert requests == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert CALIBRATED.quantise("helpfulness", 0.3) == 0.25
    assert CALIBRATED.resolve({"safety": 0.89}) == {"helpfulness": 1.0, "safety": 0.75}
    with pytest.raises(DialError, match="safety"):
        CALIBRATED.quantise("safety", 1.5)


def test_the_template_switches_where_python_does() -> None:
    from jinja2 import Environment

    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(dialled_template("", CALIBRATED))
    for step in range(101):
        dials = {"safety": step / 100, "helpfulness": 1 - step / 100}
        rendered = template.render(**dials, messages=[], add_generation_prompt=True)
        assert rendered == CALIBRATED.render(CALIBRATED.resolve(dials))
