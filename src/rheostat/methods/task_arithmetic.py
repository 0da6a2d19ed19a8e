"""Task arithmetic (arXiv 2212.04089) as dials: each attribute's task vector, added or subtracted by its own dial.

θ = θ0 + Σ_a c_a·(θ_a − θ0),  c_a = (2·d_a − 1)·scale.

The paper adds and negates task vectors; ours: that a dial sets the coefficient, from −scale at 0 by 0, which is the
base, at ½ to scale at 1, and that the vectors are those of DPO's experts, one per attribute (`dpo+safety`). Unlike
rewarded soups' weights these are independent: as many dimensions as dials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rheostat.plugins import Method, MethodContext, MethodNeeds
from rheostat.records import Control

HAS_DIAL = True
NEEDS = MethodNeeds(whole_weights=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """`scale` > 0: the coefficient of a dial that stands at 1."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale: got {self.scale!r}, allowed is a finite number above 0")


def models(dials: Sequence[str]) -> Mapping[str, str]:
    """An expert per dial, whose role is the dial's name."""
    return {dial: f"dpo+{dial}" for dial in dials}


def build(context: MethodContext) -> Method:
    """The method over the base model and its experts."""
    from rheostat.weight_mixing import MixedWeights, WeightMixer, expert_deltas

    options: OPTIONS = context.options
    base = context.models.base()
    roles = [attribute.name for attribute in context.attributes]
    mixer = WeightMixer(base, expert_deltas(context.models, roles))
    return MixedWeights(mixer, context.models.engine(base), lambda control: signed(control, options.scale))


def signed(control: Control, scale: float) -> dict[str, float]:
    """c of each dial. Worked, scale 2: a dial at 0 gives −2, at 0.5 gives 0, at 0.75 gives 1."""
    return {name: (2 * level - 1) * scale for name, level in control.items()}
