"""RLHF with dials: the model answers while it trains, and is rewarded for coming near to what the control asks.

r = −Σ_a |score_a(y) − s_a| − β · [log π(y | x, ζ) − log π_ref(y | x, ζ)],  to be raised over y ~ π(· | x, ζ).

ζ asks for the level s_a of each attribute a; score_a is the run's own reward, calibrated to [0, 1]; the second term,
summed over the response's tokens, is in the mean the divergence KL(π ‖ π_ref) from the model that the training started
from.

Source: arXiv 2404.01295 compares its fine-tuning with RLHF and names neither reward nor algorithm that we know: the
formula is ours. It is optimised by RLOO (arXiv 2402.14740; TRL's trainer): a response's advantage is its r less the
mean r of the other responses to the same prompt and control. Ours: the defaults below, after the sweep in LOG.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rheostat.plugins import Needs
from rheostat.records import Control, Scores

NEEDS = Needs(rows="prompts")


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """β ≥ 0 a nat of divergence; a step's `prompts`, each under a control, and `samples`, 2 or more, of each.

    `temperature` > 0 is that of the responses, and of π and π_ref. These options take the place of `train.batch_size`:
    a step learns from `prompts` · `samples` responses, at most `generate.max_tokens` long.
    """

    beta: float = 0.02
    prompts: int = 8
    samples: int = 4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta!r}, allowed is a finite number of at least 0")
        if self.prompts < 1:
            raise ValueError(f"prompts: got {self.prompts!r}, allowed is a whole number of at least 1")
        if self.samples < 2:
            raise ValueError(f"samples: got {self.samples!r}, allowed is a whole number of at least 2")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature!r}, allowed is a finite number above 0")


def reward(scores: Sequence[Scores], controls: Sequence[Control], options: OPTIONS) -> dict[str, list[float]]:
    """−|score_a − s_a| of each response, by attribute, in [−1, 0]; the divergence is the trainer's to subtract.

    `scores` and `controls`: one a response, with the same attributes, in [0, 1].

    Worked: scores (0.9, 0.2) under the control (1, 0) give −0.1 and −0.2, together −0.3.
    """
    return {
        name: [-abs(found[name] - wanted[name]) for found, wanted in zip(scores, controls, strict=True)]
        for name in controls[0]
    }
