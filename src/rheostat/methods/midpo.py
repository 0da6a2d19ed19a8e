"""MidPO (arXiv 2506.02460): two frozen experts, the weight of each set by a learned router, token by token. No dial.

The base model, one safety and one helpfulness adapter on the last layer of every MLP, and the gates that
`objectives/midpo_router.py` has trained. `routed.py` holds the formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rheostat.methods.base import Base
from rheostat.plugins import (
    ControlledCompletion,
    ControlledRequest,
    Engine,
    Method,
    MethodContext,
    Progress,
    Sampling,
)

if TYPE_CHECKING:
    from rheostat.models import Policy
    from rheostat.routed import Experts, Gates

HAS_DIAL = False


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None: what there is to choose is chosen in training."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """The training of the router, which brings its experts along."""
    return {"router": "midpo_router"}


def build(context: MethodContext) -> Method:
    """The method over the base model, whose layers it exchanges while it answers."""
    from rheostat.routed import load_routed

    policy = context.models.base()
    found = load_routed(context.models.folder("router") / "adapter")
    return MidPO(policy, context.models.engine(policy), found.experts, found.routers)


@dataclass(frozen=True, slots=True)
class MidPO:
    """Ignores the control; the router decides."""

    policy: "Policy"
    engine: Engine
    experts: "Experts"
    routers: "Gates"

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, whatever its control."""
        from rheostat.routed import routed

        with routed(self.policy.model, self.experts, self.routers):
            return Base(self.engine).respond(requests, sampling, seed=seed, progress=progress)
