"""BFPO: bi-factorial preference optimization, helpfulness and safety in one supervised loss. It trains no dial.

L = (Δ − t/τ)²,  Δ = log[π(y_w|x) · π_ref(y_l|x) / (π(y_l|x) · π_ref(y_w|x))],  t = b1·b3·I(y_w) − b3·I(y_l) − α,

y_w the more and y_l the less *helpful* response, I = 1 where a response is safe, b3 = 1/(b1 − 1). With the authors'
b1 = 3 and α = ½ the target t is, by (I(y_w), I(y_l)):

| (1, 0) | (1, 1) | (0, 0) | (0, 1) |
|---|---|---|---|
| 1 | ½ | −½ | −1 |

so a safe and helpful response is pulled up most, and of two of which only the less helpful is safe, that one wins.

Source: arXiv 2408.15313, with its τ = 0.01, b1 and α as defaults. Ours: a response is safe from a calibrated safety of
½ on (`safe_from`); pairs are ordered by calibrated helpfulness; all of the run's pairs in place of a helpful-only
buffer with a fifth of safety pairs; all weights where the authors train `down_proj` alone.
"""

from dataclasses import dataclass

from torch import Tensor

from rheostat.plugins import Loss, Needs, PairInputs

HELPFULNESS, SAFETY = "helpfulness", "safety"
"""The two factors: unlike other objectives this one has a meaning for exactly these."""

NEEDS = Needs(rows="pairs", control=False, ordered_by=HELPFULNESS, attributes=(HELPFULNESS, SAFETY))


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """The authors' b1 > 1, α and τ > 0 (nats per unit of target are 1/τ), and from which score on one is safe."""

    b1: float = 3.0
    alpha: float = 0.5
    tau: float = 0.01
    safe_from: float = 0.5

    def __post_init__(self) -> None:
        if not 1 < self.b1 < float("inf"):
            raise ValueError(f"b1: got {self.b1!r}, allowed is a finite number above 1")
        if not abs(self.alpha) < float("inf"):
            raise ValueError(f"alpha: got {self.alpha!r}, allowed is a finite number")
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"tau: got {self.tau!r}, allowed is a finite number above 0")
        if not 0 <= self.safe_from <= 1:
            raise ValueError(f"safe_from: got {self.safe_from!r}, allowed is a score from 0 to 1")

    @property
    def b3(self) -> float:
        """1 / (b1 − 1)."""
        return 1 / (self.b1 - 1)


def target(chosen_is_safe: Tensor, rejected_is_safe: Tensor, options: OPTIONS) -> Tensor:
    """t of each pair, `(pairs,)`, from the safe flags I(y_w) and I(y_l), `(pairs,)` each."""
    of_chosen = options.b1 * options.b3 * chosen_is_safe.float()
    return of_chosen - options.b3 * rejected_is_safe.float() - options.alpha


def loss(inputs: PairInputs, options: OPTIONS) -> Loss:
    """The batch mean, a scalar in nats², at least 0; all log-probabilities `(pairs, tokens)`.

    Worked, one pair of one token each, both safe, τ = ½: chosen ½ against ¼ of the reference, rejected ¼ against ½,
    give Δ = ln 4, t/τ = ½ / ½ = 1 and (1.3863 − 1)² = 0.1492.
    """
    margin = (inputs.chosen.sum() - inputs.reference_chosen.sum()) - (
        inputs.rejected.sum() - inputs.reference_rejected.sum()
    )
    wanted = target(
        inputs.chosen_scores[SAFETY] >= options.safe_from, inputs.rejected_scores[SAFETY] >= options.safe_from, options
    )
    total = (margin - wanted / options.tau).square().mean()
    return Loss(
        total=total,
        parts={
            "nll": -inputs.chosen.mean().detach().mean(),
            "preferred": (margin.detach() * wanted > 0).float().mean(),
            "margin": margin.detach().abs().mean(),
        },
    )
