"""The report's page and pictures, made of plain data.

`render` gives one self-contained page, `pictures` the same pictures as PNG files; both are pure. Prompts and
responses are untrusted text: the page escapes them, isolates their writing direction, makes control
characters visible, and forbids itself by policy to load anything or to run a script.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rheostat import dial_tables, report_tables, round_tables, suite_picture, suite_report
from rheostat.calibration import Calibrator
from rheostat.canvas import (
    DARK,
    LIGHT,
    PAGE,
    Array,
    MethodStyle,
    Panel,
    figure,
    ink_on,
    method_styles,
    score_colour,
    to_png,
    to_svg,
)
from rheostat.control import Levels, levels_of
from rheostat.dial_pictures import STYLES as BEFORE_AND_AFTER
from rheostat.dial_pictures import calibrated_curve
from rheostat.metrics import Interval, LevelPoint, pareto_front
from rheostat.pictures import (
    CROWD,
    LARGE,
    PERFECT,
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

TEMPLATES = Path(__file__).parent / "templates"

SIDE_BY_SIDE = 7
"""Panels in a row of a PNG file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with its achieved scores in [0, 1], by attribute."""

    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ExampleGrid:
    """A prompt answered across the grid; keys of `answers` hold a level an attribute, in the run's order."""

    prompt: str
    answers: Mapping[tuple[float, ...], Answer]


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the report shows.

    - `evaluation`: the content of evaluation.json, whose method and attribute names are used throughout;
      `prompts`: how many each of its evaluations used.
    - `level_curves`, `heat_maps`: by method, then attribute, in the optimization evaluation; a heat map has
      an axis of its `levels` for each attribute, in the order of `attributes`.
    - `other_curves`: by title the level curves of another evaluation, by method, then attribute.
    - `pool` and `kept` `(n, attributes)`: calibrated scores of all self-generated responses, and of the
      examples that distillation kept; `raw` `(n, attributes)`: the pool's scores before calibration;
      `counts` are distillation's own figures, by name.
    - `examples`: answers of `examples_method`, the method that is shown as the product.
    - `stage_seconds`: how long each stage took.
    - `notes`: what the reader should know beside, a sentence each (skipped prompts, for example).
    """

    title: str
    attributes: tuple[str, ...]
    levels: Levels
    evaluation: Mapping[str, Any]
    prompts: Mapping[str, int]
    level_curves: Mapping[str, Mapping[str, Sequence[LevelPoint]]]
    heat_maps: Mapping[str, Mapping[str, Array]]
    calibrators: Mapping[str, Calibrator]
    raw: Array
    pool: Array
    kept: Array
    counts: Mapping[str, Any]
    examples_method: str
    examples: Sequence[ExampleGrid]
    stage_seconds: Mapping[str, float]
    config_yaml: str
    environment: Mapping[str, Any]
    notes: Sequence[str] = field(default=())
    other_curves: Mapping[str, Mapping[str, Mapping[str, Sequence[LevelPoint]]]] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of the evaluation."""
        return tuple(self.evaluation["evaluations"]["optimization"])

    @property
    def dialled(self) -> tuple[str, ...]:
        """Those of them whose dials turn something, and base."""
        return tuple(report_tables.dialled(self.evaluation["evaluations"]["optimization"]))

    @property
    def points(self) -> tuple[str, ...]:
        """The others: a point on the plane of scores each."""
        return tuple(name for name in self.methods if name not in self.dialled)

    @property
    def plane(self) -> tuple[str, ...]:
        """The attributes that pictures of two dials show: the first two."""
        return self.attributes[:2]

    def levels_of(self, attribute: str) -> tuple[float, ...]:
        """The levels of an attribute's dial, ascending."""
        return levels_of(self.levels, attribute)

    @property
    def settings(self) -> int:
        """How many settings those first two dials have."""
        return prod(len(self.levels_of(name)) for name in self.plane)

    @property
    def levels_in_words(self) -> str:
        """How many levels the dials have: `every dial at 5 levels`."""
        counts = {name: len(self.levels_of(name)) for name in self.attributes}
        if len(set(counts.values())) == 1:
            return f"every dial at {next(iter(counts.values()))} levels"
        return ", ".join(f"{name} at {count} levels" for name, count in counts.items())


