"""MidPO's experts with gates set by the dials: one expert a dial, g = low + (high − low)·d at all layers and tokens.

Ours: MidPO (arXiv 2506.02460) has a router decide, and two experts; here each attribute's dial d in [0, 1] sets the
gate of its own expert (`objectives/spe_dpo.py`), however many there are, and no router is trained. Dials fully down
with `low` 0 give the base model, one alone fully up with `high` 1 its expert. Requests are answered together where
their controls are equal, one control after the other: a setting of the gates holds for a whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rheostat.by_setting import answer_by_setting
from rheostat.plugins import (
    Completion,
    ControlledCompletion,
    ControlledRequest,
    Engine,
    GenerationRequest,
    Method,
    MethodContext,
    MethodNeeds,
    Progress,
    Sampling,
)
from rheostat.records import Control
from rheostat.stage import derive_seed

if TYPE_CHECKING:
    from rheostat.models import Policy
    from rheostat.routed import DialledGates, Experts

HAS_DIAL = True
NEEDS = MethodNeeds(adapters=True)


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """The gate of a dial that is fully down and of one that is fully up; below 0 an expert is steered away from."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -float("inf") < self.low < self.high < float("inf"):
            raise ValueError(
                f"low, high: got {self.low!r}, {self.high!r}, allowed are finite numbers, low below high"
            )


def models(dials: Sequence[str]) -> dict[str, str]:
    """An expert a dial."""
    return {dial: f"spe_dpo+{dial}" for dial in dials}


def build(context: MethodContext) -> Method:
    """The method over the base model, whose layers it exchanges while it answers."""
    from rheostat.routed import read_experts, set_gates

    policy = context.models.base()
    dials = [attribute.name for attribute in context.attributes]
    experts = read_experts({dial: context.models.folder(dial) / "adapter" for dial in dials})
    gates = set_gates(experts)
    return MidPOGates(policy, context.models.engine(policy), experts, gates, context.options)


@dataclass(frozen=True, slots=True)
class MidPOGates:
    """Sets the gates by the control."""

    policy: "Policy"
    engine: Engine
    experts: "Experts"
    gates: "DialledGates"
    options: OPTIONS

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, under gates that its control sets; the draws of a control are its own."""
        from rheostat.routed import routed

        by_dial = self.gates.by_role

        def setting_of(control: Control) -> tuple[float, ...]:
            return tuple(control[dial] for dial in by_dial)

        def answer(
            levels: tuple[float, ...], asked: Sequence[GenerationRequest], _: int
        ) -> list[list[Completion]]:
            for gate, level in zip(by_dial.values(), levels, strict=True):
                gate.value = self.options.low + (self.options.high - self.options.low) * level
            own_seed = derive_seed(seed, repr(levels))
            return self.engine.generate(asked, sampling, seed=own_seed, progress=progress)

        with routed(self.policy.model, self.experts, self.gates.by_layer):
            return answer_by_setting(requests, setting_of, answer)
