"""Report: gathers what a finished run holds and hands it to the page. Rows and figures in, report.html out."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rheostat import metrics
from rheostat.calibration import Calibrator
from rheostat.config import RunConfig, Variant, to_yaml
from rheostat.errors import StageMissing
from rheostat.figures import evaluations_of, figures, grid_of
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import EvaluationRow, Example, Prompt, ScoredResponse, by_prompt
from rheostat.report import Answer, ExampleGrid, MethodCost, ReportData, write
from rheostat.report_tables import best_method
from rheostat.rundir import RunDirectory
from rheostat.scoring import OWN
from rheostat.train import stage_name, variant_of

_EXAMPLES = 3


def report(run: RunDirectory, config: RunConfig, *, progress: ProgressDisplay = null_progress) -> Path:
    """Write `report.html` and `pictures/`, and return the page's path. Raises `StageMissing`."""
    with progress.task("report", None, unit="pages") as advance:
        page = write(report_data(run, config), run.path)
        advance(1)
    return page


def report_data(run: RunDirectory, config: RunConfig) -> ReportData:
    """Everything that the report of a finished run shows."""
    evaluation = figures(run, config)
    names = config.control_format.names
    main = "optimization"
    rows = {
        name.name: run.finished(f"evaluate/{main}/{name.name}").read(EvaluationRow) for name in config.method_names
    }
    grids = {name: grid_of(found, OWN, config) for name, found in rows.items()}
    resamples, seed = config.evaluate.bootstrap, config.seed
    calibration = json.loads((run.finished("score").path / "calibration.json").read_text(encoding="utf-8"))
    pool = run.finished("score").read(ScoredResponse)
    distilled = _distilled(run, config)
    seconds = {entry["stage"]: float(entry["seconds"]) for entry in run.timings()}
    tuned = [name.name for name in config.method_names if name.objective is not None]
    shown = max(
        tuned or list(rows),
        key=lambda name: sum(
            evaluation["evaluations"][main][name]["attributes"][dial]["MP"]["value"] for dial in names
        ),
    )
    prompts = {
        each: run.finished("prompts").read(Prompt, prefix=each) for each in evaluations_of(run)
    }
    costs = {}
    for name in config.method_names:
        found = rows[name.name]
        trained = stage_name(name.objective, variant_of(name, config)) if name.objective else None
        costs[name.name] = MethodCost(
            responses=len(found),
            generated_tokens=sum(row.generated_tokens for row in found),
            seconds=seconds.get(f"evaluate/{main}/{name.name}", 0.0),
            train_seconds=seconds.get(trained) if trained else None,
        )
    return ReportData(
        title=f"{config.model}: {best_method(evaluation, names)} and its rivals",
        attributes=names,
        levels=tuple(config.levels),
        evaluation=evaluation,
        prompts={name: len(each) for name, each in prompts.items()},
        level_curves={
            name: {dial: metrics.level_curve(grid, dial, resamples=resamples, seed=seed) for dial in names}
            for name, grid in grids.items()
        },
        heat_maps={name: {dial: metrics.heat_map(grid, dial) for dial in names} for name, grid in grids.items()},
        calibrators={name: Calibrator.from_json(each) for name, each in calibration[OWN].items()},
        pool=np.array([[each.calibrated[name] for name in names] for each in pool]),
        kept=np.array([[each.scores[name] for name in names] for each in distilled[0]]),
        counts=distilled[1],
        examples_method=shown,
        examples=_examples(rows[shown], prompts[main], names),
        costs=costs,
        stage_seconds=seconds,
        config_yaml=to_yaml(config),
        environment=json.loads((run.path / "environment.json").read_text(encoding="utf-8")),
        notes=_notes(run),
    )


def _distilled(run: RunDirectory, config: RunConfig) -> tuple[list[Example], dict[str, int | float]]:
    variants: tuple[Variant, ...] = ("moec", "raw")
    for variant in sorted(variants, key=lambda each: each != config.train.variant):
        try:
            stage = run.finished(f"distil/{variant}")
        except StageMissing:
            continue
        counts = {name: value for name, value in stage.summary.items() if isinstance(value, int | float)}
        return stage.read(Example), counts
    raise StageMissing("the stage 'distil' has not finished", hint=f"run `rheostat distil {run.path}` first")


def _examples(
    rows: Sequence[EvaluationRow], prompts: Sequence[Prompt], names: Sequence[str]
) -> list[ExampleGrid]:
    groups = by_prompt(rows)
    return [
        ExampleGrid(
            prompt.text,
            {
                tuple(row.requested[name] for name in names): Answer(
                    row.text, {name: row.scores[f"{OWN}/{name}"] for name in names}
                )
                for row in groups[prompt.id]
            },
        )
        for prompt in prompts[:_EXAMPLES]
    ]


def _notes(run: RunDirectory) -> list[str]:
    notes = []
    summary = run.finished("prompts").summary
    if summary.get("skipped_lines"):
        notes.append(f"{summary['skipped_lines']} broken prompt lines were left out.")
    if too_long := sum(summary.get("too_long", {}).values()):
        notes.append(f"{too_long} prompts were too long for the model's context and were left out.")
    generated = run.finished("generate").summary
    notes.append(
        f"Of {generated['responses']} self-generated responses, {generated['empty']} were empty and "
        f"{generated['truncated']} cut off at the token limit."
    )
    return notes
