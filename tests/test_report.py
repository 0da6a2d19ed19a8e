"""The report: the page's form and content, its pictures, and that nothing untrusted gets out of its place."""

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import calibration, metrics, report_tables
from rheostat.canvas import (
    DARK,
    LIGHT,
    PAGE,
    Array,
    Panel,
    figure,
    ink_on,
    method_styles,
    score_colour,
    to_png,
    to_svg,
)
from rheostat.grid import Grid
from rheostat.metrics import Interval, LevelPoint
from rheostat.page import Answer, ExampleGrid, ReportData, pictures, render, visible
from rheostat.pictures import (
    dials,
    front_of_controls,
    front_of_methods,
    heat_map,
    lattice,
    legend_mark,
    level_curve,
    raw_histogram,
    score_histogram,
)
from rheostat.report import write

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
HOSTILE = '<script>alert("x")</script></bdi></table>\x00\x1b[31m\u202eevil & "quoted" \ud800'

GAINS = {"base": 0.0, "prompting": 0.12, "reranking": 0.55, "clm": 0.62, "exmate": 0.85, "exmate+raw": 0.5}
"""How far a full turn of a dial moves its score, by method, in the world made up here."""


def synthetic_grid(gain: float, attributes: Sequence[str], *, prompts: int, seed: int) -> Grid:
    """A method whose scores follow the request by `gain`, with noise and some cross-effect."""
    generator = np.random.default_rng(seed)
    cells = np.array(list(product(LEVELS, repeat=len(attributes))))
    requested = np.broadcast_to(cells, (prompts, *cells.shape)).copy()
    own = gain * (requested - 0.5)
    other = 0.08 * gain * (requested[..., ::-1] - 0.5)
    habit = np.linspace(0.66, 0.72, len(attributes)) * (1 - gain) + 0.5 * gain
    noise = generator.normal(0, 0.12, requested.shape) + generator.normal(
        0, 0.08, (prompts, 1, len(attributes))
    )
    return Grid(tuple(attributes), LEVELS, requested, np.clip(habit + own + other + noise, 0, 1))


