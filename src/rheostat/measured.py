"""Measured: a run's figures of one tuned model beside the other methods', for `measured.json` and the playground."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rheostat import metrics, report_tables
from rheostat.config import RunConfig
from rheostat.dialled import tuned_model
from rheostat.grid import Grid
from rheostat.recipe import load_config
from rheostat.records import EvaluationRow
from rheostat.rundir import RunDirectory
from rheostat.storage import require_object

FILE = "measured.json"
"""Its name beside an exported model's weights."""

SCHEMA = 1
_METRICS = ("MP", "BT", "Err", "reach")


def measured(run: RunDirectory, config: RunConfig, evaluation: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What was measured of `method` (docs/formats.md), off the content of evaluation.json and the evaluation's rows."""
    form = config.control_format
    return {
        "schema": SCHEMA,
        "model": config.model,
        "method": method,
        "headline": report_tables.headline(evaluation, form.names),
        "dials": [{"name": each.name, "low": each.low, "high": each.high} for each in form.attributes],
        "evaluations": [
            {
                "title": each.title,
                "note": each.note,
                "prompts": evaluation["prompts"][each.name],
                "methods": [
                    _method(name, each.methods[name], form.names) for name in report_tables.dialled(each.methods)
                ],
                "curves": _curves(run, config, each, method),
            }
            for each in report_tables.scored_evaluations(evaluation)
        ],
    }


def read_measured(path: Path, method: str | None = None) -> dict[str, Any] | None:
    """The figures of a run directory's tuned model, or of an exported folder; None where there are none.

    Raises `ModelError`, `StorageError`.
    """
    if (path / FILE).is_file():
        return require_object(path / FILE)
    if not (path / "evaluation.json").is_file():
        return None
    with RunDirectory.open(path, read_only=True) as run:
        config = load_config(run.config_path)
        _, chosen = tuned_model(run, method)
        return measured(run, config, require_object(path / "evaluation.json"), chosen)


def _method(name: str, entry: Mapping[str, Any], dials: tuple[str, ...]) -> dict[str, Any]:
    effects: Mapping[str, Any] = entry.get("cross_effect", {})
    return {
        "name": name,
        "fluency": entry.get("fluency"),
        "dials": {
            dial: {
                **{metric: entry["attributes"][dial].get(metric) for metric in _METRICS},
                "cross_effects": {by: effects.get(f"{dial}_by_{by}") for by in dials if by != dial},
            }
            for dial in dials
        },
    }


def _curves(
    run: RunDirectory, config: RunConfig, evaluation: report_tables.ScoredEvaluation, method: str
) -> dict[str, list[dict[str, float]]]:
    rows = run.finished(f"evaluate/{evaluation.name}/{method}").read(EvaluationRow)
    grid = Grid.of(rows, evaluation.scorer, config.control_format)
    return {dial: list(_curve(grid, dial, config)) for dial in grid.attributes}


def _curve(grid: Grid, dial: str, config: RunConfig) -> Iterator[dict[str, float]]:
    for level, achieved in metrics.level_curve(grid, dial, resamples=config.evaluate.bootstrap, seed=config.seed):
        yield {"requested": level, "achieved": achieved.value, "low": achieved.low, "high": achieved.high}