def render(data: ReportData) -> str:
    """The page, a whole HTML document that refers to nothing outside itself."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "number": report_tables.number,
        "duration": _duration,
        "score_style": _score_style,
    }
    styles = method_styles(data.methods)
    best = report_tables.best_method(data.evaluation, data.attributes)
    costs = report_tables.costs(data.evaluation)
    return environment.get_template("report.html.j2").render(
        data=data,
        headline=report_tables.headline(data.evaluation, data.attributes),
        best=best,
        tiles=report_tables.tiles(data.evaluation, data.attributes),
        tables=list(report_tables.main_tables(data.evaluation, data.attributes)),
        undialled=report_tables.points_table(data.evaluation, data.attributes),
        fluency=report_tables.fluency_table(data.evaluation),
        behaviour=list(report_tables.behaviour_tables(data.evaluation, data.attributes)),
        mark=lambda name, place: _svg(legend_mark(styles[name]), f"mark-{place}-{name}", name),
        overview={
            title: [
                _captioned(panel, f"overview-{title}-{panel.title}", f"{panel.title}, all methods, {title}")
                for panel in panels
            ]
            for title, panels in _overview(data, styles).items()
        },
        by_method={name: _method_panels(data, name, styles[name]) for name in data.dialled},
        suite=_suite(data, styles),
        fronts=[
            _captioned(panel, f"front-{panel.title}", f"Pareto front of {panel.title}")
            for panel in _fronts(data, styles)
        ],
        histograms=[
            [_captioned(panel, f"scores-{panel.title}", panel.title) for panel in row]
            for row in _histograms(data)
        ],
        light=LIGHT.named(),
        dark=DARK.named(),
        counts=report_tables.distilled(data.counts),
        quantile=any(each.kind == "quantile" for each in data.calibrators.values()),
        shares_candidates="reranking" in data.methods,
        calibrated=dial_tables.calibrated_dials(data.evaluation),
        calibrated_curves={
            method: [
                _captioned(panel, f"calibrated-{method}-{panel.title}", f"{panel.title} dial of {method}, calibrated")
                for panel in panels
            ]
            for method, panels in _calibrated(data).items()
        },
        calibrated_mark=lambda name: _svg(legend_mark(BEFORE_AND_AFTER[name]), f"mark-calibrated-{name}", name),
        forgeries={
            method: (dial_tables.forgery_sentence(data.evaluation, method), rows)
            for method in data.methods
            if (rows := dial_tables.forgeries(data.evaluation, method))
        },
        rounds=round_tables.sections(data.evaluation),
        round_columns=round_tables.COLUMNS,
        costs=costs,
        many_trainings=any(cost.get("trainings", 0) > 1 for cost in costs.values()),
        online=any(cost.get("training_generated_tokens", 0) for cost in costs.values()),
        crowded=len(data.dialled) > CROWD,
        first_column=max(110, 30 + 8 * max(map(len, data.methods))),
        rows=_grid_rows(data),
        scale=[score_colour(step / 10) for step in range(11)],
        environment=list(_flat(data.environment)),
    )


def pictures(data: ReportData) -> dict[str, bytes]:
    """The report's pictures as PNG files, by file name."""
    styles = method_styles(data.methods)
    curves = [
        [
            _titled(level_curve({name: data.level_curves[name][each]}, attribute=each, styles=styles), name)
            for name in data.dialled
        ]
        for each in data.attributes
    ]
    grids = [
        [_titled(_heat_map(data, name, each), f"{name}\n{each}") for name in data.dialled]
        for each in data.plane
    ]
    sheets = {
        "curves.png": figure(_folded(curves), theme=LIGHT),
        "heat-maps.png": figure(_folded(grids), theme=LIGHT),
        "scores.png": figure(_histograms(data), theme=LIGHT),
    }
    if data.other_curves:
        rows = [
            [_titled(panel, f"{panel.title}, {title.partition(', ')[2] or title}") for panel in panels]
            for title, panels in list(_overview(data, styles).items())[1:]
        ]
        turning = {name: styles[name] for name in data.dialled}
        sheets["generalization.png"] = figure(rows, theme=LIGHT, legend={**turning, "perfect control": PERFECT})
    if calibrated := _calibrated(data):
        rows = [[_titled(panel, f"{name}, {panel.title}") for panel in row] for name, row in calibrated.items()]
        sheets["calibrated.png"] = figure(rows, theme=LIGHT, legend={**BEFORE_AND_AFTER, "perfect control": PERFECT})
    for name, theme in (("dials.png", LIGHT), ("dials-dark.png", DARK)):
        sheets[name] = dials(
            _by_attribute(data, [name for name in data.dialled if "+" not in name] or data.dialled),
            {each: _on_plane(data, data.examples_method, each) for each in data.plane},
            levels=data.levels,
            method=data.examples_method,
            methods=data.methods,
            prompts=data.prompts["optimization"],
            theme=theme,
        )
    if "suite" in data.evaluation:
        sides = suite_picture.panels(data.evaluation["suite"], styles)
        sheets["suite.png"] = figure([sides], theme=LIGHT, legend=styles)
    if len(data.plane) > 1:
        lattices = [_titled(_lattice(data, name, styles[name]), name) for name in data.dialled]
        sheets["lattices.png"] = figure(_folded([lattices]), theme=LIGHT)
        sheets["pareto.png"] = figure([_fronts(data, styles)], theme=LIGHT, legend=styles)
    return {name: to_png(sheet) for name, sheet in sorted(sheets.items())}