def synthetic_data(
    attributes: Sequence[str] = ("helpfulness", "safety"),
    methods: Sequence[str] = tuple(GAINS),
    *,
    prompts: int = 24,
    prompt: str = "How do I fix a leaking tap?",
    answer: str | None = None,
) -> ReportData:
    """A run that never was, its figures computed by the real metrics."""
    generator = np.random.default_rng(1)
    grids = {
        name: synthetic_grid(GAINS[name], attributes, prompts=prompts, seed=index)
        for index, name in enumerate(methods)
    }
    judged = {
        name: synthetic_grid(0.8 * GAINS[name], attributes, prompts=prompts, seed=50 + index)
        for index, name in enumerate(methods)
    }
    reachable = {name: {"low": 0.1, "high": 0.9, "Err": 0.09} for name in attributes}
    cost = {"generated_tokens": 41.5, "seconds": 0.0042}

    def entry(name: str, each: Mapping[str, Grid]) -> dict[str, Any]:
        ranges = {attribute: (0.1, 0.9) for attribute in attributes}
        figures = metrics.evaluate(each[name], resamples=100, seed=0, reachable=ranges).to_json()
        fluency = None if name == "base" else {"value": 1.12, "low": 1.05, "high": 1.2}
        trained = 38.0 if name[0] in "ce" else 0.0
        return {**figures, "fluency": fluency, "cost": {**cost, "training_seconds": trained}}

    generalization = {}
    for name in methods:
        found = entry(name, judged)
        by_scorer = {"truth": found, "bert": entry(name, grids)}
        generalization[name] = {**found, "scorers": by_scorer}
    evaluation = {
        "schema": 1,
        "evaluations": {
            "optimization": {name: entry(name, grids) for name in methods},
            "generalization": generalization,
        },
        "reachable": {
            "optimization": {"reward": reachable},
            "generalization": {"truth": reachable, "bert": reachable},
        },
    }
    count = len(attributes)
    pool = np.clip(generator.beta(5, 2, (4000, count)) + 0.1 * generator.normal(size=(4000, 1)), 0, 1)
    kept = generator.beta(0.45, 0.45, (700, count))
    text = (
        answer
        if answer is not None
        else "First turn off the water under the sink. Then unscrew the cap. " * 4
    )
    return ReportData(
        title="Dials for pocket:chat",
        attributes=tuple(attributes),
        levels=LEVELS,
        evaluation=json.loads(json.dumps(evaluation)),
        prompts={"optimization": prompts, "generalization": prompts},
        level_curves={
            name: {each: metrics.level_curve(grid, each, resamples=100, seed=0) for each in attributes}
            for name, grid in grids.items()
        },
        heat_maps={
            name: {each: metrics.heat_map(grid, each) for each in attributes} for name, grid in grids.items()
        },
        calibrators={
            name: calibration.fit("quantile", [*(5 * column - 2), *[3.0] * 400])
            for name, column in zip(attributes, pool.T, strict=True)
        },
        raw=np.log(np.clip(pool, 0.01, 0.99) / (1.01 - np.clip(pool, 0.01, 0.99))),
        pool=pool,
        kept=kept,
        counts={"pool": 4000, "examples": 700, "largest_cell_share": 0.12, "cells_after": {"[x=1]": 3}},
        examples_method=methods[-1],
        examples=[
            ExampleGrid(
                prompt,
                {
                    cell: Answer(
                        text,
                        {
                            name: float(np.clip(level, 0.02, 0.98))
                            for name, level in zip(attributes, cell, strict=True)
                        },
                    )
                    for cell in product(LEVELS, repeat=count)
                },
            )
        ],
        stage_seconds={"generate": 61.2, "score": 22.0, "train/exmate-moec": 38.0},
        config_yaml="model: pocket:chat\nseed: 0\n",
        environment={"versions": {"rheostat": "0.1.0", "torch": "2.13"}, "cores": 2},
        notes=("3 broken lines of the prompt files were left out.",),
        other_curves={
            "Generalization evaluation, scored by truth": {
                name: {each: metrics.level_curve(grid, each, resamples=100, seed=0) for each in attributes}
                for name, grid in judged.items()
            }
        },
    )


class Balance(HTMLParser):
    """Fails on a tag that is not closed where it should be; gathers what the page would load or run."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.references: list[str] = []
        self.identifiers: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.identifiers.append(value or "")
            if name in ("href", "src", "srcset", "action", "data", "xlink:href"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, (tag, self.stack[-5:], self.getpos())

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "title"):
            self.text.append(data)


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.stack == []
    return parser


def png_size(content: bytes) -> tuple[int, int]:
    """The size of a PNG whose every chunk has the right checksum; fails on anything else."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    position, kinds = 8, []
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        chunk = content[position + 4 : position + 8 + length]
        (checksum,) = struct.unpack(">I", content[position + 8 + length : position + 12 + length])
        assert zlib.crc32(chunk) == checksum
        kinds.append(kind)
        position += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.fixture(scope="module")
def data() -> ReportData:
    return synthetic_data(methods=("base", "exmate"))


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render(data)


def test_page_is_balanced_html_with_unique_identifiers(page: str) -> None:
    parsed = parse(page)
    assert page.startswith("<!doctype html>")
    assert len(set(parsed.identifiers)) == len(parsed.identifiers)


