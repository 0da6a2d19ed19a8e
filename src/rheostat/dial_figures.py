"""Figures of tuned models beside the main ones: calibrated dials, forged controls. Rows of a run in, JSON out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rheostat import dial_map, forging, metrics
from rheostat.config import RunConfig
from rheostat.dial_map import DialMap
from rheostat.errors import StageMissing
from rheostat.evaluate import scorers_of
from rheostat.method_name import MethodName
from rheostat.metrics import Grid
from rheostat.prompts import CALIBRATION
from rheostat.records import AnyRecord, EvaluationRow, ForgeryRow, by_prompt
from rheostat.rundir import RunDirectory
from rheostat.scoring import OWN

WANTED = tuple(step / 20 for step in range(21))
"""Finer than the levels: what a caller may want of a dial."""


def calibrated(run: RunDirectory, config: RunConfig, evaluations: Sequence[str]) -> dict[str, Any]:
    """By tuned method what its calibrated dials do, on the test prompts; empty where none was calibrated."""
    found = {}
    form = config.control_format
    for name in _dialled(config):
        rows = _rows(run, f"evaluate/{CALIBRATION}/{name.name}", EvaluationRow)
        if not rows or not config.prompts.calibration_limit:
            continue
        maps = dial_map.fit_maps(Grid.of(rows, OWN, form))
        grids = {
            evaluation: {
                scorer: Grid.of(_rows(run, f"evaluate/{evaluation}/{name.name}", EvaluationRow), scorer, form)
                for scorer in scorers_of(evaluation, config)
            }
            for evaluation in evaluations
        }
        found[name.name] = {
            "prompts": len(by_prompt(rows)),
            "dials": {dial: _dial(grids, dial, maps, config) for dial in maps},
        }
    return found


def forgeries(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """By tuned method what forged controls did to its answers; empty where none was tried."""
    found: dict[str, Any] = {}
    for name in _dialled(config):
        rows = _rows(run, f"forgery/{name.name}", ForgeryRow) if config.evaluate.forged_prompts else []
        if rows:
            found[name.name] = forgery_figures(rows, config)
    return found


def forgery_figures(rows: Sequence[ForgeryRow], config: RunConfig) -> dict[str, Any]:
    """The effect of each style of forgery, neutralised and as typed, and of all claimed styles pooled."""
    names = config.control_format.names
    scores: dict[tuple[str, str], list[list[list[float]]]] = {}
    for group in by_prompt(rows).values():
        by_arm: dict[tuple[str, str], list[list[float]]] = {}
        for row in group:
            by_arm.setdefault((row.treatment, row.style), []).append([row.scores[name] for name in names])
        for arm, found in by_arm.items():
            scores.setdefault(arm, []).append(found)
    arms = {arm: np.array(found) for arm, found in scores.items()}
    requested = next(iter(by_prompt(rows).values()))
    plain = [row for row in requested if row.treatment == "plain"]
    direction = np.array(
        [
            [
                np.sign(forging.opposite(row.requested, config.control_format)[name] - row.requested[name])
                for name in names
            ]
            for row in plain
        ]
    )

    def effect(styles: Sequence[str], treatment: str) -> dict[str, Any]:
        return forging.effect(
            arms["plain", ""],
            np.stack([arms["twin", style] for style in styles]),
            np.stack([arms[treatment, style] for style in styles]),
            direction,
            levels=[config.control_format.levels_of(name) for name in names],
            resamples=config.evaluate.bootstrap,
            seed=config.seed,
        ).to_json()

    return {
        "prompts": len(by_prompt(rows)),
        "controls": len(plain),
        "styles": {
            style: {key: effect([style], each) for key, each in _TREATMENTS.items()}
            for style in forging.STYLES
        },
        "pooled": {key: effect(forging.CLAIMED, each) for key, each in _TREATMENTS.items()},
    }


_TREATMENTS = {"neutralised": "neutralised", "as_typed": "as typed"}


def _dialled(config: RunConfig) -> list[MethodName]:
    return [name for name in config.method_names if name.is_dialled_model]


def _rows(run: RunDirectory, stage: str, row_type: type[AnyRecord]) -> list[AnyRecord]:
    """The rows of a stage; none where it has not finished: a run of an earlier version has no such stage."""
    try:
        return run.finished(stage).read(row_type)
    except StageMissing:
        return []


def _nominal(maps: Mapping[str, DialMap]) -> dict[str, DialMap]:
    return {name: DialMap.nominal(each.levels) for name, each in maps.items()}


def _curve(grid: Grid, dial: str, maps: Mapping[str, DialMap], config: RunConfig) -> list[dict[str, Any]]:
    """Mean achieved score at each of `WANTED`, before and after."""
    before, after = (dial_map.curve(grid, dial, each, WANTED).T for each in (_nominal(maps), maps))
    return [
        {
            "wanted": wanted,
            "before": _interval(before[at], config)._asdict(),
            "after": _interval(after[at], config)._asdict(),
        }
        for at, wanted in enumerate(WANTED)
    ]


def _interval(per_prompt: Any, config: RunConfig) -> metrics.Interval:
    return metrics.mean_interval(per_prompt, resamples=config.evaluate.bootstrap, seed=config.seed)


def _dial(
    grids: Mapping[str, Mapping[str, Grid]], dial: str, maps: Mapping[str, DialMap], config: RunConfig
) -> dict[str, Any]:
    """A dial's map, what it reaches, and its Err and gap before and after, by evaluation and scorer."""
    own = grids["optimization"][OWN]
    outcome, request = own.outcome(dial), own.request(dial)
    ends = [outcome[:, request == level].mean(axis=1) for level in (request.min(), request.max())]
    return {
        "map": maps[dial].to_json(),
        "reachable": {
            end: _interval(values, config)._asdict()
            for end, values in zip(("low", "high"), ends, strict=True)
        },
        "curve": _curve(own, dial, maps, config),
        "evaluations": {
            evaluation: {scorer: _before_and_after(grid, dial, maps, config) for scorer, grid in each.items()}
            for evaluation, each in grids.items()
        },
    }


def _before_and_after(
    grid: Grid, dial: str, maps: Mapping[str, DialMap], config: RunConfig
) -> dict[str, Any]:
    before, after = _nominal(maps), maps
    found: dict[str, Any] = {}
    levels = maps[dial].levels
    fine = [wanted for wanted in WANTED if levels[0] <= wanted <= levels[-1]]
    for key, wanted in (("levels", levels), ("fine", fine)):
        missed, missed_still = (dial_map.errors(grid, dial, each, wanted) for each in (before, after))
        found[key] = {
            "before": _interval(missed, config)._asdict(),
            "after": _interval(missed_still, config)._asdict(),
            "change": _interval(missed_still - missed, config)._asdict(),
            "gap_before": dial_map.gap(grid, dial, before, wanted),
            "gap_after": dial_map.gap(grid, dial, after, wanted),
        }
    return found
