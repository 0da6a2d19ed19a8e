"""A backend that answers by rule: says what it was asked, at once or as slowly as a test lets it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from rheostat.attributes import helpfulness, safety
from rheostat.control import ControlFormat
from rheostat.errors import ModelError
from rheostat.gateway.backend import Ask, Piece, ServedModel, Usage

FORMAT = ControlFormat((helpfulness.ATTRIBUTE, safety.ATTRIBUTE))
MODELS = {"stub": ServedModel("stub", FORMAT, 1024)}


@dataclass
class StubBackend:
    """Answers with the control that it got and the words of the last turn, a piece a word.

    `gate` holds every answer back after its first piece until it is set; `fails_with` is raised in place of an answer,
    or after `fails_after` pieces. `asks` are those it got; `closed` counts the answers whose generator has ended.
    """

    models: Mapping[str, ServedModel] = field(default_factory=lambda: MODELS)
    gate: asyncio.Event | None = None
    fails_with: Exception | None = None
    fails_after: int = 0
    unwell: ModelError | None = None
    asks: list[Ask] = field(default_factory=list)
    closed: int = 0
    is_started: bool = False

    @property
    def waiting(self) -> int:
        return 0

    async def start(self) -> None:
        self.is_started = True

    async def stop(self) -> None:
        self.is_started = False

    async def check(self) -> None:
        if self.unwell is not None:
            raise self.unwell

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        self.asks.append(ask)
        try:
            words = self.text(ask).split(" ")[: ask.max_tokens]
            for sample in range(ask.samples):
                for place, word in enumerate(words):
                    if self.fails_with is not None and place == self.fails_after:
                        raise self.fails_with
                    yield Piece(sample, word if place == 0 else f" {word}")
                    if place == 0 and self.gate is not None:
                        await self.gate.wait()
                yield Piece(sample, "", "stop")
            yield Usage(7, len(words) * ask.samples)
        finally:
            self.closed += 1

    @staticmethod
    def text(ask: Ask) -> str:
        """What it answers."""
        return f"{FORMAT.render(ask.control)} {ask.messages[-1].content}"
