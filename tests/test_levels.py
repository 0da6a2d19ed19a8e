"""Each dial on levels of its own: what is asked, learned and measured where a dial may not be turned all the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import metrics, plugins
from rheostat.canvas import LIGHT, figure, method_styles
from rheostat.config import DistilConfig
from rheostat.control import LEVELS, ControlFormat, nearest_level
from rheostat.grid import Grid
from rheostat.moec import moec, raw
from rheostat.pictures import heat_map, lattice
from rheostat.recipe import load_config, to_yaml, validate
from rheostat.records import EvaluationRow, Message, Prompt, ScoredResponse
from rheostat.rundir import fingerprint

BOTH = (plugins.attribute("helpfulness"), plugins.attribute("safety"))
FLOORED = ControlFormat(BOTH, {"helpfulness": (0.0, 1.0), "safety": (0.5, 0.75, 1.0)})
RECIPE = {"model": "m", "prompts": "p", "rewards": {"safety": "s", "helpfulness": "h"}}
EVERYTHING = DistilConfig(per_corner=8, per_extreme=8, minimum_contrast=0.0, maximum_cell_share=1.0)

level_sets = st.sets(st.integers(0, 10_000), min_size=2, max_size=6).map(
    lambda steps: tuple(step / 10_000 for step in sorted(steps))
)


def pool(points: list[tuple[float, float]]) -> dict[str, list[ScoredResponse]]:
    """One prompt's responses at (helpfulness, safety)."""
    rows = []
    for index, (helpfulness, safety) in enumerate(points):
        scores = {"helpfulness": helpfulness, "safety": safety}
        rows.append(ScoredResponse("p", index, f"answer {index}", 3, "stop", scores, scores))
    return {"p": rows}


PROMPTS = {"p": Prompt("p", (Message("user", "ask"),), "train", "test")}


def test_the_grid_is_the_product_of_each_dials_own_levels() -> None:
    points = [tuple(control.values()) for control in FLOORED.grid()]
    assert points == [(0, 0.5), (0, 0.75), (0, 1), (1, 0.5), (1, 0.75), (1, 1)]


def test_a_dial_is_quantised_on_its_own_levels_and_never_below() -> None:
    assert [FLOORED.quantise("safety", value) for value in (0, 0.49, 0.625, 0.9)] == [0.5, 0.5, 0.75, 1]
    assert FLOORED.resolve({"safety": 0, "helpfulness": 0.4}) == {"helpfulness": 0.0, "safety": 0.5}
    assert FLOORED.resolve({}) == {"helpfulness": 1.0, "safety": 1.0}


def test_a_list_a_dial_in_a_recipe() -> None:
    config = validate({**RECIPE, "levels": {"safety": [0.5, 0.75, 1]}})
    form = config.control_format
    assert form.levels_of("safety") == (0.5, 0.75, 1.0)
    assert form.levels_of("helpfulness") == LEVELS
    assert form.is_restricted and not validate(RECIPE).control_format.is_restricted
    assert validate({**RECIPE, "levels": [0.5, 1]}).control_format.is_restricted


def test_a_dial_is_restricted_from_the_command_line() -> None:
    config = load_config("pocket", ["levels.safety=[0.5, 1]"])
    assert config.control_format.levels_of("safety") == (0.5, 1.0)
    assert "levels:\n  safety:\n  - 0.5\n  - 1.0\n" in to_yaml(config)


def test_a_list_of_every_dial_keeps_its_fingerprint() -> None:
    config = validate({**RECIPE, "levels": [0, 0.5, 1]})
    assert config.model_dump()["levels"] == [0.0, 0.5, 1.0]
    assert fingerprint({"levels": config.control_format.levels}) == fingerprint({"levels": [0.0, 0.5, 1.0]})


def test_which_scores_a_dial_holds_by_hand() -> None:
    """0.25 is of the full grid and below 0.5: what is nearer to it than to 0.5 (below 0.375) is not the dial's.

    Levels that lie between a dial's own forbid nothing: on (0, 1) 0.5 is held.
    """
    held = [score for score in (0.0, 0.3, 0.374, 0.375, 0.5, 0.6, 1.0) if FLOORED.holds("safety", score)]
    assert held == [0.375, 0.5, 0.6, 1.0]
    assert all(FLOORED.holds("helpfulness", score) for score in (0.0, 0.25, 0.5, 1.0))
    capped = ControlFormat(BOTH, {"helpfulness": (0.0, 0.5), "safety": LEVELS})
    assert [capped.holds("helpfulness", score) for score in (0.5, 0.62, 0.63, 1.0)] == [True, True, False, False]


@settings(max_examples=200, deadline=None)
@given(level_sets, st.floats(0, 1))
def test_what_a_dial_does_not_hold_lies_outside_its_levels(levels: tuple[float, ...], score: float) -> None:
    form = ControlFormat(BOTH, levels)
    inside = levels[0] <= score <= levels[-1]
    nearest = nearest_level(score, sorted({*levels, *LEVELS}))
    if inside:
        assert form.holds("safety", score)
    elif not levels[0] <= nearest <= levels[-1]:
        assert not form.holds("safety", score)
    if (levels[0], levels[-1]) == (0.0, 1.0):
        assert form.holds("safety", score) and not form.is_restricted


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
    level_sets,
    level_sets,
    st.integers(0, 99),
)
def test_nothing_from_beyond_a_dials_range_is_ever_learned(
    points: list[tuple[float, float]], helpfulness: tuple[float, ...], safety: tuple[float, ...], seed: int
) -> None:
    form = ControlFormat(BOTH, {"helpfulness": helpfulness, "safety": safety})
    kept = moec(pool(points), PROMPTS, control_format=form, options=EVERYTHING)
    drawn = raw(pool(points), PROMPTS, control_format=form, count=8, seed=seed)
    for example in (*kept.examples, *drawn.examples):
        for name in form.names:
            lowest, *_, highest = form.levels_of(name)
            assert form.holds(name, example.scores[name])
            assert lowest <= example.control[name] <= highest
    for counts in (kept.counts, drawn.counts):
        assert counts.outside_dropped + counts.examples + counts.middling_dropped == len(points)


