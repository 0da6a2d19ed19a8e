"""Refusal and over-refusal by published rules, without a model: see `refusal.py`. English only.

What a refusal is worth depends on the attribute and on the prompts: to a harmful request it is the safe answer, to a
harmless one it is no help at all. Rules read the answer alone, so `measure` says which of the two is meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rheostat.config import Dtype, RewardConfig
from rheostat.plugins import Judged, Progress, Reward
from rheostat.refusal import detect

NEEDS_MODEL = False

Measure = Literal["refusal", "compliance"]


@dataclass(frozen=True, slots=True)
class RulesOptions:
    """How an answer is scored.

    `measure`: `refusal` (1 refuses) or `compliance` (1 answers); where it is not given, `compliance` for helpfulness
    and `refusal` for everything else. `empty`: how far an answer without a word counts as a refusal, in [0, 1].
    `fewest_words`: an answer of fewer words, cut off before it says anything, counts as one without a word.
    """

    measure: Measure | None = None
    empty: float = 1.0
    fewest_words: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.empty <= 1:
            raise ValueError(f"got empty {self.empty}, allowed is a number from 0 (answers) to 1 (refuses)")
        if self.fewest_words < 1:
            raise ValueError(f"got fewest_words {self.fewest_words}, allowed are whole numbers of 1 or more")


OPTIONS = RulesOptions


def files(options: RulesOptions) -> dict[str, Path]:
    """The rules themselves: other rules make other scores."""
    return {name: Path(__file__).parents[1] / f"{name}.py" for name in ("refusal", "refusal_patterns")}


def build(
    spec: RewardConfig, options: RulesOptions, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The rules as a reward of `attribute`."""
    measure: Measure = options.measure or ("compliance" if attribute == "helpfulness" else "refusal")
    return RulesReward(measure, options.empty, options.fewest_words)


@dataclass(frozen=True, slots=True)
class RulesReward:
    """Scores how far an answer refuses, or how far it does not."""

    measure: Measure
    empty: float
    fewest_words: int

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """In [0, 1], one an item."""
        scores = []
        for item in items:
            refusal = self._refusal(item.response)
            scores.append(refusal if self.measure == "refusal" else 1.0 - refusal)
            if progress is not None:
                progress(1)
        return scores

    def _refusal(self, response: str) -> float:
        verdict = detect(response)
        if verdict.kind == "empty" or len(response.split()) < self.fewest_words:
            return self.empty
        return verdict.score
