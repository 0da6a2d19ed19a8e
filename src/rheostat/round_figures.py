"""Figures of rounds: what each was asked, what it added, how far its model reaches. Stages of a run in, JSON out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rheostat import metrics
from rheostat.config import RunConfig
from rheostat.evaluate import scorers_of
from rheostat.grid import Grid
from rheostat.method_name import MethodName
from rheostat.records import EvaluationRow
from rheostat.rundir import RunDirectory
from rheostat.trainings import Training


def rounds(run: RunDirectory, config: RunConfig, evaluations: Sequence[str]) -> dict[str, Any]:
    """By method of several rounds, named as its last, its rounds in order; empty where none has a second.

    Of each round: `method`, under which `evaluations` has its figures (None: not evaluated); `examples` and `cells`,
    what it learned from, by control text; `ends`, the mean score at each dial's lowest and highest level, by
    evaluation, scorer and dial; `seconds` of what it took more than the one before. Of a further round also
    `responses` and `cells_asked`, `cells_hit`, `cells_landed` (`rounds.py`).
    """
    return {
        last.name: [_round(run, config, name, evaluations) for name in _through(last)] for last in _last_ones(config)
    }


def _last_ones(config: RunConfig) -> Iterator[MethodName]:
    """Of methods that are the same but for their round, the one with the most; none of a single round."""
    most: dict[str, MethodName] = {}
    for name in config.method_names:
        alike = str(name.model_copy(update={"name": "", "round": 1}))
        if name.round > 1 and (alike not in most or name.round > most[alike].round):
            most[alike] = name
    yield from most.values()


def _through(last: MethodName) -> list[MethodName]:
    """The method after each of its rounds."""
    return [last.model_copy(update={"round": each, "name": ""}) for each in range(1, last.round + 1)]


def _round(
    run: RunDirectory, config: RunConfig, name: MethodName, evaluations: Sequence[str]
) -> dict[str, Any]:
    training = Training.of(name, config)
    summary = run.finished(training.data.stage).summary
    stages = [training.stage]
    found: dict[str, Any] = {
        "round": name.round,
        "method": next((each.name for each in config.method_names if each.identity() == name.identity()), None),
        "examples": summary["examples"],
        "cells": summary["cells_after"],
    }
    if name.round > 1:
        found |= run.finished(f"{training.data.round_stage}/score").summary
        stages += [f"{training.data.round_stage}/{each}" for each in ("generate", "score")]
    else:
        stages += ["generate", "score"]
    timings = {entry["stage"]: float(entry["seconds"]) for entry in run.timings()}
    found["seconds"] = {stage: timings[stage] for stage in stages if stage in timings}
    found["ends"] = {} if found["method"] is None else _ends(run, config, found["method"], evaluations)
    return found


def _ends(run: RunDirectory, config: RunConfig, method: str, evaluations: Sequence[str]) -> dict[str, Any]:
    """How low and how high each dial goes, as each scorer of each evaluation sees it."""
    found: dict[str, Any] = {}
    for evaluation in evaluations:
        rows = run.finished(f"evaluate/{evaluation}/{method}").read(EvaluationRow)
        found[evaluation] = {
            scorer: _ends_of(Grid.of(rows, scorer, config.control_format), config)
            for scorer in scorers_of(evaluation, config)
        }
    return found


def _ends_of(grid: Grid, config: RunConfig) -> Mapping[str, Any]:
    found = {}
    for dial in grid.attributes:
        curve = metrics.level_curve(grid, dial, resamples=config.evaluate.bootstrap, seed=config.seed)
        found[dial] = {"low": curve[0].achieved._asdict(), "high": curve[-1].achieved._asdict()}
    return found
