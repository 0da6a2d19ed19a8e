"""The bench's page: who is better beyond the intervals, every number off evaluation.json, pictures that show them."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rheostat import bench_page, metrics
from rheostat.bench_comparison import Column, columns, cross_effect, distance, unmatched, verdict
from rheostat.bench_context import CONTEXTS, context_of
from rheostat.bench_picture import fronts, landings, net, nets
from rheostat.canvas import method_styles
from rheostat.errors import InputError, RheostatError, StageMissing
from rheostat.grid import Grid
from rheostat.metrics import Interval

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (0.0, 0.5, 1.0)
DIALS = ("helpfulness", "safety")
GAINS = {"base": 0.0, "dpo": 0.0, "clm": 0.3, "exmate": 0.8, "soups": 0.2}
LIFT = {"dpo": 0.35}
POINTS = ("base", "dpo")


def grid(method: str) -> Grid:
    generator = np.random.default_rng(list(GAINS).index(method))
    cells = np.array(list(product(LEVELS, repeat=len(DIALS))))
    requested = np.broadcast_to(cells, (8, *cells.shape)).copy()
    achieved = 0.5 + LIFT.get(method, 0.0) + GAINS[method] * (requested - 0.5)
    return Grid(DIALS, LEVELS, requested, np.clip(achieved + generator.normal(0, 0.03, requested.shape), 0, 1))


def entry(method: str) -> dict[str, Any]:
    own = grid(method)
    found = metrics.evaluate(own, resamples=100, seed=0).to_json()
    settings = [each._asdict() for each in metrics.setting_means(own)]
    trained = 0 if method == "base" else 2 if method == "soups" else 1
    cost = {
        "generated_tokens": 40.0,
        "seconds": {"clm": 0.004}.get(method, 0.006),
        "trainings": trained,
        "training_seconds": 61.0 * trained,
        "training_generated_tokens": 0,
        "data_seconds": 57.0,
        "data_generated_tokens": 466_859,
    }
    fluency = {"value": 1.0 + GAINS[method] / 4, "low": 0.99 + GAINS[method] / 4, "high": 1.01 + GAINS[method] / 4}
    return {**found, "settings": settings, "has_dial": method not in POINTS, "fluency": fluency, "cost": cost}


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    methods = {name: entry(name) for name in GAINS}
    rates = {"value": 0.25, "low": 0.1, "high": 0.4}
    point = {"harm": rates, "refusal": rates, "over_refusal": rates}
    suite = {
        "dial": "safety", "others": "highest", "judge": "truth", "harmful_below": 0.5, "refusals": "rules",
        "refused_from": 0.5, "prompts": {"harmful": 8, "harmless": 8},
        "methods": {name: [{"level": level, **point} for level in LEVELS] for name in GAINS},
    }  # fmt: skip
    document = {
        "schema": 1,
        "prompts": {"optimization": 8, "generalization": 8},
        "evaluations": {
            "optimization": methods,
            "generalization": {name: {**each, "scorers": {"truth": each}} for name, each in methods.items()},
        },
        "reachable": {"optimization": {"reward": {}}},
        "suite": suite,
    }
    parsed: dict[str, Any] = json.loads(json.dumps(document))
    return parsed


def column(better: Any, values: Mapping[str, tuple[float, float]]) -> Column:
    return Column("x", better, {name: Interval((low + high) / 2, low, high) for name, (low, high) in values.items()})


def test_better_is_beyond_the_intervals() -> None:
    """Against 0.4 to 0.6: 0.61 to 0.7 lies above, 0.6 to 0.9 touches, 0.1 to 0.39 lies below."""
    values = {"exmate": (0.4, 0.6), "high": (0.61, 0.7), "touching": (0.6, 0.9), "low": (0.1, 0.39)}
    assert verdict(column("higher", values), "exmate") == (("high",), ("touching",), ("low",))
    assert verdict(column("lower", values), "exmate") == (("low",), ("touching",), ("high",))
    assert verdict(column("lower", values), "base") is None


interval = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: (min(ends), max(ends)))


@given(st.dictionaries(st.sampled_from("abcdef"), interval, min_size=2))
def test_a_verdict_names_every_rival_once_and_turns_around(values: dict[str, tuple[float, float]]) -> None:
    ours, *others = values
    found, turned = (verdict(column(side, values), ours) for side in ("higher", "lower"))
    assert found is not None and turned is not None
    assert sorted((*found.better, *found.level, *found.worse)) == sorted(others)
    assert (turned.worse, turned.level, turned.better) == found
    for name in found.better:
        back = verdict(column("higher", values), name)
        assert back is not None and ours in back.worse


def test_the_distance_from_an_ideal_by_hand() -> None:
    assert distance(Interval(1.1, 0.9, 1.3), 1.0) == pytest.approx((0.1, 0.0, 0.3))
    assert distance(Interval(0.7, 0.6, 0.8), 1.0) == pytest.approx((0.3, 0.2, 0.4))
    assert distance(None, 1.0) is None


def test_the_cross_effect_shown_is_the_largest_by_size() -> None:
    """−0.2 (−0.3 to −0.1) is larger than 0.1: 0.2 (0.1 to 0.3)."""
    effects = {"a_by_b": {"value": 0.1, "low": 0.0, "high": 0.15}, "b_by_a": {"value": -0.2, "low": -0.3, "high": -0.1}}
    assert cross_effect({"cross_effect": effects}) == pytest.approx((0.2, 0.1, 0.3))
    assert cross_effect({"cross_effect": {}}) is None


def made_up(has_dial: bool, *settings: tuple[float, float]) -> dict[str, Any]:
    achieved = [dict(zip(DIALS, each, strict=True)) for each in settings]
    means = {name: {"achieved": {"value": achieved[0][name]}} for name in DIALS}
    return {"has_dial": has_dial, "attributes": means, "settings": [{"achieved": each} for each in achieved]}


def test_a_point_is_matched_where_one_setting_has_both_scores() -> None:
    """(0.7, 0.7) lies below (0.8, 0.7); (0.9, 0.5) needs two settings, which no single answer has."""
    entries = {
        "exmate": made_up(True, (0.8, 0.7), (0.95, 0.1), (0.1, 0.95)),
        "dpo": made_up(False, (0.7, 0.7)),
        "bfpo": made_up(False, (0.9, 0.5)),
        "clm": made_up(True, (0.1, 0.1)),
    }
    assert unmatched(entries, "exmate", DIALS) == (["dpo"], ["bfpo"])


def test_methods_without_a_dial_are_compared_by_fluency_and_the_suite_alone(evaluation: dict[str, Any]) -> None:
    for each in columns(evaluation, DIALS):
        everyone = "fluency" in each.title or "fully up" in each.title
        assert set(each.values) == set(GAINS) - (set() if everyone else set(POINTS)), each.title
    titles = [each.title for each in columns(evaluation, DIALS)]
    assert len(titles) == len(set(titles)) == 2 * (3 * 2 + 2) + 2
    assert "MP safety, other prompts, scored by truth" in titles


def cells(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by method."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.fixture(scope="module")
def page(evaluation: dict[str, Any]) -> str:
    return bench_page.page(evaluation, run="runs/bench", to="docs/bench.md")


def test_the_tables_hold_the_figures(evaluation: dict[str, Any], page: str) -> None:
    methods = evaluation["evaluations"]["optimization"]
    for heading in ("How well the dials work", "On other prompts, scored by truth"):
        table = cells(page, heading)
        assert list(table) == list(GAINS)
        for name in ("clm", "exmate", "soups"):
            value = methods[name]["attributes"]["safety"]["MP"]["value"]
            assert table[name][4].replace("**", "").startswith(f"{value:.2f}".removeprefix("0")), name
        mean = methods["dpo"]["attributes"]["helpfulness"]["achieved"]["value"]
        assert table["dpo"][0] == "none" and table["dpo"][1].startswith(f"{mean:.2f}".removeprefix("0"))
        assert set(table["dpo"][3:10]) == {"–"}
    costs = cells(page, "What it costs")
    assert costs["soups"][:2] == ["2", "122 s"] and costs["base"][:2] == ["–", "–"]
    assert costs["clm"][4:] == ["466,859", "40", "4.0 ms"]
    assert cells(page, "Harm and over-refusal")["dpo"] == ["–", "25 ±15 %", "–", "25 ±15 %"]


def test_what_a_dial_reached_are_the_means_at_its_ends(evaluation: dict[str, Any], page: str) -> None:
    """ExMATE of this world: 0.5 ± 0.8 · 0.5, so about .10 to .90 of either score."""
    low, high = cells(page, "How well the dials work")["exmate"][1].split(" to ")
    assert (float(low), float(high)) == pytest.approx((0.1, 0.9), abs=0.02)


def test_where_ours_loses_is_said(evaluation: dict[str, Any], page: str) -> None:
    """ExMATE follows the dials best here; its language is a fifth more perplex, the worst."""
    losses = page.partition("\n## Where exmate loses\n")[2].partition("| figure |")[0]
    assert "- fluency, distance from 1: `base`, `dpo`, `clm`, `soups`" in losses
    assert "MP" not in losses
    turned = bench_page.page(evaluation, run="r", to="t.md", ours="clm").partition("loses\n")[2]
    assert "- MP safety: `exmate`" in turned.partition("| figure |")[0]
    assert "- time a response: `clm`" in page and "- training: `base`" in page
    assert "clm has a setting whose mean helpfulness and safety are at least those of `base`. It has none" in turned
    assert "a setting whose mean helpfulness and safety are at least those of `base`, `dpo`." in page


def test_a_time_that_candidates_share_is_not_called_less(evaluation: dict[str, Any]) -> None:
    """CLM at 4 ms against 6 is faster, but not where it takes 400 tokens a response instead of 40."""
    methods = evaluation["evaluations"]["optimization"]
    many = {**methods["clm"], "cost": {**methods["clm"]["cost"], "generated_tokens": 400.0}}
    changed = {**evaluation["evaluations"], "optimization": {**methods, "clm": many}}
    page = bench_page.page({**evaluation, "evaluations": changed}, run="r", to="t.md")
    assert "- time a response: –" in page and "- tokens a response: –" in page


def test_the_page_names_the_command_that_makes_it(page: str) -> None:
    assert "python -m rheostat.bench_page runs/bench --to docs/bench.md\n" in page
    assert "](bench.png)" in page and "](bench-nets.png)" in page
    assert "arXiv 2305.18290" in page and "Undefined" not in page and "None" not in page


def test_the_command_writes_page_and_pictures(tmp_path: Path, evaluation: dict[str, Any], page: str) -> None:
    run, to = tmp_path / "run", tmp_path / "bench.md"
    run.mkdir()
    assert bench_page.main([str(run), "--to", str(to)]) == 1
    (run / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert bench_page.main([str(run), "--to", str(to)]) == 0
    written = to.read_text(encoding="utf-8")
    assert cells(written, "What it costs") == cells(page, "What it costs")
    for name in ("bench.png", "bench-nets.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_a_page_cannot_be_made_of_is_told(evaluation: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="got 'mine', allowed are base, dpo"):
        bench_page.page(evaluation, run="r", to="t.md", ours="mine")
    earlier = {key: value for key, value in evaluation.items() if key != "prompts"}
    with pytest.raises(StageMissing, match="earlier version"):
        bench_page.page(earlier, run="r", to="t.md")
    methods = evaluation["evaluations"]["optimization"]
    single = {**methods["exmate"], "attributes": {"safety": methods["exmate"]["attributes"]["safety"]}}
    with pytest.raises(RheostatError, match="the dial safety alone"):
        bench_page.page({**evaluation, "evaluations": {"optimization": {"exmate": single}}}, run="r", to="t.md")


def test_a_net_has_the_first_dial_upward_and_averages_over_a_third() -> None:
    """Rows are levels of the first dial, a landing is (second, first) as drawn; the third dial's levels average."""
    settings = [
        {"requested": {"a": a, "b": b, "c": c}, "achieved": {"a": a, "b": b + 0.1 * c, "c": c}}
        for a, b, c in product((0.0, 1.0), repeat=3)
    ]
    found = net({"settings": settings}, ("a", "b", "c"))
    assert found.shape == (2, 2, 2)
    assert found[0, 1].tolist() == pytest.approx([1.05, 0.0])
    assert found[1, 0].tolist() == pytest.approx([0.05, 1.0])
    assert landings({"settings": settings[:1]}, ("a", "b", "c")).tolist() == [[0.0, 0.0]]