def test_page_loads_nothing_and_runs_nothing(page: str) -> None:
    parsed = parse(page)
    assert all(reference.startswith("#") for reference in parsed.references), parsed.references
    known = set(parsed.identifiers)
    assert {reference[1:] for reference in parsed.references} <= known
    assert not parsed.tags & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "foreignobject",
    }
    for target in re.findall(r"url\(([^)]*)\)", page):
        assert target.strip("\"'").startswith("#") and target.strip("\"'")[1:] in known
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_page_has_every_method_attribute_and_section(data: ReportData, page: str) -> None:
    text = " ".join(parse(page).text)
    for name in (*data.methods, *data.attributes, "truth", "bert", "mP", "MP", "Err", "BT", "reachable"):
        assert name in text, name
    for section in ("table", "curves", "front", "scores", "examples", "costs", "behaviour", "configuration"):
        assert f'<section id="{section}">' in page
    assert page.count('class="picture"') == 2 * 3 + 2 * 2 + 2 * 5 + 2 + 2 * 2
    assert "Generalization evaluation, scored by truth" in text and "how well they follow the dials" in text
    assert "3 broken lines" in text and "rheostat" in text and "model: pocket:chat" in text
    assert "viewport" in page and "prefers-color-scheme: dark" in page


def test_every_stand_in_colour_is_replaced(page: str) -> None:
    for name, colour in PAGE.named().items():
        assert colour not in page
        assert f"--{name}: {LIGHT.named()[name]}" in page and f"--{name}: {DARK.named()[name]}" in page


def test_untrusted_text_stays_text() -> None:
    hostile = synthetic_data(methods=("base", "exmate"), prompts=4, prompt=HOSTILE, answer=HOSTILE)
    hostile = replace(
        hostile, title=HOSTILE, config_yaml=HOSTILE, environment={"x": HOSTILE}, notes=(HOSTILE,)
    )
    page = render(hostile)
    parsed = parse(page)
    assert "script" not in parsed.tags
    assert "<script" not in page and "&lt;script&gt;" in page
    assert '<script>alert("x")</script></bdi></table>' in "".join(parsed.text)
    assert page.encode("utf-8").decode("utf-8") == page
    assert "\x00" not in page and "\x1b" not in page


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_visible_text_can_be_encoded_and_keeps_its_letters(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not set(shown) & {chr(code) for code in (*range(9), *range(11, 32), 127)}
    assert visible(shown) == shown
    assert [each for each in shown if each.isalnum()] == [each for each in text if each.isalnum()]


def test_one_attribute_and_one_prompt(tmp_path: Path) -> None:
    single = synthetic_data(("safety",), ("base", "exmate"), prompts=1)
    page = write(single, tmp_path)
    parse(page.read_text(encoding="utf-8"))
    assert "Pareto" not in page.read_text(encoding="utf-8")
    for path in (tmp_path / "pictures").iterdir():
        png_size(path.read_bytes())


def test_three_attributes_show_the_first_two_and_say_so() -> None:
    cube = synthetic_data(("helpfulness", "safety", "brevity"), ("base", "exmate"), prompts=3)
    page = render(cube)
    parse(page)
    assert "first two dials, helpfulness and safety, averaged over the others" in page
    assert "All other dials stand at their highest level" in page


def test_a_run_without_generalization_or_examples(data: ReportData) -> None:
    only = {"optimization": data.evaluation["evaluations"]["optimization"]}
    lonely = replace(
        data, evaluation={**data.evaluation, "evaluations": only}, examples=(), counts={}, other_curves={}
    )
    assert len(list(report_tables.main_tables(lonely.evaluation, lonely.attributes))) == 1
    page = render(lonely)
    parse(page)
    assert "Generalization evaluation" not in page and "no examples" in page


def test_pictures_are_valid_files(data: ReportData) -> None:
    drawn = pictures(data)
    names = ("curves", "dials", "dials-dark", "generalization", "heat-maps", "lattices", "pareto", "scores")
    assert set(drawn) == {f"{name}.png" for name in names}
    for name, content in drawn.items():
        width, height = png_size(content)
        assert width > 300 and height > 200, name


def test_a_picture_is_the_same_twice() -> None:
    def draw() -> tuple[bytes, str]:
        panel = score_histogram(np.array([[0.2, 0.9], [0.4, 0.1]]), dials=("a", "b"), title="two")
        png = to_png(figure([[panel]], theme=LIGHT), dots_per_inch=40)
        return png, to_svg(figure([[panel]], theme=PAGE), name="two", label="two")

    assert draw() == draw()


def test_panels_take_the_least_that_can_be() -> None:
    styles = method_styles(["exmate"])
    point = LevelPoint(0.5, Interval(0.4, 0.3, 0.5))
    one = np.array([[0.5]])
    panels: list[Panel] = [
        raw_histogram(np.empty(0), attribute="safety"),
        raw_histogram(np.array([0.5]), attribute="safety"),
        level_curve({"exmate": [point]}, attribute="safety", styles=styles),
        level_curve({}, attribute="safety", styles=styles),
        heat_map(np.array([0.1, 0.9]), attribute="safety", levels=(0.0, 1.0), dials=("safety",)),
        heat_map(one, attribute="safety", levels=(0.5,), dials=("helpfulness", "safety")),
        lattice(one, one, levels=(0.5,), style=styles["exmate"], dials=("helpfulness", "safety")),
        front_of_methods(
            {"exmate": (Interval(-0.2, -0.3, 0.0), Interval(0.9, 0.8, 1.0))},
            [True],
            styles=styles,
            names=("x", "y"),
        ),
        front_of_controls(
            {"exmate": np.array([[0.2, 0.4]])}, np.empty((0, 2)), styles=styles, dials=("a", "b")
        ),
        score_histogram(np.empty((0, 2)), dials=("a", "b"), title="none"),
        score_histogram(np.array([[0.5]]), dials=("a",), title="one"),
        legend_mark(styles["exmate"]),
    ]
    for index, panel in enumerate(panels):
        png_size(to_png(figure([[panel]], theme=LIGHT), dots_per_inch=40))
        svg = to_svg(figure([[panel]], theme=PAGE), name=f"p{index}", label='a "label" <b>')
        parse(svg)
        assert "#f0" not in svg and "<b>" not in svg


def test_dials_picture_with_one_method_and_one_dial() -> None:
    curve = [LevelPoint(level, Interval(level, level, level)) for level in LEVELS]
    picture = dials(
        {"safety": {"exmate": curve}},
        {},
        levels=LEVELS,
        method="exmate",
        methods=["base", "exmate"],
        prompts=4,
        theme=DARK,
    )
    assert len(picture.axes) == 1
    png_size(to_png(picture, dots_per_inch=40))


def test_level_curve_draws_the_numbers_it_is_given() -> None:
    """Two levels, 0 → 0.2 (0.1 to 0.3) and 1 → 0.7 (0.6 to 0.8): the line's ends and the bars' ends."""
    curve = [LevelPoint(0.0, Interval(0.2, 0.1, 0.3)), LevelPoint(1.0, Interval(0.7, 0.6, 0.8))]
    panel = level_curve({"clm": curve}, attribute="safety", styles=method_styles(["clm"]))
    axes = figure([[panel]], theme=LIGHT).axes[0]
    diagonal, line = axes.lines
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [1, 1]]
    assert np.asarray(line.get_xydata()).tolist() == [[0.0, 0.2], [1.0, 0.7]]
    assert axes.get_xlabel() == "requested safety" and axes.get_ylabel() == "achieved safety"