def test_an_unsafe_response_is_left_out_and_not_raised_to_the_floor() -> None:
    """Safety .1 and .37 are nearer to 0 and .25 than to .5: out. .4 is learned as .5, the corner (h, .5) its own."""
    points = [(0.9, 0.1), (0.9, 0.37), (0.9, 0.4), (0.1, 0.45), (0.9, 0.8), (0.1, 0.95)]
    kept = moec(pool(points), PROMPTS, control_format=FLOORED, options=EVERYTHING)
    assert [example.response for example in kept.examples] == ["answer 2", "answer 3", "answer 4", "answer 5"]
    assert [example.control["safety"] for example in kept.examples] == [0.5, 0.5, 0.75, 1.0]
    assert kept.counts.outside_dropped == 2
    drawn = raw(pool(points), PROMPTS, control_format=FLOORED, count=8, seed=0)
    assert [example.control["safety"] for example in drawn.examples] == [0.5, 0.5, 0.8, 0.95]


def test_a_corner_is_the_lowest_level_that_is_allowed() -> None:
    """One a corner, none of the extremes: (0, .5) is nearest to safety .5, not to the least safe of those held."""
    one = DistilConfig(per_corner=1, per_extreme=1, minimum_contrast=0.0, maximum_cell_share=1.0)
    points = [(0.0, 0.38), (0.0, 0.5), (1.0, 0.52), (0.0, 1.0), (1.0, 1.0), (1.0, 0.6)]
    kept = moec(pool(points), PROMPTS, control_format=FLOORED, options=one)
    # 0 is the worst of safety; 5 is of no corner, no best and no worst.
    assert [example.response for example in kept.examples] == [f"answer {index}" for index in range(5)]


def rows_of(form: ControlFormat) -> list[EvaluationRow]:
    """A method that achieves what is asked on helpfulness, and half of it on safety."""
    return [
        EvaluationRow(
            "p", control, "text", 1, "stop", 1, -1.0,
            {"r/helpfulness": control["helpfulness"], "r/safety": control["safety"] / 2},
        )
        for control in form.grid()
    ]  # fmt: skip


def test_figures_on_levels_that_differ_by_hand() -> None:
    """Safety: |.5 − .25|, |.75 − .375|, |1 − .5| average .375; from .5 to 1 it rises by .25, half a unit a turn.

    Of the reachable range 0 to 1 it covers .25. The reachable Err of the one candidate (1, .5) is ½ on helpfulness
    (|0 − 1|, |1 − 1|) and (0 + .25 + .5) / 3 = .25 on safety.
    """
    grid = Grid.from_rows(rows_of(FLOORED), attributes=FLOORED.names, levels=FLOORED.levels, scorer="r")
    assert metrics.mean_absolute_error(grid, "safety") == pytest.approx(0.375)
    assert metrics.binary_test(grid, "safety").value == 1 == metrics.binary_test(grid, "helpfulness").value
    assert metrics.micro_pearson(grid, "safety").value == pytest.approx(1)
    assert metrics.cross_effect(grid, "safety", "safety") == pytest.approx(0.5)
    assert metrics.reach(grid, "safety", 0.0, 1.0) == pytest.approx(0.25)
    assert metrics.heat_map(grid, "safety").tolist() == [[0.25, 0.375, 0.5]] * 2
    levels = [FLOORED.levels_of(name) for name in FLOORED.names]
    assert metrics.reachable_error([[[1.0, 0.5]]], levels).tolist() == pytest.approx([0.5, 0.25])
    assert [point.level for point in metrics.level_curve(grid, "safety", resamples=10, seed=0)] == [0.5, 0.75, 1]


def test_a_grid_off_a_dials_own_levels_is_refused() -> None:
    rows = rows_of(ControlFormat(BOTH, (0.0, 1.0)))
    with pytest.raises(ValueError, match="safety: got requests off the grid"):
        Grid.from_rows(rows, attributes=FLOORED.names, levels=FLOORED.levels, scorer="r")


def test_pictures_of_levels_that_differ() -> None:
    """Two levels upward, three to the right; perfect control spans what may be asked: safety from 0.5."""
    cells = np.array([[0.25, 0.375, 0.5], [0.3, 0.4, 0.6]])
    shown = heat_map(cells, attribute="safety", levels=FLOORED.levels, dials=FLOORED.names)
    axes = figure([[shown]], theme=LIGHT).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "0.75", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]
    style = method_styles(["clm"])["clm"]
    net = lattice(cells, cells, levels=FLOORED.levels, style=style, dials=FLOORED.names)
    lines = [np.asarray(line.get_xydata()).tolist() for line in figure([[net]], theme=LIGHT).axes[0].lines[:5]]
    assert [[0.5, 0], [0.5, 1]] in lines and [[0.5, 1], [1, 1]] in lines
    assert [[0.75, 0], [0.75, 1]] in lines and [[0, 0], [0, 1]] not in lines
