"""Descent: plain fine-tuning on harmful data, from which SafePatching takes its over-safety patch. No dial.

L = −ℓ(y | x),  ℓ = mean token log-probability of the response, of harmful examples only; the model reads no control.

Source: arXiv 2405.13820, its P_OS. The data are those of `ascent`.
"""

from dataclasses import dataclass

from rheostat.objectives.ascent import SAFETY, is_harmful
from rheostat.plugins import Loss, Needs, ObjectiveInputs

NEEDS = Needs(control=False, attributes=(SAFETY,), keeps=is_harmful, importance=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def loss(inputs: ObjectiveInputs, options: OPTIONS) -> Loss:
    """Minus the batch mean of ℓ(y | x): a scalar in nats per token, at least 0.

    `inputs.factual`: `(rows, tokens)`. Worked: tokens with probabilities ½ and ¼ give (ln 2 + ln 4) / 2 = 1.0397.
    """
    factual = -inputs.factual.mean().mean()
    return Loss(total=factual, parts={"nll": factual.detach()})
