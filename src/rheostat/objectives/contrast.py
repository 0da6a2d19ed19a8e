"""Contrast: a bounded preference of a response for its own control. Ours, from ExMATE's idea.

L = −ℓ(y | x, ζ) + λ · softplus(m − Δ) / n̄,  Δ = log p(y | x, ζ) − log p(y | x, ζ′), sums over the response's tokens.

softplus(−Δ) = −log σ(Δ) is minus the log-posterior of ζ against ζ′ given (x, y) under equal priors: the response must
*identify* its control. Like ExMATE it lowers p(y | x, ζ′), but only relative to p(y | x, ζ): once Δ passes the
margin m its gradient vanishes, whatever the response's own probability, so it does not unlearn the language. It also
is a noise-contrastive lower bound on the mutual information of control and response. Dividing by the batch-mean
response length n̄ puts both terms in nats per token.

No published source is known to us for this use; the contrastive bound is that of arXiv 1807.03748 with one negative.
"""

from dataclasses import dataclass

from torch.nn.functional import softplus

from rheostat.plugins import Loss, Needs, ObjectiveInputs

NEEDS = Needs(counterfactual=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """λ ≥ 0 (`weight`) and the margin m in nats; the defaults by the study in LOG.md."""

    weight: float = 4.0
    margin: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight: got {self.weight!r}, allowed is a finite number of at least 0")
        if not abs(self.margin) < float("inf"):
            raise ValueError(f"margin: got {self.margin!r}, allowed is a finite number")


def loss(inputs: ObjectiveInputs, options: OPTIONS) -> Loss:
    """The loss of a batch, a scalar in nats per token, at least 0.

    `inputs.factual` and `inputs.counterfactual`: `(rows, tokens)`; `inputs.rows` pairs them.

    Worked, one row of two tokens, λ = 1, m = 0: log-probabilities (ln ½, ln ½) under ζ and (ln ¼, ln ½) under ζ′
    give Δ = ln 2, softplus(−ln 2) = ln 1.5 = 0.4055, and 0.6931 + 0.4055 / 2 = 0.8959.
    """
    assert inputs.counterfactual is not None and inputs.rows is not None
    factual = -inputs.factual.mean().mean()
    difference = inputs.factual.sum()[inputs.rows] - inputs.counterfactual.sum()
    length = inputs.factual.mask.sum(-1).float().mean().clamp(min=1)
    contrast = softplus(options.margin - difference).mean() / length
    return Loss(
        total=factual + inputs.warmth * options.weight * contrast,
        parts={
            "nll": factual.detach(),
            "contrast": contrast.detach(),
            "identified": (difference.detach() > 0).float().mean(),
        },
    )