def visible(text: str) -> str:
    """`text` with control characters and lone surrogates shown as �: HTML can carry all the rest."""
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" else character
        for character in text.replace("\r\n", "\n")
    )


def _folded(rows: Sequence[Sequence[Panel]]) -> list[Sequence[Panel]]:
    """Rows of panels, each folded into rows of as many as a screen shows side by side."""
    return [row[start : start + SIDE_BY_SIDE] for row in rows for start in range(0, len(row), SIDE_BY_SIDE)]


def _by_attribute(data: ReportData, methods: Sequence[str]) -> dict[str, dict[str, Sequence[LevelPoint]]]:
    return {each: {name: data.level_curves[name][each] for name in methods} for each in data.attributes}


def _overview(data: ReportData, styles: Mapping[str, MethodStyle]) -> dict[str, list[Panel]]:
    """By evaluation: a curve of all methods for each dial."""
    return {
        title: [
            _titled(
                level_curve(
                    {name: curves[name][each] for name in data.dialled},
                    attribute=each,
                    styles=styles,
                    size=LARGE,
                ),
                f"{each} dial",
            )
            for each in data.attributes
        ]
        for title, curves in {"Optimization evaluation": data.level_curves, **data.other_curves}.items()
    }


def _calibrated(data: ReportData) -> dict[str, list[Panel]]:
    """By tuned method a picture of each dial before and after calibration."""
    found: Mapping[str, Any] = data.evaluation.get("calibrated", {})
    return {
        method: [calibrated_curve(dial, dial=name) for name, dial in each["dials"].items()]
        for method, each in found.items()
    }


def _method_panels(data: ReportData, name: str, style: MethodStyle) -> list[dict[str, str]]:
    panels = [
        _titled(level_curve({name: curve}, attribute=attribute, styles={name: style}), f"{attribute} dial")
        for attribute, curve in data.level_curves[name].items()
    ]
    panels += [_heat_map(data, name, attribute) for attribute in data.plane]
    if len(data.plane) > 1:
        panels.append(_lattice(data, name, style))
    return [_captioned(panel, f"{name}-{panel.title}", f"{name}, {panel.title}") for panel in panels]


def _heat_map(data: ReportData, name: str, attribute: str) -> Panel:
    matrix = _on_plane(data, name, attribute)
    return heat_map(matrix, attribute=attribute, levels=data.levels, dials=data.plane)


def _lattice(data: ReportData, name: str, style: MethodStyle) -> Panel:
    first, second = (_on_plane(data, name, attribute) for attribute in data.plane)
    return lattice(first, second, levels=data.levels, style=style, dials=data.plane)


