"""Logit mixing (MOD): one expert a dial, their next-token distributions multiplied at every step by the dials' weights.

π(y_t | x, y_<t) ∝ Π_a π_a(y_t | x, y_<t)^{λ_a}, λ_a = d_a / Σ_b d_b. The temperature is the mixture's: the product is
taken first, then π^{1/T}.

Source: arXiv 2406.18853, the mixture for the reverse Kullback-Leibler divergence, where the experts are trained by DPO
or PPO on one reward each. Ours: the experts are `dpo+ATTRIBUTE`, λ is set by the dials (`simplex`), and requests of
unlike λ share a batch and their prompt's prefill. Every token costs a forward of each expert, every token held a place
in each expert's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rheostat.errors import ModelError
from rheostat.methods.tuned import Tuned
from rheostat.plugins import Method, MethodContext, MethodNeeds
from rheostat.records import Control
from rheostat.simplex import simplex

HAS_DIAL = True
NEEDS = MethodNeeds(dials=2)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """An expert a dial."""
    return {dial: f"dpo+{dial}" for dial in dials}


def build(context: MethodContext) -> Method:
    """A tuned model whose engine mixes the experts as each request's control asks; their tokens are counted once.

    Raises `ModelError` for an engine in process other than `transformers`.
    """
    from rheostat.engines._mixture import Mixture
    from rheostat.engines.transformers import TransformersEngine

    dials = [attribute.name for attribute in context.attributes]
    experts = [context.models.tuned(dial) for dial in dials]
    engine = context.models.engine(experts[0])
    if not isinstance(engine, TransformersEngine):
        raise ModelError(
            f"logit_mixing: got the engine {type(engine).__name__}, allowed is TransformersEngine",
            hint="set `engine: transformers`, or leave logit_mixing out of the methods",
        )

    def weigh(control: Control) -> list[float]:
        weights = simplex({dial: control[dial] for dial in dials})
        return [weights[dial] for dial in dials]

    return Tuned(replace(engine, mixture=Mixture(tuple(each.model for each in experts), weigh)))
