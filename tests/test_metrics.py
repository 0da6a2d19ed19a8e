"""Metrics: numbers worked by hand, twins by plain loops and scipy, and laws."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr

from rheostat import metrics
from rheostat.metrics import BinaryTest, Grid, MacroPearson, MicroPearson
from rheostat.records import EvaluationRow

Array = NDArray[np.float64]
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
BOTH = ("helpfulness", "safety")
LIGHT = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def full_grid(achieved: Array, levels: tuple[float, ...] = LEVELS) -> Grid:
    """A grid over all cells, `achieved` `(prompts, cells, attributes)`."""
    cells = np.array(list(product(levels, repeat=achieved.shape[2])))
    names = BOTH if achieved.shape[2] == 2 else tuple(f"dial{i}" for i in range(achieved.shape[2]))
    return Grid(names, levels, np.broadcast_to(cells, achieved.shape).copy(), achieved)


def random_grid(seed: int, prompts: int = 6) -> Grid:
    """Scores that follow the dials somewhat, with ties, and with the first prompt constant."""
    generator = np.random.default_rng(seed)
    cells = np.array(list(product(LEVELS, repeat=2)))
    achieved = 0.5 * cells + 0.5 * generator.random((prompts, 25, 2)).round(1)
    achieved[0] = 0.7
    return full_grid(achieved)


def hand_grid() -> Grid:
    """Two prompts, two dials with levels 0 and 1; cells (h, s) in the order 00, 01, 10, 11.

    Helpfulness: prompt A 0, 0.2, 0.6, 0.8; prompt B 0.5 everywhere.
    Safety: prompt A 0.1, 0.9, 0.1, 0.5; prompt B 0.2, 0.2, 0.4, 1.0.
    """
    helpfulness = [[0.0, 0.2, 0.6, 0.8], [0.5] * 4]
    safety = [[0.1, 0.9, 0.1, 0.5], [0.2, 0.2, 0.4, 1.0]]
    return full_grid(np.stack([np.array(helpfulness), np.array(safety)], axis=2), (0.0, 1.0))


def test_micro_pearson_by_hand() -> None:
    """Helpfulness, all 8 cells: x = 0,0,1,1 twice (mean ½), y = 0,.2,.6,.8 and four .5 (mean 3.6/8 = .45).

    Σ(x−½)(y−.45) = ½(−0−.2+.6+.8) + 0 = .6. Σ(x−½)² = 2.
    Σ(y−.45)² = .2025 + .0625 + .0225 + .1225 + 4·.0025 = .42. r = .6/√.84 = .654654.
    """
    value, constant = metrics.micro_pearson(hand_grid(), "helpfulness")
    assert value == pytest.approx(0.6 / math.sqrt(0.84), abs=1e-12)
    assert not constant


def test_macro_pearson_by_hand() -> None:
    """Prompt A: y − .4 = −.4, −.2, .2, .4; products ½·1.2 = .6; Σ(x−½)² = 1, Σ(y−.4)² = .4; r = .6/√.4.

    Prompt B is constant: 0, counted. Mean .3/√.4 = .474342.
    """
    value, constant_prompts = metrics.macro_pearson(hand_grid(), "helpfulness")
    assert value == pytest.approx(0.3 / math.sqrt(0.4), abs=1e-12)
    assert constant_prompts == 1


def test_mean_absolute_error_by_hand() -> None:
    """Helpfulness. A: 0, .2, .4, .2 = .8; B: four halves = 2; 2.8/8 = .35.

    Safety. A: .1, .1, .1, .5 = .8; B: .2, .8, .4, 0 = 1.4; 2.2/8 = .275.
    """
    assert metrics.mean_absolute_error(hand_grid(), "helpfulness") == pytest.approx(0.35, abs=1e-12)
    assert metrics.mean_absolute_error(hand_grid(), "safety") == pytest.approx(0.275, abs=1e-12)


def test_binary_test_by_hand() -> None:
    """Safety, helpfulness fixed. A: .9 > .1, .5 > .1; B: .2 ties .2, 1 > .4. 3.5 of 4, a quarter tied.

    Helpfulness, safety fixed. A: .6 > 0, .8 > .2; B: two ties. 3 of 4, half tied.
    """
    assert metrics.binary_test(hand_grid(), "safety") == BinaryTest(0.875, 0.25)
    assert metrics.binary_test(hand_grid(), "helpfulness") == BinaryTest(0.75, 0.5)


def test_cross_effect_by_hand() -> None:
    """With two levels the slope is a difference of means.

    Safety by helpfulness: at h = 1 (.1 + .5 + .4 + 1)/4 = .5, at h = 0 (.1 + .9 + .2 + .2)/4 = .35: .15.
    Helpfulness by safety: at s = 1 (.2 + .8 + .5 + .5)/4 = .5, at s = 0 (0 + .6 + .5 + .5)/4 = .4: .1.
    """
    assert metrics.cross_effect(hand_grid(), "safety", "helpfulness") == pytest.approx(0.15, abs=1e-12)
    assert metrics.cross_effect(hand_grid(), "helpfulness", "safety") == pytest.approx(0.1, abs=1e-12)


def test_reach_by_hand() -> None:
    """Helpfulness: top (.6 + .8 + .5 + .5)/4 = .6, bottom (0 + .2 + .5 + .5)/4 = .3; width .8: .3/.8."""
    assert metrics.reach(hand_grid(), "helpfulness", 0.1, 0.9) == pytest.approx(0.375, abs=1e-12)
    with pytest.raises(ValueError, match="empty reachable range"):
        metrics.reach(hand_grid(), "helpfulness", 0.9, 0.9)


def test_level_curve_and_heat_map_by_hand() -> None:
    """Safety at s = 0: (.1 + .1 + .2 + .4)/4 = .2; at s = 1: (.9 + .5 + .2 + 1)/4 = .65.

    Cells (rows h, columns s): (.1 + .2)/2, (.9 + .2)/2; (.1 + .4)/2, (.5 + 1)/2. Prompt means at s = 0 are
    .1 (A) and .3 (B): a resample gives .1 or .3 with chance 1/4 each, .2 else; the interval is [.1, .3].
    """
    curve = metrics.level_curve(hand_grid(), "safety", resamples=500, seed=1)
    assert [point.level for point in curve] == [0.0, 1.0]
    assert curve[0].achieved == pytest.approx((0.2, 0.1, 0.3), abs=1e-12)
    assert curve[1].achieved.value == pytest.approx(0.65, abs=1e-12)
    assert metrics.heat_map(hand_grid(), "safety") == pytest.approx(np.array([[0.15, 0.55], [0.25, 0.75]]))


def test_pareto_front_by_hand() -> None:
    """(1, 1) beats (1, 0) and (½, ½); (0, 2) and (2, 0) are highest on an axis; equals stay together."""
    points = [(1, 1), (1, 0), (0.5, 0.5), (0, 2), (2, 0), (1, 1)]
    assert metrics.pareto_front(points).tolist() == [True, False, False, True, True, True]


def test_perplexity_ratio_by_hand() -> None:
    """Method: −3 over 2 and −5 over 6 tokens: 1 nat a token. Base: −1 over 2 and −3 over 6: ½. Ratio e^½.

    Resamples: A twice e^(3/2 − ½) = e; B twice e^(5/6 − ½) = e^(1/3); the interval spans them.
    """
    ratio = metrics.perplexity_ratio([-3, -5], [2, 6], [-1, -3], [2, 6], resamples=400, seed=0)
    assert ratio == pytest.approx((math.exp(0.5), math.exp(1 / 3), math.e), abs=1e-12)
    split = metrics.perplexity_ratio(
        [[-1, -2], [-5, 0]], [[1, 1], [6, 0]], [-1, -3], [2, 6], resamples=400, seed=0
    )
    assert split == pytest.approx(ratio, abs=1e-12)


def test_perplexity_ratio_refuses_what_has_no_value() -> None:
    refused: list[tuple[list[float], list[float]]] = [
        ([-1, math.nan], [1, 1]),
        ([-1, -1], [1, 0]),
        ([-1, -1, -1], [1, 1, 1]),
        ([], []),
    ]
    for sums, tokens in refused:
        with pytest.raises(ValueError, match="got"):
            metrics.perplexity_ratio(sums, tokens, [-1, -1], [1, 1], resamples=10, seed=0)


def test_reachable_error_by_hand() -> None:
    """One prompt, candidates (0, 0), (1, .6), levels 0 and 1.

    Requests 00 → first: (0, 0). 01: distances 1 and 1.4 → first: (0, 1). 10: 1 and .6 → second: (0, .6).
    11: second: (0, .4). Means: 0 and (0 + 1 + .6 + .4)/4 = .5.
    """
    found = metrics.reachable_error([[[0.0, 0.0], [1.0, 0.6]]], [[0.0, 1.0]] * 2)
    assert found == pytest.approx([0.0, 0.5], abs=1e-12)


def test_a_constant_method_is_flagged_not_nan() -> None:
    grid = full_grid(np.full((4, 25, 2), 0.6))
    figures = metrics.evaluate(grid, resamples=50, seed=0).attributes["safety"]
    assert metrics.micro_pearson(grid, "safety") == MicroPearson(0.0, True)
    assert metrics.macro_pearson(grid, "safety") == MacroPearson(0.0, 4)
    assert metrics.binary_test(grid, "safety") == BinaryTest(0.5, 1.0)
    assert (figures.constant, figures.constant_resamples, figures.constant_prompts) == (True, 50, 4)
    assert figures.micro_pearson == figures.macro_pearson == (0.0, 0.0, 0.0)
    assert figures.binary_test == (0.5, 0.5, 0.5)


def test_rounding_noise_is_no_signal() -> None:
    """A response scored in two batches may differ by float32 rounding; that is a tie, not a win."""
    grid = random_grid(0)
    still = full_grid(0.5 + 1e-8 * grid.achieved)
    assert metrics.micro_pearson(still, "safety") == MicroPearson(0.0, True)
    assert metrics.macro_pearson(still, "safety") == MacroPearson(0.0, 6)
    assert metrics.binary_test(still, "safety") == BinaryTest(0.5, 1.0)


def test_constant_resamples_are_counted() -> None:
    """Only the second of two prompts moves: resamples that draw the first twice, a quarter, are constant."""
    achieved = np.stack([np.full((25, 2), 0.5), np.array(list(product(LEVELS, repeat=2)))])
    figures = metrics.evaluate(full_grid(achieved), resamples=2000, seed=3).attributes["safety"]
    assert not figures.constant
    assert figures.constant_prompts == 1
    assert 420 < figures.constant_resamples < 580


@LIGHT
@given(SEEDS)
def test_figures_equal_plain_loops(seed: int) -> None:
    """Every figure against loops over prompts and cells, scipy's Pearson and numpy's line fit."""
    grid = random_grid(seed)
    cells = grid.requested[0]
    for index, name in enumerate(BOTH):
        requested, achieved = grid.requested[:, :, index], grid.achieved[:, :, index]
        pooled = pearsonr(requested.ravel(), achieved.ravel()).statistic
        assert metrics.micro_pearson(grid, name).value == pytest.approx(pooled, abs=1e-9)
        each = [0.0] + [pearsonr(cells[:, index], row).statistic for row in achieved[1:]]
        assert metrics.macro_pearson(grid, name).value == pytest.approx(np.mean(each), abs=1e-9)
        wins = ties = pairs = 0.0
        for row in achieved:
            for a, b in product(range(25), repeat=2):
                from_end_to_end = cells[a, index] == 1 and cells[b, index] == 0
                if from_end_to_end and cells[a, 1 - index] == cells[b, 1 - index]:
                    pairs += 1
                    tie = math.isclose(row[a], row[b], abs_tol=1e-9)
                    ties += tie
                    wins += 0.5 if tie else row[a] > row[b]
        assert metrics.binary_test(grid, name) == pytest.approx((wins / pairs, ties / pairs), abs=1e-12)
        slope = np.polyfit(grid.requested[:, :, 1 - index].ravel(), achieved.ravel(), 1)[0]
        assert metrics.cross_effect(grid, name, BOTH[1 - index]) == pytest.approx(slope, abs=1e-9)


def test_intervals_equal_a_plain_bootstrap() -> None:
    """The same draws, each resample built as a grid of its own and measured by the point functions."""
    grid, resamples, seed = random_grid(5, prompts=4), 60, 11
    figures = metrics.evaluate(grid, resamples=resamples, seed=seed, reachable={"safety": (0.1, 0.9)})
    draws = np.random.default_rng(seed).multinomial(4, np.full(4, 0.25), size=resamples)
    redrawn = [full_grid(np.repeat(grid.achieved, counts, axis=0)) for counts in draws]
    safety = figures.attributes["safety"]
    assert figures.attributes["helpfulness"].reach is None and safety.reach is not None
    expected = [
        (safety.micro_pearson, [metrics.micro_pearson(each, "safety").value for each in redrawn]),
        (safety.macro_pearson, [metrics.macro_pearson(each, "safety").value for each in redrawn]),
        (safety.mean_absolute_error, [metrics.mean_absolute_error(each, "safety") for each in redrawn]),
        (safety.binary_test, [metrics.binary_test(each, "safety").value for each in redrawn]),
        (safety.reach, [metrics.reach(each, "safety", 0.1, 0.9) for each in redrawn]),
        (
            figures.cross_effects["safety", "helpfulness"],
            [metrics.cross_effect(each, "safety", "helpfulness") for each in redrawn],
        ),
    ]
    for interval, values in expected:
        assert interval[1:] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)
        assert interval.low <= interval.value <= interval.high
    assert safety.micro_pearson.value == pytest.approx(metrics.micro_pearson(grid, "safety").value, abs=1e-12)


def test_intervals_cover_the_truth() -> None:
    """Of 200 experiments with 40 prompts, the 95 % interval of Err holds the true mean in about 190.

    Prompt i misses every request by |e_i|, e_i uniform on [0, 0.4], so the true Err is 0.2.
    """
    cells = np.array(list(product((0.0, 1.0), repeat=2)))
    held = 0
    for seed in range(200):
        misses = np.random.default_rng(seed).uniform(0, 0.4, (40, 1, 1))
        grid = full_grid(cells + misses, (0.0, 1.0))
        error = metrics.evaluate(grid, resamples=200, seed=seed).attributes["safety"].mean_absolute_error
        held += error.low <= 0.2 <= error.high
    assert 175 <= held <= 199


@LIGHT
@given(st.integers(1, 3), st.integers(1, 5))
def test_perfect_control_is_perfect(dials: int, prompts: int) -> None:
    cells = np.array(list(product((0.0, 0.5, 1.0), repeat=dials)))
    grid = full_grid(np.repeat(cells[None], prompts, axis=0), (0.0, 0.5, 1.0))
    figures = metrics.evaluate(grid, resamples=20, seed=0, reachable={grid.attributes[0]: (0.0, 1.0)})
    for each in figures.attributes.values():
        assert each.micro_pearson == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
        assert each.macro_pearson == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
        assert each.mean_absolute_error == (0.0, 0.0, 0.0)
        assert each.binary_test == (1.0, 1.0, 1.0)
        assert (each.tie_rate, each.constant_prompts, each.constant) == (0.0, 0, False)
    assert figures.attributes[grid.attributes[0]].reach == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
    assert all(effect == pytest.approx((0, 0, 0), abs=1e-12) for effect in figures.cross_effects.values())
    assert len(figures.cross_effects) == dials * (dials - 1)


@LIGHT
@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_correlations_ignore_a_rising_line(seed: int, scale: float, shift: float) -> None:
    """Any a·y + b with a > 0 leaves mP, MP and BT; with −a, mP and MP turn their sign and BT mirrors."""
    grid = random_grid(seed)
    up, down = full_grid(scale * grid.achieved + shift), full_grid(shift - scale * grid.achieved)
    for name in BOTH:
        micro, macro = metrics.micro_pearson(grid, name).value, metrics.macro_pearson(grid, name).value
        wins = metrics.binary_test(grid, name).value
        assert metrics.micro_pearson(up, name).value == pytest.approx(micro, abs=1e-9)
        assert metrics.macro_pearson(up, name).value == pytest.approx(macro, abs=1e-9)
        assert metrics.binary_test(up, name).value == pytest.approx(wins, abs=1e-12)
        assert metrics.micro_pearson(down, name).value == pytest.approx(-micro, abs=1e-9)
        assert metrics.macro_pearson(down, name).value == pytest.approx(-macro, abs=1e-9)
        assert metrics.binary_test(down, name).value == pytest.approx(1 - wins, abs=1e-12)


@LIGHT
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3), min_size=1, max_size=12))
def test_pareto_front_equals_its_definition(points: list[tuple[float, ...]]) -> None:
    def beaten(point: tuple[float, ...]) -> bool:
        others = [other for other in points if other != point]
        return any(all(o >= p for o, p in zip(other, point, strict=True)) for other in others)

    front = metrics.pareto_front(points).tolist()
    assert front == [not beaten(point) for point in points]
    assert any(front)


@LIGHT
@given(SEEDS)
def test_reachable_error_bounds_every_choice(seed: int) -> None:
    """Against a loop over prompts and cells; and a random choice has no smaller summed Err."""
    generator = np.random.default_rng(seed)
    candidates = generator.random((3, 4, 2))
    found = metrics.reachable_error(candidates, [LEVELS] * 2)
    best = np.zeros(2)
    chosen = np.zeros(2)
    for prompt, cell in product(candidates, product(LEVELS, repeat=2)):
        best += min((abs(each - cell) for each in prompt), key=lambda miss: float(miss.sum()))
        chosen += abs(prompt[generator.integers(4)] - cell)
    assert found == pytest.approx(best / 75, abs=1e-12)
    assert found.sum() <= chosen.sum() / 75 + 1e-12


def test_rows_become_a_grid_whatever_their_order() -> None:
    rows = [
        EvaluationRow(
            prompt_id=prompt,
            requested={"helpfulness": h, "safety": s},
            text="",
            tokens=1,
            finish="stop",
            generated_tokens=1,
            logprob=-1.0,
            scores={"truth/helpfulness": h / 2 + offset, "truth/safety": s, "reward/safety": 0.0},
        )
        for prompt, offset in (("b", 0.25), ("a", 0.0))
        for s, h in product((1.0, 0.0), repeat=2)
    ]
    grid = Grid.from_rows(rows, attributes=BOTH, levels=(0.0, 1.0), scorer="truth")
    assert grid.requested[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert grid.outcome("helpfulness").tolist() == [[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]]
    with pytest.raises(ValueError, match="different numbers of cells"):
        Grid.from_rows(rows[:-1], attributes=BOTH, levels=(0.0, 1.0), scorer="truth")
    with pytest.raises(ValueError, match="no row at all"):
        Grid.from_rows([], attributes=BOTH, levels=(0.0, 1.0), scorer="truth")


def test_a_grid_refuses_what_has_no_value() -> None:
    good = random_grid(0)
    broken = good.achieved.copy()
    broken[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="got 1 NaN or infinite"):
        full_grid(broken)
    with pytest.raises(ValueError, match="allowed is the same"):
        Grid(BOTH, LEVELS, good.requested, good.achieved[:, :5])
    with pytest.raises(ValueError, match="different cells"):
        Grid(BOTH, LEVELS, np.concatenate([good.requested[:1, ::-1], good.requested[1:]]), good.achieved)
    with pytest.raises(ValueError, match="off the grid"):
        Grid(BOTH, (0.0, 0.5, 1.0), good.requested, good.achieved)
    with pytest.raises(ValueError, match="helpfulness is not requested at both"):
        Grid(BOTH, LEVELS, good.requested[:, :20], good.achieved[:, :20])
    diagonal = [cell for cell in range(25) if good.requested[0, cell, 0] == good.requested[0, cell, 1]]
    partial = Grid(BOTH, LEVELS, good.requested[:, diagonal], good.achieved[:, diagonal])
    with pytest.raises(ValueError, match="no two cells differ in this dial alone"):
        metrics.binary_test(partial, "safety")
    with pytest.raises(ValueError, match="no response was requested at"):
        metrics.heat_map(partial, "safety")


def test_json_holds_the_documented_keys() -> None:
    written = metrics.evaluate(random_grid(1), resamples=20, seed=0).to_json()
    assert set(written) == {"attributes", "cross_effect"}
    assert set(written["cross_effect"]) == {"safety_by_helpfulness", "helpfulness_by_safety"}
    assert {"mP", "MP", "Err", "BT", "tie_rate", "constant_prompts"} <= set(written["attributes"]["safety"])
    assert set(written["attributes"]["safety"]["mP"]) == {"value", "low", "high"}
    assert written["attributes"]["safety"]["constant_prompts"] == 1


def test_setting_means_by_hand() -> None:
    """Cell (0, 1) of the hand grid: helpfulness (0.2 + 0.5) / 2 = 0.35, safety (0.9 + 0.2) / 2 = 0.55."""
    means = metrics.setting_means(hand_grid())
    assert [tuple(each.requested.values()) for each in means] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert means[1].achieved == pytest.approx({"helpfulness": 0.35, "safety": 0.55})


def test_the_mean_achieved_score_by_hand() -> None:
    """Safety of the hand grid: prompt A (0.1 + 0.9 + 0.1 + 0.5) / 4 = 0.4, prompt B 1.8 / 4 = 0.45: 0.425."""
    found = metrics.evaluate(hand_grid(), resamples=50, seed=0).attributes["safety"].achieved
    assert found.value == pytest.approx(0.425)
    assert 0.4 <= found.low <= found.high <= 0.45


@LIGHT
@given(SEEDS)
def test_setting_means_average_to_the_heat_map_and_to_the_mean(seed: int) -> None:
    grid = random_grid(seed)
    means = metrics.setting_means(grid)
    for name in BOTH:
        landed = [each.achieved[name] for each in means]
        assert landed == pytest.approx(metrics.heat_map(grid, name).ravel().tolist())
        assert np.mean(landed) == pytest.approx(float(grid.outcome(name).mean()))
