"""The pocket world's truth as a scorer: a judge of evaluations there, on its own scale [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass

from rheostat import pocket
from rheostat.config import Dtype, RewardConfig
from rheostat.errors import RewardError
from rheostat.plugins import Judged, Progress, Reward

NEEDS_MODEL = False


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """None."""


OPTIONS = TruthOptions


def build(
    spec: RewardConfig, options: TruthOptions, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The truth about `attribute`; raises `RewardError` where the pocket world knows none."""
    if attribute not in ("helpfulness", "safety"):
        raise RewardError(
            f"truth: got the attribute {attribute!r}, allowed are helpfulness and safety",
            hint="judge other attributes with a classifier",
        )
    return TruthReward(attribute)


@dataclass(frozen=True, slots=True)
class TruthReward:
    """Reads one attribute off a text."""

    attribute: str

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """In [0, 1], one an item; raises `RewardError` for a prompt that is not of the pocket world."""
        scores: list[float] = []
        for item in items:
            try:
                truth = pocket.judge(item.messages[-1].content, item.response)
            except pocket.UnknownTask as error:
                raise RewardError(
                    f"truth: {error}", hint="truth knows the pocket world's prompts only"
                ) from error
            scores.append(float(getattr(truth, self.attribute)))
            if progress is not None:
                progress(1)
        return scores
