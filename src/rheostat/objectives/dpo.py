"""DPO: direct preference optimization, the common baseline of preference learning. It trains no dial.

L = −log σ(β·Δ),  Δ = [log π(y_w|x) − log π_ref(y_w|x)] − [log π(y_l|x) − log π_ref(y_l|x)],  sums over the response's
tokens, y_w the chosen and y_l the rejected response.

Source: arXiv 2305.18290, equation 7. Ours: which response is chosen, by the mean of the calibrated scores (`dpo`) or by
one attribute's (`dpo+safety`); β = 0.1 as that paper's.
"""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from rheostat.plugins import Loss, Needs, PairInputs

NEEDS = Needs(rows="pairs", control=False)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """β > 0, the strength of the pull to the reference."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta!r}, allowed is a finite number above 0")


def loss(inputs: PairInputs, options: OPTIONS) -> Loss:
    """The batch mean, a scalar, at least 0; all log-probabilities `(pairs, tokens)`.

    Worked, one pair of one token each, β = 1: chosen ½ against ¼ of the reference, rejected ¼ against ½, give
    Δ = ln 2 + ln 2 = ln 4 and −log σ(ln 4) = ln 1.25 = 0.2231.
    """
    margin = (inputs.chosen.sum() - inputs.reference_chosen.sum()) - (
        inputs.rejected.sum() - inputs.reference_rejected.sum()
    )
    total = -logsigmoid(options.beta * margin).mean()
    return Loss(
        total=total,
        parts={
            "nll": -inputs.chosen.mean().detach().mean(),
            "preferred": (margin.detach() > 0).float().mean(),
            "margin": margin.detach().mean(),
        },
    )