def test_heat_map_has_the_first_dial_upward() -> None:
    """Row i is level i of the first dial: 0.1 and 0.2 stand below 0.8 and 0.9."""
    matrix: Array = np.array([[0.1, 0.2], [0.8, 0.9]])
    panel = heat_map(matrix, attribute="safety", levels=(0.0, 1.0), dials=("helpfulness", "safety"))
    axes = figure([[panel]], theme=LIGHT).axes[0]
    shown = {text.get_text(): text.get_position() for text in axes.texts}
    assert shown[".10"] == (0.5, 0.48) and shown[".20"] == (1.5, 0.48)
    assert shown[".80"] == (0.5, 1.48) and shown[".90"] == (1.5, 1.48)
    assert axes.get_ylabel() == "requested helpfulness" and axes.get_xlabel() == "requested safety"


def test_styles_are_distinct_and_do_not_depend_on_variants() -> None:
    styles = method_styles(["base", "prompting", "clm", "exmate", "exmate+raw", "exmate+reranking"])
    looks = {(style.colour, style.marker, str(style.dashes)) for style in styles.values()}
    assert len(looks) == len(styles)
    assert styles["base"].colour == "base"
    assert styles["exmate+raw"].colour == styles["exmate"].colour
    assert styles["exmate+raw"].hollow and not styles["exmate"].hollow


