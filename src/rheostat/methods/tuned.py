"""Tuned: a fine-tuned model that reads the control from its text."""

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

HAS_DIAL = True


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """None beside the engine's."""
    return {}


def build(context: MethodContext) -> Method:
    """The method over a tuned model's engine."""
    return Tuned(context.engine)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Puts the control text after the prompt and samples once."""

    engine: Engine

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, under its control."""
        controlled = [GenerationRequest(request.messages, request.control) for request in requests]
        answers = self.engine.generate(controlled, sampling, seed=seed, progress=progress)
        return [ControlledCompletion(each[0], each[0].tokens) for each in answers]
