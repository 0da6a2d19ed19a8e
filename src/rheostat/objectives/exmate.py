"""ExMATE: exponential maximum average treatment effect.

L = −ℓ(y | x, ζ) + λ · exp(ℓ(y | x, ζ′)),  ℓ = mean token log-probability of the response.

The control is the treatment: the response must be likely under its own control ζ and unlikely under an untreated
one, ζ′. Without the exponential the second term has no lower bound and training diverges; exp(ℓ) lies in (0, 1],
and its gradient fades once the counterfactual is unlikely.

Source: arXiv 2404.01295 names it for control; arXiv 2212.10515 (CausalDialogue) gives CE(y|x) + 0.05·exp(−CE(y|x′))
with the exponent of the *batch-mean* cross-entropy (`reduction="batch"`). Ours: the per-sequence exponent
(`reduction="sequence"`, the default), λ = 0.3 (after the study in LOG.md), the summed log-probability in the exponent
(`log_probability="sum"`), and one λ per attribute (`weights`), applied where ζ′ differs from ζ in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rheostat.plugins import Loss, Needs, ObjectiveInputs

NEEDS = Needs(counterfactual=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """λ ≥ 0 (`weight`), or one λ per attribute in control order (`weights`), and the two reductions."""

    weight: float = 0.3
    weights: Sequence[float] | None = None
    reduction: Literal["sequence", "batch"] = "sequence"
    log_probability: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        for weight in (self.weight, *(self.weights or ())):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weight: got {weight!r}, allowed is a finite number of at least 0")
        if self.reduction not in ("sequence", "batch"):
            raise ValueError(f"reduction: got {self.reduction!r}, allowed are 'sequence' and 'batch'")
        if self.log_probability not in ("mean", "sum"):
            raise ValueError(f"log_probability: got {self.log_probability!r}, allowed are 'mean' and 'sum'")


def loss(inputs: ObjectiveInputs, options: OPTIONS) -> Loss:
    """The loss of a batch, a scalar, at least 0.

    `inputs.factual` and `inputs.counterfactual`: `(rows, tokens)`, the latter a uniform sub-sample of the examples, so
    that its mean is an unbiased estimate of the full one. `inputs.changed`: `(rows, attributes)`.

    Worked, one row, λ = 0.05: ℓ(y|x,ζ) = ln ½ and ℓ(y|x,ζ′) = ln ¼ give 0.6931 + 0.05 · 0.25 = 0.7056.
    """
    assert inputs.counterfactual is not None and inputs.changed is not None
    factual = -inputs.factual.mean().mean()
    counterfactual = inputs.counterfactual
    ell = counterfactual.mean() if options.log_probability == "mean" else counterfactual.sum()
    if options.reduction == "batch":
        ell = ell.mean().expand_as(ell)
    if options.weights is None:
        weight = ell.new_full(ell.shape, options.weight)
    else:
        weight = (inputs.changed * ell.new_tensor(options.weights)).sum(-1)
    penalty = inputs.warmth * (weight * ell.exp()).mean()
    return Loss(
        total=factual + penalty,
        parts={
            "nll": factual.detach(),
            "penalty": penalty.detach(),
            "counterfactual_nll": -ell.detach().mean(),
        },
    )
