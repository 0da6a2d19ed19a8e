"""Figures: the rows of an evaluation become evaluation.json, the numbers that every page and table shows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rheostat import dial_figures, metrics, round_figures
from rheostat.config import RunConfig
from rheostat.evaluate import EVALUATIONS, REACHABLE, scorers_of
from rheostat.metrics import Grid
from rheostat.records import EvaluationRow, Prompt, by_prompt
from rheostat.rundir import RunDirectory
from rheostat.suite_figures import suite_figures
from rheostat.training_cost import training_cost

SCHEMA = 1


def evaluations_of(run: RunDirectory) -> tuple[str, ...]:
    """The evaluations that have prompts."""
    prompts = run.finished("prompts")
    return tuple(name for name in EVALUATIONS if prompts.read(Prompt, prefix=name))


def figures(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """The content of evaluation.json (docs/formats.md): schema 1."""
    collected = run.finished("prompts")
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "prompts": {name: len(collected.read(Prompt, prefix=name)) for name in evaluations_of(run)},
        "evaluations": {},
        "reachable": {},
    }
    response_seconds = _response_seconds(run)
    for evaluation in evaluations_of(run):
        scorers = scorers_of(evaluation, config)
        pool = run.finished(f"evaluate/{evaluation}/{REACHABLE}").read(EvaluationRow)
        reachable = {scorer: _reachable(pool, scorer, config) for scorer in scorers}
        document["reachable"][evaluation] = reachable
        yardstick = _token_columns(_rows(run, evaluation, "base")) if "base" in config.methods else None
        methods: dict[str, Any] = {}
        for name in config.method_names:
            own = _rows(run, evaluation, name.name)
            by_scorer = {scorer: _method(own, scorer, config, reachable[scorer]) for scorer in scorers}
            entry: dict[str, Any] = {**by_scorer[scorers[0]]}
            if evaluation == "generalization":
                entry["scorers"] = by_scorer
            entry["fluency"] = None if yardstick is None else _fluency(_token_columns(own), yardstick, config)
            entry["has_dial"] = name.has_dial
            entry["cost"] = {
                "generated_tokens": float(np.mean([row.generated_tokens for row in own])),
                "seconds": response_seconds.get(f"evaluate/{evaluation}/{name.name}"),
                **training_cost(run, config, name)._asdict(),
            }
            methods[name.name] = entry
        document["evaluations"][evaluation] = methods
    if config.suite is not None:
        document["suite"] = suite_figures(run, config)
    extra = {
        "calibrated": dial_figures.calibrated(run, config, evaluations_of(run)),
        "forgery": dial_figures.forgeries(run, config),
        "rounds": round_figures.rounds(run, config, evaluations_of(run)),
    }
    document |= {key: figures for key, figures in extra.items() if figures}
    return document


def _method(
    rows: Sequence[EvaluationRow], scorer: str, config: RunConfig, reachable: Mapping[str, Any]
) -> dict[str, Any]:
    ranges = {
        name: (each["low"], each["high"]) for name, each in reachable.items() if each["high"] > each["low"]
    }
    grid = Grid.of(rows, scorer, config.control_format)
    found = metrics.evaluate(
        grid,
        resamples=config.evaluate.bootstrap,
        seed=config.seed,
        reachable=ranges if len(ranges) == len(reachable) else None,
    )
    return {**found.to_json(), "settings": [each._asdict() for each in metrics.setting_means(grid)]}


def _reachable(pool: Sequence[EvaluationRow], scorer: str, config: RunConfig) -> dict[str, Any]:
    """Per attribute the mean lowest and highest score among a prompt's base samples, and the Err of the best choice."""
    form = config.control_format
    names = form.names
    scores = np.array(
        [
            [[row.scores[f"{scorer}/{name}"] for name in names] for row in rows]
            for rows in by_prompt(pool).values()
        ]
    )
    errors = metrics.reachable_error(scores, [form.levels_of(name) for name in names])
    return {
        name: {
            "low": float(scores[:, :, index].min(axis=1).mean()),
            "high": float(scores[:, :, index].max(axis=1).mean()),
            "Err": float(errors[index]),
        }
        for index, name in enumerate(names)
    }


def _rows(run: RunDirectory, evaluation: str, method: str) -> list[EvaluationRow]:
    return run.finished(f"evaluate/{evaluation}/{method}").read(EvaluationRow)


class _TokenColumns(NamedTuple):
    """Per prompt, ordered by id, the log-probability and the number of tokens of each of its responses."""

    logprobs: list[list[float]]
    tokens: list[list[float]]


def _token_columns(rows: Sequence[EvaluationRow]) -> _TokenColumns:
    groups = by_prompt(rows)
    return _TokenColumns(
        [[float(row.logprob) for row in groups[key]] for key in sorted(groups)],
        [[float(row.tokens) for row in groups[key]] for key in sorted(groups)],
    )


def _fluency(own: _TokenColumns, yardstick: _TokenColumns, config: RunConfig) -> dict[str, float]:
    return metrics.perplexity_ratio(
        *own, *yardstick, resamples=config.evaluate.bootstrap, seed=config.seed
    )._asdict()


def _response_seconds(run: RunDirectory) -> dict[str, float]:
    """Seconds a response of each stage, of the last session that computed any: a resumed stage has computed a part."""
    return {
        entry["stage"]: entry["seconds"] / entry["responses"]
        for entry in run.timings()
        if entry.get("responses")
    }