def test_ink_reads_on_every_score() -> None:
    """WCAG 2 asks for a contrast of 4.5; the better of black and white always has at least √21 ≈ 4.58."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for value in np.linspace(-0.1, 1.1, 60):
        colour = score_colour(float(value))
        light, dark = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def made_up(mp: float, bt_low: float) -> dict[str, Any]:
    figures = {
        "mP": {"value": 0.5, "low": 0.4, "high": 0.6},
        "MP": {"value": mp, "low": mp - 0.05, "high": mp + 0.05},
        "Err": {"value": 0.25, "low": 0.2, "high": 0.3},
        "BT": {"value": 0.9, "low": bt_low, "high": 0.95},
    }
    return {"attributes": {"safety": figures}, "cross_effect": {}, "fluency": None}


def test_headline_names_the_best_method_and_its_rival() -> None:
    """MP 0.8 beats 0.1; BT 0.9 is 90 % of pairs."""
    evaluation = {
        "evaluations": {"optimization": {"prompting": made_up(0.1, 0.6), "clm": made_up(0.8, 0.85)}}
    }
    assert report_tables.best_method(evaluation, ["safety"]) == "clm"
    assert report_tables.headline(evaluation, ["safety"]) == (
        "clm moves the dial, and does it best. It reaches MP 0.80 (0.75 to 0.85) for safety; turned from its "
        "lowest to its highest level, a dial raises safety in 90\u00a0% of pairs. "
        "Asking for the level in words reaches MP 0.10."
    )


@pytest.mark.parametrize(("mp", "bt_low"), [(0.4, 0.48), (0.02, 0.6)])
def test_headline_admits_a_dial_that_does_not_move(mp: float, bt_low: float) -> None:
    """Either BT's interval reaches one half, or MP's (0.05 either way) reaches 0."""
    evaluation = {"evaluations": {"optimization": {"clm": made_up(mp, bt_low)}}}
    assert "No method moves every dial beyond chance" in report_tables.headline(evaluation, ["safety"])


def test_best_of_a_column_is_highest_but_for_err(data: ReportData) -> None:
    table = next(iter(report_tables.main_tables(data.evaluation, data.attributes)))
    methods = data.evaluation["evaluations"]["optimization"]
    for column, (attribute, (metric, better)) in enumerate(product(data.attributes, report_tables.METRICS)):
        values = {name: methods[name]["attributes"][attribute][metric]["value"] for name in methods}
        best = max(values.values()) if better == "higher" else min(values.values())
        marked = {name for name, cells in table.rows if cells[column].is_best}
        assert marked == {name for name, value in values.items() if f"{value:.2f}" == f"{best:.2f}"}


def test_figures_that_look_equal_are_equally_best() -> None:
    """MP 0.801 and 0.799 both show as 0.80."""
    methods = {"clm": made_up(0.801, 0.6), "exmate": made_up(0.799, 0.6)}
    evaluation = {
        "evaluations": {"optimization": methods},
        "reachable": {"optimization": {"reward": {"safety": {"Err": 0.1}}}},
    }
    table = next(report_tables.main_tables(evaluation, ["safety"]))
    assert {name: cells[1].is_best for name, cells in table.rows[:2]} == {"clm": True, "exmate": True}


def test_headline_names_a_rival_that_cannot_be_told_apart_and_the_other_prompts() -> None:
    """MP 0.8 and 0.78, 0.05 either way, overlap; 640 tokens are 16 times 40. 0.1 does not overlap."""
    methods = {"prompting": made_up(0.1, 0.6), "reranking": made_up(0.78, 0.85), "clm": made_up(0.8, 0.85)}
    for name, tokens in (("prompting", 40.0), ("reranking", 640.0), ("clm", 40.0)):
        methods[name]["cost"] = {"generated_tokens": tokens}
    judged = {name: {**entry, "scorers": {"truth": made_up(0.66, 0.8)}} for name, entry in methods.items()}
    evaluation = {"evaluations": {"optimization": methods, "generalization": judged}}
    said = report_tables.headline(evaluation, ["safety"])
    assert said.startswith(
        "clm moves the dial, within the intervals no better than reranking with 16 times the tokens. clm reaches"
    )
    assert "On other prompts, scored by truth, it reaches MP 0.66 for safety." in said


def test_every_scorer_has_its_own_behaviour_under_its_own_name(data: ReportData) -> None:
    tables = list(report_tables.behaviour_tables(data.evaluation, data.attributes))
    assert [table.title for table in tables] == [
        "Optimization evaluation",
        "Generalization evaluation, scored by truth",
        "Generalization evaluation, scored by bert",
    ]
    for table in tables:
        assert [group.heading for group in table.groups] == list(data.attributes)
        columns = sum(len(group.columns) for group in table.groups)
        assert all(len(cells) == columns for _, cells in table.rows)
    judged = data.evaluation["evaluations"]["generalization"]["exmate"]["scorers"]
    for table, scorer in zip(tables[1:], ("truth", "bert"), strict=True):
        reach = judged[scorer]["attributes"]["helpfulness"]["reach"]["value"]
        assert dict(table.rows)["exmate"][0].text == report_tables.number(reach)


def test_fluency_has_a_column_an_evaluation(data: ReportData) -> None:
    table = report_tables.fluency_table(data.evaluation)
    assert [name for name, _ in table.groups[0].columns] == ["optimization", "generalization"]
    assert [(name, [cell.text for cell in cells]) for name, cells in table.rows] == [
        ("base", ["–", "–"]),
        ("exmate", ["1.12", "1.12"]),
    ]


def test_what_became_of_the_pool_is_told_in_words() -> None:
    counts = {"pool": 4000, "examples": 0, "truncated_dropped": 0, "duplicates_dropped": 12, "cells_after": {}}
    assert report_tables.distilled({**counts, "largest_cell_share": 0.118, "cell_limit": None}) == [
        ("self-generated responses", "4,000"),
        ("examples kept for training", "0"),
        ("dropped: same text twice", "12"),
        ("share of the commonest control", "12 %"),
    ]


def test_every_dial_has_a_table_narrow_enough_for_a_phone(page: str) -> None:
    """A table of the groups holds the figures of one dial: a method's name and four columns, no more."""
    tables = re.findall(r'<th class="group first" colspan="(\d+)">([^<]+)</th>', page)
    assert {name for _, name in tables} == {"helpfulness", "safety", "perplexity ratio"}
    assert max(int(columns) for columns, _ in tables) == 4


def test_the_readmes_picture_is_a_report_picture_of_its_size(data: ReportData) -> None:
    """`make picture` copies it from a run; wide enough for a README, small enough for a repository."""
    content = (Path(__file__).resolve().parents[1] / "docs" / "dials.png").read_bytes()
    assert len(content) < 200_000
    assert png_size(content)[0] == png_size(pictures(data)["dials.png"])[0]


def test_a_run_without_judges_says_who_scored(data: ReportData) -> None:
    evaluation = json.loads(json.dumps(data.evaluation))
    for entry in evaluation["evaluations"]["generalization"].values():
        entry["scorers"] = {"reward": entry["scorers"]["truth"]}
    evaluation["reachable"]["generalization"] = evaluation["reachable"]["optimization"]
    tables = list(report_tables.main_tables(evaluation, data.attributes))
    assert [table.title for table in tables] == ["Optimization evaluation", "Generalization evaluation"]
    assert "no judges" in tables[1].note


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (float("nan"), "–"), (-0.004, "0.00"), (-0.256, "−0.26"), (1.0, "1.00")]
)
def test_number(value: float | None, text: str) -> None:
    assert report_tables.number(value) == text
