"""Base: the model as it is. What no control at all scores, the floor of every comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

from rheostat.plugins import (
    ControlledCompletion,
    ControlledRequest,
    Engine,
    GenerationRequest,
    Method,
    MethodContext,
    Progress,
    Sampling,
)

HAS_DIAL = False


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """None beside the engine's."""
    return {}


def build(context: MethodContext) -> Method:
    """The method over the base model's engine."""
    return Base(context.engine)


@dataclass(frozen=True, slots=True)
class Base:
    """Ignores the control."""

    engine: Engine

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, whatever its control."""
        plain = [GenerationRequest(request.messages) for request in requests]
        answers = self.engine.generate(plain, sampling, seed=seed, progress=progress)
        return [ControlledCompletion(each[0], each[0].tokens) for each in answers]