def _on_plane(data: ReportData, name: str, attribute: str) -> Array:
    """A heat map over the first two dials; further ones are averaged over."""
    cells = np.asarray(data.heat_maps[name][attribute], dtype=float)
    means: Array = cells.mean(axis=tuple(range(2, cells.ndim)))
    return means


def _suite(data: ReportData, styles: Mapping[str, MethodStyle]) -> dict[str, Any] | None:
    """The suite's picture, table and explanation; None where the run has none."""
    if "suite" not in data.evaluation:
        return None
    suite = data.evaluation["suite"]
    picture = figure([suite_picture.panels(suite, styles)], theme=PAGE)
    label = f"harm rate and over-refusal rate over the {suite['dial']} dial, all methods"
    return {
        "picture": Markup(to_svg(picture, name="suite", label=label)),
        "table": suite_report.table(suite),
        "explanation": suite_report.explanation(suite),
    }


def _fronts(data: ReportData, styles: Mapping[str, MethodStyle]) -> list[Panel]:
    if len(data.plane) < 2:
        return []
    first, second = data.plane
    methods = data.evaluation["evaluations"]["optimization"]
    points = {
        name: (_interval(methods[name], second, "MP"), _interval(methods[name], first, "MP")) for name in data.dialled
    }
    front = pareto_front([[x.value, y.value] for x, y in points.values()])
    cells = {
        name: np.stack([_on_plane(data, name, each).ravel() for each in (second, first)], axis=1)
        for name in data.dialled
    }
    undialled = {
        name: (_interval(methods[name], second, "achieved"), _interval(methods[name], first, "achieved"))
        for name in data.points
    }
    if len(cells) > CROWD:
        cells = {name: settings[pareto_front(settings)] for name, settings in cells.items()}
    everything = np.concatenate(list(cells.values()))
    return [
        front_of_methods(points, front.tolist(), styles=styles, names=(f"MP, {second}", f"MP, {first}")),
        front_of_controls(
            cells, everything[pareto_front(everything)], styles=styles, dials=data.plane, undialled=undialled
        ),
    ]


def _interval(entry: Mapping[str, Any], attribute: str, metric: str) -> Interval:
    return Interval(**entry["attributes"][attribute][metric])


def _histograms(data: ReportData) -> list[list[Panel]]:
    """The preliminary scores as the reward models gave them, then calibrated, and what was kept."""
    shown = len(data.plane)
    raw = [raw_histogram(data.raw[:, index], attribute=name) for index, name in enumerate(data.attributes)]
    calibrated = [
        score_histogram(scores[:, :shown], dials=data.plane, title=f"{title} ({len(scores):,})")
        for title, scores in (("self-generated", data.pool), ("kept for training", data.kept))
    ]
    return [raw, calibrated]


def _grid_rows(data: ReportData) -> list[dict[str, Any]]:
    """The examples' grid: a row per level of the first dial, highest first, with the keys of its cells.

    Dials beyond the second stand at their highest level.
    """
    rest = tuple(data.levels_of(name)[-1] for name in data.attributes[2:])
    columns = data.levels_of(data.attributes[1]) if len(data.attributes) > 1 else (None,)
    return [
        {"level": row, "cells": [(row, *([] if column is None else [column]), *rest) for column in columns]}
        for row in reversed(data.levels_of(data.attributes[0]))
    ]


def _titled(panel: Panel, title: str) -> Panel:
    return Panel(title, panel.width, panel.height, panel.draw)


def _captioned(panel: Panel, name: str, label: str) -> dict[str, str]:
    return {"caption": panel.title, "svg": _svg(panel, name, label)}


def _svg(panel: Panel, name: str, label: str) -> Markup:
    return Markup(to_svg(figure([[panel]], theme=PAGE, titles=False), name=name, label=label))


def _score_style(value: float) -> str:
    colour = score_colour(value)
    return f"background:{colour};color:{ink_on(colour)}"


def _duration(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            name = f"{prefix}{key}".removeprefix("versions.")
            rows.append((name, "–" if value is None else str(value)))
    return rows
