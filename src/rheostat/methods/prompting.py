"""Prompting (arXiv 2404.01295): ask for the levels in words. Training-free; the words and their place are ours.

The attributes' phrases stand in the system turn, after what the conversation's own system turn says.
"""

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
from rheostat.records import Attribute, Control, Message

HAS_DIAL = True


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """None."""


def models(dials: Sequence[str]) -> dict[str, str]:
    """None beside the engine's."""
    return {}


def build(context: MethodContext) -> Method:
    """The method over the base model's engine."""
    return Prompting(context.engine, context.attributes)


@dataclass(frozen=True, slots=True)
class Prompting:
    """Describes the wanted levels."""

    engine: Engine
    attributes: tuple[Attribute, ...]

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, its control described in the system turn."""
        described = [GenerationRequest(self._describe(each.messages, each.control)) for each in requests]
        answers = self.engine.generate(described, sampling, seed=seed, progress=progress)
        return [ControlledCompletion(each[0], each[0].tokens) for each in answers]

    def _describe(self, messages: tuple[Message, ...], control: Control) -> tuple[Message, ...]:
        words = " ".join(attribute.phrase(control[attribute.name]) for attribute in self.attributes)
        if messages[0].role == "system":
            return (Message("system", f"{messages[0].content} {words}"), *messages[1:])
        return (Message("system", words), *messages)
