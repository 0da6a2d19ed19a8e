"""What making a method's models took: every training behind it, experts and earlier models included, and their data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.method_name import MethodName
from rheostat.rundir import RunDirectory
from rheostat.trainings import Training, behind


class TrainingCost(NamedTuple):
    """The costs before the first request, as they stand under `cost` in evaluation.json; 0 where nothing is trained.

    `trainings` counts the models trained, `training_seconds` is their time together, `training_generated_tokens` what
    they generated while they were trained. `data_seconds` and `data_generated_tokens`: of the self-generated responses
    that they learned from, sampled and scored beforehand; a run makes those once for all of its methods.
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
    made = _data_made(trainings)
    data_seconds = sum(
        share * float(timings.get(f"{place}{stage}", {}).get("seconds", 0.0))
        for place, share in made.items()
        for stage in ("generate", "score")
    )
    return TrainingCost(
        trainings=len(trainings),
        training_seconds=sum(_whole_seconds(timings.get(each.stage, {})) for each in trainings),
        training_generated_tokens=sum(
            int(run.finished(each.stage).summary.get("generated_tokens", 0)) for each in trainings
        ),
        data_seconds=data_seconds,
        data_generated_tokens=sum(
            round(share * int(run.finished(f"{place}generate").summary["tokens"])) for place, share in made.items()
        ),
    )


def _data_made(trainings: Sequence[Training]) -> dict[str, float]:
    """Where the responses lie that trainings learned from, each with the share that they use: pool and further rounds.

    What learns from prompts alone has no use for them.
    """
    learning = [each.data for each in trainings if plugins.needs(each.objective).rows != "prompts"]
    pool = max((data.share for data in learning), default=0.0)
    return ({"": pool} if pool else {}) | {f"{data.round_stage}/": 1.0 for data in learning if data.round > 1}


def _whole_seconds(timing: Mapping[str, Any]) -> float:
    """Seconds of a whole training, by the pace of its last session: a resumed one made a part of the steps."""
    made = timing.get("steps_made")
    return float(timing["seconds"] * timing["steps"] / made) if made else 0.0
