"""Report: what a finished run measured becomes a page and pictures. Rows and figures in, files out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rheostat import metrics, plugins, report_tables
from rheostat.calibration import Calibrator
from rheostat.config import RunConfig
from rheostat.errors import StageMissing
from rheostat.grid import Grid
from rheostat.page import Answer, ExampleGrid, ReportData, pictures, render
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import EvaluationRow, Example, Pair, Prompt, ScoredResponse, Scores, by_prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN
from rheostat.storage import storage_errors, write_bytes, write_text
from rheostat.trainings import trainings

EXAMPLE_PROMPTS = 3
"""How many prompts the page shows across the grid."""


def report(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Path:
    """Write `report.html` and `pictures/` of a finished run, and return the page's path.

    Raises `StageMissing` where the evaluation has not finished, `StorageError` where nothing can be written.
    """
    with progress.task("report", 1, unit="page") as advance:
        page = write(gather(run, config), run.path)
        advance(1)
    return page


def write(data: ReportData, directory: Path) -> Path:
    """Write the page and its pictures into a directory, and return the page's path. Raises `StorageError`."""
    folder = directory / "pictures"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    for name, content in pictures(data).items():
        write_bytes(folder / name, content)
    page = directory / "report.html"
    write_text(page, render(data))
    return page


def gather(run: RunDirectory, config: RunConfig) -> ReportData:
    """All that the report shows, read from a run; raises `StageMissing` where its evaluation is missing."""
    evaluation = _json(run, run.path / "evaluation.json", "evaluate")
    form = config.control_format
    attributes = form.names
    rows = {
        name: run.finished(f"evaluate/optimization/{name}").read(EvaluationRow)
        for name in evaluation["evaluations"]["optimization"]
    }
    grids = {
        name: Grid.of(each, OWN, form)
        for name, each in rows.items()
    }
    tuned = [name.name for name in config.method_names if name.objective is not None and name.has_dial]
    shown = report_tables.best_method(evaluation, attributes, among=tuned or list(rows))
    collected = run.finished("prompts")
    prompts = {prompt.id: prompt for prompt in collected.read(Prompt, prefix="optimization")}
    scored = run.finished("score")
    responses = scored.read(ScoredResponse)
    calibrators = _json(run, scored.path / "calibration.json", "score")[OWN]
    distilled, kept = _distilled(run, config)
    return ReportData(
        title=f"Dials for {config.model}",
        attributes=attributes,
        levels=form.levels,
        evaluation=evaluation,
        prompts={name: collected.summary[name] for name in evaluation["evaluations"]},
        level_curves={name: _curves(grid, config) for name, grid in grids.items()},
        other_curves=_generalization_curves(run, config, evaluation),
        heat_maps={
            name: {attribute: metrics.heat_map(grid, attribute) for attribute in attributes}
            for name, grid in grids.items()
        },
        calibrators={name: Calibrator.from_json(calibrators[name]) for name in attributes},
        raw=_scores([row.raw for row in responses], attributes),
        pool=_scores([row.calibrated for row in responses], attributes),
        kept=_scores(kept, attributes),
        counts=distilled.summary,
        examples_method=shown,
        examples=_examples(rows[shown], prompts, attributes),
        stage_seconds={entry["stage"]: float(entry["seconds"]) for entry in run.timings()},
        config_yaml=run.config_path.read_text(encoding="utf-8"),
        environment=_json(run, run.path / "environment.json", "run"),
        notes=_notes(collected.summary, run.finished("generate").summary),
    )


def _distilled(run: RunDirectory, config: RunConfig) -> tuple[Stage, list[Scores]]:
    """What the report shows of distillation, and the scores of the responses that it kept.

    The examples with the shortest name; where nothing learns from examples, both responses of all pairs; where nothing
    learns from either, the recipe's usual examples.
    """
    needed = [(plugins.needs(each.objective).rows, str(each.data)) for each in trainings(config)]
    for rows in ("examples", "pairs"):
        choices = [name for own, name in needed if own == rows]
        if choices:
            stage = run.finished(f"distil/{min(choices, key=lambda each: (len(each), each))}")
            if rows == "examples":
                return stage, [row.scores for row in stage.read(Example)]
            return stage, [scores for row in stage.read(Pair) for scores in (row.chosen_scores, row.rejected_scores)]
    stage = run.finished(f"distil/{config.train.variant}")
    return stage, [row.scores for row in stage.read(Example)]


def _curves(grid: Grid, config: RunConfig) -> dict[str, Sequence[metrics.LevelPoint]]:
    options = {"resamples": config.evaluate.bootstrap, "seed": config.seed}
    return {attribute: metrics.level_curve(grid, attribute, **options) for attribute in grid.attributes}


def _generalization_curves(
    run: RunDirectory, config: RunConfig, evaluation: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, Sequence[metrics.LevelPoint]]]]:
    """By title, the curves as each scorer of the generalization evaluation sees them."""
    methods: Mapping[str, Any] = evaluation["evaluations"].get("generalization", {})
    first: Mapping[str, Any] = next(iter(methods.values()), {})
    rows = {name: run.finished(f"evaluate/generalization/{name}").read(EvaluationRow) for name in methods}
    form = config.control_format
    found = {}
    for scorer in first.get("scorers", {}):
        title = report_tables.generalization_title(evaluation, scorer)
        found[title] = {
            name: _curves(Grid.of(each, scorer, form), config)
            for name, each in rows.items()
        }
    return found


def _examples(
    rows: Sequence[EvaluationRow], prompts: Mapping[str, Prompt], attributes: Sequence[str]
) -> list[ExampleGrid]:
    """The first prompts by id, which is a hash: nobody chose them."""
    groups = by_prompt(rows)
    return [
        ExampleGrid(
            prompts[key].text,
            {
                tuple(row.requested[name] for name in attributes): Answer(
                    row.text, {name: row.scores[f"{OWN}/{name}"] for name in attributes}
                )
                for row in groups[key]
            },
        )
        for key in sorted(groups)[:EXAMPLE_PROMPTS]
    ]


def _scores(rows: Sequence[Mapping[str, float]], attributes: Sequence[str]) -> metrics.Array:
    values = [[row[name] for name in attributes] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(attributes))


def _notes(collected: Mapping[str, Any], generated: Mapping[str, Any]) -> list[str]:
    counts = {
        "broken lines of the prompt files were left out": collected["skipped_lines"],
        "repeated prompts were left out": collected["repeated"],
        "prompts were too long for the model and left out": sum(collected["too_long"].values()),
        "self-generated responses were empty": generated["empty"],
        "self-generated responses were cut off at the longest length": generated["truncated"],
    }
    return [f"{count:,} {what}." for what, count in counts.items() if count]


def _json(run: RunDirectory, path: Path, stage: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageMissing(
            f"{path} cannot be read: {error}",
            hint=f"run `rheostat {stage} {run.path}` first, or all with `rheostat run`",
        ) from error
