"""What answers: the engine in this process, or a server behind the gateway. The types that both speak."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rheostat.control import ControlFormat
from rheostat.records import Control, Finish, Message, Scores

Ending = Finish | Literal["content_filter"]
"""Why an answer ended; `content_filter`: it was refused by a guard, and its text is the policy's."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the engine gets it: all in it was checked, and its `control` granted by the policy.

    `control` holds every dial of the model, on one of its levels. `samples` answers are drawn, each ended by a text of
    `stop` (left out of the answer), by the model's end token or after `max_tokens` tokens. Without `seed` one is drawn.
    `stream` False says that nobody waits for pieces: a backend may give each answer in one.
    """

    model: str
    messages: tuple[Message, ...]
    control: Control
    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None = None
    stop: tuple[str, ...] = ()
    samples: int = 1
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of answer `sample` (0 …); its last piece, whose text may be empty, says why it `finish`ed."""

    sample: int
    text: str
    finish: Ending | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt and of all answers; comes once, after the last piece."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known when an answer is whole; of a guarded one the scores are for the audit log unless asked for."""

    usage: Usage
    guard: Mapping[str, Any] | None = None
    scores: Scores | None = None
    shows_scores: bool = True


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for, and its dials."""

    name: str
    control_format: ControlFormat
    context: int | None = None


class Backend(Protocol):
    """Answers asks, many at a time."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """By name, the default model first."""
        ...

    @property
    def waiting(self) -> int:
        """Asks that have been taken and have no token yet."""
        ...

    async def start(self) -> None:
        """Ready to answer afterwards. Raises `ModelError`."""
        ...

    async def stop(self) -> None:
        """Frees all; asks under way end in a `Refusal` of status 503."""
        ...

    async def check(self) -> None:
        """Raises `ModelError` (`EndpointError`) where an ask could not be answered now."""
        ...

    def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        """The answers' pieces as they are made, of several samples in any order, then their usage.

        Closing the generator ends the work. Raises `InputError` (`PromptTooLong`) for a conversation that the model
        cannot take, `EndpointError` where a server behind fails, `Refusal` where the backend is full or stopping.
        """
        ...
