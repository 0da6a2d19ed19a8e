"""SPE-DPO, single-preference-enhanced DPO: an expert of one attribute, MidPO's first step. It trains no dial.

L = −log σ(β·Δ − m),  m = scale·max(0, S_w − S_l)
Δ = [log π(y_w|x) − log π_ref(y_w|x)] − [log π(y_l|x) − log π_ref(y_l|x)],  y_w the chosen, y_l the rejected response,
sums over the tokens from the first in which the two differ; S the score of the attribute that orders the pair.

Source: arXiv 2506.02460, MidPO. There the safety expert's loss is −log σ(βΔ + min(0, C_w − C_l)) with a cost C, the
helpfulness expert's −log σ(βΔ − max(0, R_w − R_l)) with a reward R: with C = −S·scale or R = S·scale one formula. The
larger the gap, the further the two are to be driven apart; a mislabelled pair, whose chosen response scores no higher,
has no margin, which leaves DPO. Tokens that both responses begin with are as likely in both, so this Δ is DPO's own;
the authors' published code starts one token later, past the first that differs, and ours does not.

Ours: S is a calibrated score in [0, 1] and `scale`, in nats, the margin of a whole gap, where theirs are raw outputs of
reward models. β = 0.1 and the adapter that it trains are the paper's; `scale` was found by a sweep (LOG.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rheostat.config import LoraConfig
from rheostat.plugins import LogProbabilities, Loss, Needs, PairInputs

NEEDS = Needs(rows="pairs", control=False, adapter=LoraConfig(rank=16, alpha=32, layers="mlp_output"))


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """β > 0, the strength of the pull to the reference; `scale` ≥ 0, the margin of a gap of 1, in nats."""

    beta: float = 0.1
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta!r}, allowed is a finite number above 0")
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"scale: got {self.scale!r}, allowed is a finite number of at least 0")


def loss(inputs: PairInputs, options: OPTIONS) -> Loss:
    """The batch mean, a scalar, at least 0; all log-probabilities `(pairs, tokens)`.

    Worked, one pair of two tokens of which the first is shared, β = 1, scale 1: chosen (½, ½) against (½, ¼) of the
    reference, rejected (½, ¼) against (½, ½), so Δ = ln 4; scores .9 and .4, so m = .5: −log σ(ln 4 − .5) = 0.3451.
    With the scores exchanged m = 0 and the loss is DPO's, ln 1.25 = 0.2231.
    """
    delta = (
        summed_from(inputs.chosen, inputs.shared)
        - summed_from(inputs.reference_chosen, inputs.shared)
        - summed_from(inputs.rejected, inputs.shared)
        + summed_from(inputs.reference_rejected, inputs.shared)
    )
    margin = options.scale * (ordering(inputs, "chosen") - ordering(inputs, "rejected")).clamp(min=0)
    total = -logsigmoid(options.beta * delta - margin).mean()
    return Loss(
        total=total,
        parts={
            "nll": -inputs.chosen.mean().detach().mean(),
            "preferred": (delta.detach() > 0).float().mean(),
            "margin": delta.detach().mean(),
            "wanted": margin.mean(),
        },
    )


def summed_from(logprobs: LogProbabilities, start: Tensor) -> Tensor:
    """The sum of each row's log-probabilities after its first `start` tokens, `(rows,)`; a mask's zeros don't count."""
    place = logprobs.mask.cumsum(-1)
    return (logprobs.values * logprobs.mask * (place > start[:, None])).sum(-1)


def ordering(inputs: PairInputs, which: str) -> Tensor:
    """The score that orders the pairs, of the `chosen` or the `rejected` response: `(pairs,)`."""
    scores = inputs.chosen_scores if which == "chosen" else inputs.rejected_scores
    if inputs.ordered_by is not None:
        return scores[inputs.ordered_by]
    return torch.stack(list(scores.values())).mean(0)
