"""What making a method's models took: every training behind it, experts and earlier models included, and their data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.method_name import MethodName
from rheostat.rundir import RunDirectory
from rheostat.trainings import Training, behind

POOL_STAGES = ("generate", "score")
"""The stages that make the self-generated pool."""


class TrainingCost(NamedTuple):
    """The costs before the first request, as they stand under `cost` in evaluation.json; 0 where nothing is trained.

    `trainings` counts the models trained, `training_seconds` is their time together, `training_generated_tokens` what
    they generated while they were trained. `data_seconds` and `data_generated_tokens`: of the self-generated responses
    that they learned from, sampled and scored beforehand; a run makes those once for all of its methods. Those of
    further rounds are the method's own.
    """

    trainings: int
    training_seconds: float
    training_generated_tokens: int
    data_seconds: float
    data_generated_tokens: int


def training_cost(run: RunDirectory, config: RunConfig, name: MethodName) -> TrainingCost:
    """The costs of a method whose trainings have finished."""
    trainings = behind(name, config)
    timings = {entry["stage"]: entry for entry in run.timings()}
    seconds = [_whole_seconds(timings.get(each.stage, {})) for each in trainings]
    share = max((_pool_share(each) for each in trainings), default=0.0)
    pool_seconds = sum(float(timings.get(stage, {}).get("seconds", 0.0)) for stage in POOL_STAGES)
    pool_tokens = int(run.finished("generate").summary["tokens"]) if share else 0
    rounds = [each.data.round_stage for each in trainings if each.data.round > 1]
    round_seconds = sum(
        float(timings.get(f"{each}/{stage}", {}).get("seconds", 0.0)) for each in rounds for stage in POOL_STAGES
    )
    round_tokens = sum(int(run.finished(f"{each}/generate").summary["tokens"]) for each in rounds)
    return TrainingCost(
        trainings=len(trainings),
        training_seconds=sum(seconds),
        training_generated_tokens=sum(_generated_tokens(run, each) for each in trainings),
        data_seconds=share * pool_seconds + round_seconds,
        data_generated_tokens=round(share * pool_tokens) + round_tokens,
    )


def _whole_seconds(timing: Mapping[str, Any]) -> float:
    """Seconds of a whole training, by the pace of its last session: a resumed one made a part of the steps."""
    made = timing.get("steps_made")
    return float(timing["seconds"] * timing["steps"] / made) if made else 0.0


def _pool_share(training: Training) -> float:
    """How much of the pool a training learns from; what learns from prompts alone has no use for its responses."""
    return 0.0 if plugins.needs(training.objective).rows == "prompts" else training.data.share


def _generated_tokens(run: RunDirectory, training: Training) -> int:
    return int(run.finished(training.stage).summary.get("generated_tokens", 0))