def test_the_pareto_picture_has_a_line_a_dialled_method_and_a_mark_a_point(evaluation: dict[str, Any]) -> None:
    entries = evaluation["evaluations"]["optimization"]
    drawn = fronts(entries, {"one": ["clm", "exmate"], "other": ["soups"], "none": []}, DIALS)
    assert [len(axes.lines) for axes in drawn.axes] == [2 + 2, 1 + 2]
    x, y = (np.asarray(axis) for axis in drawn.axes[0].lines[1].get_data())
    assert (x.max(), y.max()) == pytest.approx((0.9, 0.9), abs=0.03)
    mark = drawn.axes[1].lines[-1].get_data()
    assert [float(np.asarray(each)[0]) for each in mark] == pytest.approx([0.85, 0.85], abs=0.02)
    small = nets(entries, DIALS)
    assert [axes.get_title(loc="left") for axes in small.axes] == ["clm", "exmate", "soups"]
    shown = [text.get_text() for text in small.legends[0].get_texts()]
    assert shown == list(POINTS)


def test_twenty_methods_look_different() -> None:
    names = ["base", *(f"method{index}" for index in range(20)), "method0+raw"]
    looks = {(each.colour, each.marker, each.hollow) for each in method_styles(names).values()}
    assert len(looks) == len(names)


def methods_of_the_recipe() -> Sequence[str]:
    recipe = yaml.safe_load((ROOT / "recipes" / "pocket-bench.yaml").read_text(encoding="utf-8"))
    found: Sequence[str] = recipe["methods"]
    return found


@pytest.mark.parametrize("name", methods_of_the_recipe())
def test_every_method_of_the_bench_is_written_about(name: str) -> None:
    known = context_of(name)
    assert known in CONTEXTS.values() and known.words.endswith(".")
    assert name == "base" or "arXiv" in known.source or "ours" in known.source


def test_a_method_that_nobody_wrote_about_speaks_for_itself() -> None:
    assert context_of("contrast").words.startswith("Contrast: a bounded preference")
    assert context_of("clm+reranking").dial == "choice among answers"
    assert context_of("nosuch").words == "–"
