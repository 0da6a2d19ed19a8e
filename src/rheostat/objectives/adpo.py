"""ADPO: DPO over the tokens that earn it, by a token-level reward. It trains no dial.

L = −log σ(β · Σ_t M_t^w · log π(y_t^w)/π_ref(y_t^w) − β · Σ_t M_t^l · log π(y_t^l)/π_ref(y_t^l)),

M_t^w = 1 where r_t > b (of the chosen response only what is good is raised), M_t^l = 1 where r_t < b (of the rejected
one only what is bad is lowered), b the baseline.

Source: arXiv 2502.11555 (Equilibrate RLHF: adaptive message-wise alignment), the formula assembled from its prose; the
trainer that was published does not run. Its token-level reward model is unknown. Ours: r_t = log π_DPO(y_t) −
log π_ref(y_t), the reward that a model tuned by DPO implies for each token (arXiv 2404.12358), of this run's own `dpo`;
b = 0 and β = 0.1; which response is chosen as for DPO; and the end of a response counts in both, whatever its reward
(`keep_end`). DPO makes ends rarer where the longer response is preferred, so masks would lower the rejected ends and
hide the chosen ones: without it four answers of five never ended (LOG.md).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from rheostat.plugins import LogProbabilities, Loss, Needs, PairInputs

NEEDS = Needs(rows="pairs", control=False, token_rewards_of="dpo")


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """β > 0, the strength of the pull to the reference; the token rewards' baseline b in nats; whether ends count."""

    beta: float = 0.1
    baseline: float = 0.0
    keep_end: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta!r}, allowed is a finite number above 0")
        if not abs(self.baseline) < float("inf"):
            raise ValueError(f"baseline: got {self.baseline!r}, allowed is a finite number")


def loss(inputs: PairInputs, options: OPTIONS) -> Loss:
    """The batch mean, a scalar, at least 0; log-probabilities and token rewards `(pairs, tokens)`.

    Worked without `keep_end`, one pair of two tokens each, β = 1, b = 0: log-ratios of the chosen (ln 2, −ln 8) with
    rewards (1, −1), of the rejected (ln 8, −ln 2) with rewards (1, −1): the first and the last count, ln 2 + ln 2 =
    ln 4, −log σ(ln 4) = 0.2231. With it the chosen end counts too: ln 2 − ln 8 + ln 2 = −ln 2, −log σ(−ln 2) = 1.0986.
    DPO's own margin is ln 2 − ln 8 − ln 8 + ln 2 = −ln 16.
    """
    assert inputs.chosen_token_rewards is not None and inputs.rejected_token_rewards is not None
    good = inputs.chosen.mask.bool() & (inputs.chosen_token_rewards > options.baseline)
    bad = inputs.rejected.mask.bool() & (inputs.rejected_token_rewards < options.baseline)
    if options.keep_end:
        good, bad = good | _last(inputs.chosen.mask.bool()), bad | _last(inputs.rejected.mask.bool())
    margin = _kept_sum(inputs.chosen, inputs.reference_chosen, good) - _kept_sum(
        inputs.rejected, inputs.reference_rejected, bad
    )
    total = -logsigmoid(options.beta * margin).mean()
    return Loss(
        total=total,
        parts={
            "nll": -inputs.chosen.mean().detach().mean(),
            "preferred": (margin.detach() > 0).float().mean(),
            "margin": margin.detach().mean(),
            "kept_chosen": good.sum() / inputs.chosen.mask.sum().clamp(min=1),
            "kept_rejected": bad.sum() / inputs.rejected.mask.sum().clamp(min=1),
        },
    )


def _last(mask: Tensor) -> Tensor:
    """The last token of each row, `(pairs, tokens)`: its end, or the last one known of a response that was cut off."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def _kept_sum(policy: LogProbabilities, reference: LogProbabilities, kept: Tensor) -> Tensor:
    """Σ of the log-ratios over the tokens that are kept, `(pairs,)`."""
    return ((policy.values - reference.values) * kept).sum(-1)
