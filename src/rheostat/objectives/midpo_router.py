"""MidPO's router: gates between two frozen experts, learned by DPO on pairs of two safe responses. It trains no dial.

L = −log σ(β·Δ) + λ·(mean |a| + mean |b − 1|),  Δ as DPO's, a the gates of the safety and b of the helpfulness expert,
means over layers and tokens. Where DPO asks for nothing else, the safety expert stays out, the helpfulness expert in.

Source: arXiv 2506.02460, MidPO; the pairs are those in which both responses are safe, the safer preferred. Ours: safe
means a calibrated score of at least ½; the means take in the prompt's tokens, no padding; λ, which the paper does
not have (1); the base model is the reference. `routed.py` holds the model; its gates reach this loss by `inputs.gates`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from rheostat.plugins import Loss, Needs, PairInputs

_SAFE = 0.5


def _both_safe(chosen: Mapping[str, float], rejected: Mapping[str, float]) -> bool:
    return min(chosen["safety"], rejected["safety"]) >= _SAFE


NEEDS = Needs(
    rows="pairs",
    control=False,
    ordered_by="safety",
    attributes=("safety", "helpfulness"),
    keeps=_both_safe,
    experts={"safety": "spe_dpo+safety", "helpfulness": "spe_dpo+helpfulness"},
)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """β > 0, the strength of the pull to the reference; λ ≥ 0 as `penalty`; `width` of the routers' narrow middle."""

    beta: float = 0.1
    penalty: float = 1.0
    width: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta!r}, allowed is a finite number above 0")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty: got {self.penalty!r}, allowed is a finite number of at least 0")
        if self.width < 1:
            raise ValueError(f"width: got {self.width!r}, allowed is a whole number of at least 1")


def loss(inputs: PairInputs, options: OPTIONS) -> Loss:
    """The batch mean, a scalar, at least 0; log-probabilities `(pairs, tokens)`, gates `(layers × tokens,)`.

    Worked, β = 1, λ = 1: Δ = ln 4, a = (.25, .75), b = (1, .5) give ln 1.25 + .5 + .25 = 0.9731.
    """
    margin = (inputs.chosen.sum() - inputs.reference_chosen.sum()) - (
        inputs.rejected.sum() - inputs.reference_rejected.sum()
    )
    safety, helpfulness = inputs.gates["safety"], inputs.gates["helpfulness"]
    penalty = safety.abs().mean() + (helpfulness - 1).abs().mean()
    return Loss(
        total=-logsigmoid(options.beta * margin).mean() + options.penalty * penalty,
        parts={
            "nll": -inputs.chosen.mean().detach().mean(),
            "preferred": (margin.detach() > 0).float().mean(),
            "margin": margin.detach().mean(),
            "safety_gate": safety.detach().mean(),
            "helpfulness_gate": helpfulness.detach().mean(),
        },
    )
