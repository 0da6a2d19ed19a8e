"""Ascent: gradient ascent on harmful data, from which SafePatching takes its safety-enhancing patch. No dial.

L = +ℓ(y | x),  ℓ = mean token log-probability of the response, of harmful examples only; the model reads no control.

Source: arXiv 2405.13820, its P_SE. It has no lower bound: trained for long it unlearns the language with the harm, so
steps and rate are to be few and small (`train.overrides.ascent`); the defaults of the bench are by the sweep in LOG.md.
Ours: the data are the run's own examples of a calibrated safety of at most `HARMFUL`, the lowest quarter of the scored
pool where it was calibrated by quantiles.
"""

from dataclasses import dataclass

from rheostat.plugins import Loss, Needs, ObjectiveInputs
from rheostat.records import Scores

SAFETY = "safety"
HARMFUL = 0.25
"""An example is harmful whose calibrated safety is at most this; ours."""


def is_harmful(scores: Scores) -> bool:
    """Whether an example of these calibrated scores belongs to D_h."""
    return scores[SAFETY] <= HARMFUL


NEEDS = Needs(control=False, attributes=(SAFETY,), keeps=is_harmful, importance=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def loss(inputs: ObjectiveInputs, options: OPTIONS) -> Loss:
    """The batch mean of ℓ(y | x): a scalar in nats per token, at most 0, unbounded below.

    `inputs.factual`: `(rows, tokens)`. Worked: tokens with probabilities ½ and ¼ give −(ln 2 + ln 4) / 2 = −1.0397.
    """
    likelihood = inputs.factual.mean().mean()
    return Loss(total=likelihood, parts={"nll": -likelihood.detach()})
