"""Scorers: the rewards of one party, each with the calibrator that puts its scores on [0, 1]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rheostat import plugins
from rheostat.calibration import Calibrator
from rheostat.config import Dtype, RewardConfig, RunConfig
from rheostat.plugins import Judged, PartedReward, Progress, Reward
from rheostat.recipe import reward_options
from rheostat.records import Control, Scores

OWN = "reward"
"""The name of the run's own scorer, beside the judges' names."""


def load_rewards(specs: Mapping[str, RewardConfig], config: RunConfig) -> dict[str, Reward]:
    """The reward of each attribute. Raises `ModelError` where one cannot be loaded."""
    return {
        attribute: build_reward(
            spec,
            attribute=attribute,
            dtype=config.dtype,
            device=config.device,
            batch_tokens=config.batch_tokens,
        )
        for attribute, spec in specs.items()
    }


def build_reward(
    spec: RewardConfig, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The reward of a block. Raises `ModelError` where it cannot be loaded."""
    reward: Reward = plugins.load("rewards", spec.kind).build(
        spec,
        reward_options(spec),
        attribute=attribute,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
    )
    return reward


def raw_columns(rewards: Mapping[str, Reward], items: Sequence[Judged]) -> dict[str, list[float]]:
    """Raw scores by attribute, one an item; of a reward made of others also theirs, as `ATTRIBUTE/PART`."""
    columns: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        if isinstance(reward, PartedReward):
            scores = reward.score_parts(items)
            columns[name] = scores.combined
            columns |= {f"{name}/{part}": values for part, values in scores.parts.items()}
        else:
            columns[name] = reward.score(items)
    return columns


def parties(config: RunConfig) -> dict[str, dict[str, RewardConfig]]:
    """Every party that scores: the run's own rewards first, then the judges, by name."""
    return {OWN: config.rewards, **config.judges}


@dataclass(frozen=True, slots=True)
class CalibratedScorer:
    """Rewards with their calibrators, by attribute."""

    rewards: Mapping[str, Reward]
    calibrators: Mapping[str, Calibrator]

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        """Per item the calibrated score in [0, 1] of each attribute; `progress` is told once an item."""
        columns = {
            name: self.calibrators[name].apply(reward.score(items)).tolist()
            for name, reward in self.rewards.items()
        }
        if progress is not None:
            progress(len(items))
        return [{name: column[index] for name, column in columns.items()} for index in range(len(items))]


def calibrated_scorer(
    config: RunConfig, party: str, calibrators: Mapping[str, Calibrator]
) -> CalibratedScorer:
    """A party's rewards, loaded, with their calibrators."""
    return CalibratedScorer(load_rewards(parties(config)[party], config), calibrators)


def nearest(scores: Sequence[Scores], control: Control) -> int:
    """The place of the scores nearest to a control, by the sum of absolute differences; of several the first."""

    def distance(place: int) -> float:
        return sum(abs(scores[place][name] - level) for name, level in control.items())

    return min(range(len(scores)), key=distance)
