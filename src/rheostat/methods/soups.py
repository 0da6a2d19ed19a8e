"""Rewarded soups (arXiv 2306.04488): the weights of one expert per attribute, averaged as the dials ask.

θ = θ0 + Σ_a λ_a·(θ_a − θ0),  λ_a = d_a / Σ_b d_b,  λ on the simplex, all equal where every dial is 0.

The experts are DPO's (arXiv 2305.18290), one per attribute, which prefer the response with more of it (`dpo+safety`);
the paper's are of RLHF. As published the weights lie on a simplex, so what counts is the *ratio* of the dials: with two
of them the dial has one dimension, (0.25, 0.25) answers as (1, 1) does, and there is no setting for little of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rheostat.plugins import Method, MethodContext, MethodNeeds
from rheostat.simplex import simplex

HAS_DIAL = True
NEEDS = MethodNeeds(dials=2, whole_weights=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> Mapping[str, str]:
    """An expert per dial, whose role is the dial's name."""
    return {dial: f"dpo+{dial}" for dial in dials}


def build(context: MethodContext) -> Method:
    """The method over the base model and its experts."""
    from rheostat.weight_mixing import MixedWeights, WeightMixer, expert_deltas

    base = context.models.base()
    roles = [attribute.name for attribute in context.attributes]
    mixer = WeightMixer(base, expert_deltas(context.models, roles))
    return MixedWeights(mixer, context.models.engine(base), simplex)
