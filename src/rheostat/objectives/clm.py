"""CLM: conditional language modelling, the baseline objective.

L = −ℓ(y | x, ζ),  ℓ = mean token log-probability of the response.

Source: arXiv 2404.01295 compares it under this name; the mean over response tokens is ours.
"""

from dataclasses import dataclass

from rheostat.plugins import Loss, Needs, ObjectiveInputs

NEEDS = Needs()


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """CLM has no options."""


def loss(inputs: ObjectiveInputs, options: OPTIONS) -> Loss:
    """Minus the batch mean of ℓ(y | x, ζ): a scalar in nats per token, at least 0.

    `inputs.factual`: `(rows, tokens)`. Worked: tokens with probabilities ½ and ¼ give (ln 2 + ln 4) / 2 = 1.0397.
    """
    factual = -inputs.factual.mean().mean()
    return Loss(total=factual, parts={"nll": factual.detach()})
