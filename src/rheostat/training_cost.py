"""What making a method's models took: every training behind it, experts and earlier models included, and their data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rheostat.config import RunConfig
from rheostat.method_name import MethodName
from rheostat.rundir import RunDirectory
from rheostat.trainings import Training, behind


class TrainingCost(NamedTuple):
    """The costs before the first request, as they stand under `cost` in evaluation.json; 0 where nothing is trained,
    None of seconds that no record tells.

    `trainings` counts the models trained, `training_seconds` is their time together, `training_generated_tokens` what
    they generated while they were trained. `data_seconds` and `data_generated_tokens`: of the self-generated responses
    that they learned from, sampled and scored beforehand; a run makes those once for all of its methods.
    """

    trainings: int
    training_seconds: float | None
    training_generated_tokens: int
    data_seconds: float | None
    data_generated_tokens: int


def training_cost(run: RunDirectory, config: RunConfig, name: MethodName) -> TrainingCost:
    """The costs of a method whose trainings have finished."""
    trainings = behind(name, config)
    timings = {entry["stage"]: entry for entry in run.timings()}
    made = _data_made(trainings)
    data_seconds = [
        None if seconds is None else share * seconds
        for place, share in made.items()
        for stage in ("generate", "score")
        for seconds in [_whole_seconds(timings.get(f"{place}{stage}", {}), "responses")]
    ]
    return TrainingCost(
        trainings=len(trainings),
        training_seconds=_sum([_whole_seconds(timings.get(each.stage, {}), "steps") for each in trainings]),
        training_generated_tokens=sum(
            int(run.finished(each.stage).summary.get("generated_tokens", 0)) for each in trainings
        ),
        data_seconds=_sum(data_seconds),
        data_generated_tokens=sum(
            round(share * int(run.finished(f"{place}generate").summary["tokens"])) for place, share in made.items()
        ),
    )


def _data_made(trainings: Sequence[Training]) -> dict[str, float]:
    """Where the responses lie that trainings learned from, each with the share that they use: pool and further rounds.

    What learns from prompts alone has the pool too: its rewards are calibrated on that.
    """
    learning = [each.data for each in trainings]
    pool = max((data.share for data in learning), default=0.0)
    return ({"": pool} if pool else {}) | {f"{data.round_stage}/": 1.0 for data in learning if data.round > 1}


def _whole_seconds(timing: Mapping[str, Any], unit: str) -> float | None:
    """Seconds of a whole stage by the pace of its last session: a resumed one made a part of its steps or responses.

    None where nothing tells: no record, or a last session that made nothing.
    """
    if "seconds" not in timing:
        return None
    if f"{unit}_made" not in timing:
        return float(timing["seconds"])
    made = timing[f"{unit}_made"]
    return float(timing["seconds"] * timing[unit] / made) if made else None


def _sum(parts: Sequence[float | None]) -> float | None:
    """Their sum; None where one is unknown."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
