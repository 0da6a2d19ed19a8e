"""Several rewards as one: their weighted mean, or the least of them, each stored on its own too.

Rewards speak in units of their own, so each member states the fixed map that puts its raw scores on [0, 1]: `sigmoid`
for a logit or log-odds, `identity` for what is in [0, 1] already (`higher_is_better: false` turns either round).
Fixed, and not fitted on the pool as a reward's own calibration is: an ensemble's score of a text must not depend on
what else was scored. The combined raw score lies in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rheostat import calibration
from rheostat.config import Dtype, RewardConfig, expand_rewards
from rheostat.errors import did_you_mean
from rheostat.plugins import Judged, PartedReward, PartedScores, Progress, Reward

NEEDS_MODEL = False
NESTED = ("members",)

_MAPS = ("sigmoid", "identity")


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """What is combined, and how.

    `members`: two or more rewards by name, each with its `calibration`. `combine`: their weighted mean or the least
    of them. `weights`: above 0, by member; 1 where none is given.
    """

    members: dict[str, Any]
    combine: Literal["weighted", "minimum"] = "weighted"
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"got {len(self.members)} members, allowed are two or more")
        for name, block in expand_rewards(self.members).items():
            if "/" in name:
                raise ValueError(f"got the member {name!r}, allowed are names without a slash")
            given = block.get("calibration") if isinstance(block, Mapping) else None
            if given not in _MAPS:
                raise ValueError(
                    f"members.{name}: got calibration {given!r}, allowed are {' and '.join(_MAPS)}: a member states "
                    "the fixed map that puts its scores on [0, 1]"
                )
        if self.weights is not None and self.combine == "minimum":
            raise ValueError("got weights for the minimum, allowed is none")
        for name, weight in (self.weights or {}).items():
            if name not in self.members:
                raise ValueError(
                    f"got a weight for {name!r}, allowed are {', '.join(self.members)}"
                    f"{did_you_mean(name, list(self.members))}"
                )
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"got the weight {weight!r} for {name!r}, allowed are numbers above 0")


OPTIONS = EnsembleOptions


def build(
    spec: RewardConfig,
    options: EnsembleOptions,
    *,
    attribute: str,
    dtype: Dtype,
    device: str,
    batch_tokens: int,
) -> Reward:
    """The members, each built as a reward of `attribute`. Raises `ModelError` where one cannot be loaded."""
    from rheostat.scoring import build_reward

    specs = {name: RewardConfig.model_validate(block) for name, block in expand_rewards(options.members).items()}
    weights = options.weights or {}
    return EnsembleReward(
        {
            name: Member(
                build_reward(
                    each,
                    attribute=attribute,
                    dtype=dtype,
                    device=device,
                    batch_tokens=batch_tokens,
                ),
                _map_of(each),
                weights.get(name, 1.0),
            )
            for name, each in specs.items()
        },
        options.combine,
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A reward, the fixed map of its scores to [0, 1], and its weight."""

    reward: Reward
    map: calibration.Calibrator
    weight: float


@dataclass(frozen=True, slots=True)
class EnsembleReward:
    """Scores with all members, one after another."""

    members: Mapping[str, Member]
    combine: Literal["weighted", "minimum"]

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """The combined score of each item, in [0, 1]."""
        return self.score_parts(items, progress=progress).combined

    def score_parts(self, items: Sequence[Judged], *, progress: Progress | None = None) -> PartedScores:
        """The combined scores with every member's raw ones; `progress` is told once, when all members have read.

        Raises `RewardError` where a member with `calibration: identity` leaves [0, 1].
        """
        parts: dict[str, list[float]] = {}
        mapped: list[list[float]] = []
        for name, member in self.members.items():
            if isinstance(member.reward, PartedReward):
                found = member.reward.score_parts(items)
                raw = found.combined
                parts |= {f"{name}/{part}": scores for part, scores in found.parts.items()}
            else:
                raw = member.reward.score(items)
            parts[name] = raw
            mapped.append(member.map.apply(raw).tolist())
        if progress is not None:
            progress(len(items))
        weights = [member.weight for member in self.members.values()]
        return PartedScores([combined(row, weights, self.combine) for row in zip(*mapped, strict=True)], parts)


def combined(scores: Sequence[float], weights: Sequence[float], how: Literal["weighted", "minimum"]) -> float:
    """One item's score from its members' in [0, 1].

    Worked: scores .2 and .8 with weights 3 and 1 give (.6 + .8) / 4 = .35; their minimum is .2.
    """
    if how == "minimum":
        return min(scores)
    total = math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))
    return total / math.fsum(weights)


def _map_of(spec: RewardConfig) -> calibration.Calibrator:
    """The member's map; it is fixed, so what it is fitted on does not matter."""
    return calibration.fit(spec.calibration, [0.5], higher_is_better=spec.higher_is_better)
