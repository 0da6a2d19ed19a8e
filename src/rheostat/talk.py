"""Talking to a dialled model at a terminal: one answer, a grid of answers, a conversation."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Protocol

from rheostat.control import ControlFormat, check_dial
from rheostat.errors import DialError, InputError, RheostatError
from rheostat.records import Control, Message

HELP = """\
/DIAL LEVEL   turn a dial, for example /safety 0.5
/dials        show the dials
/reset        forget the conversation
/help         show this
/quit         leave, as Ctrl-D does
//TEXT        say something that begins with a slash"""

_COMMAND = re.compile(r"/?([^\s=]*)[\s=]*(.*)", re.DOTALL)
"""A word, and what follows it after spaces or an equals sign."""


class Talker(Protocol):
    """The part of a `DialledModel` that talking needs."""

    @property
    def control_format(self) -> ControlFormat:
        """The dials and their levels."""
        ...

    def respond_batch(
        self,
        items: Sequence[tuple[Sequence[Message], Mapping[str, float]]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> list[str]:
        """One answer an item, each under its own dials; a dial not given is at its highest level."""
        ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers are drawn; `temperature` 0 is greedy, `max_tokens` bounds an answer."""

    temperature: float = 0.7
    max_tokens: int = 128
    seed: int = 0


def parse_dials(given: Sequence[str], **named: float | None) -> dict[str, float]:
    """Dials from `name=value` arguments and from options of their own; raises `DialError`."""
    dials = {name: check_dial(name, value) for name, value in named.items() if value is not None}
    return dials | parse_named_levels("--dial", given)


def parse_named_levels(option: str, given: Sequence[str]) -> dict[str, float]:
    """Levels by dial from the `name=value` arguments of an option; raises `DialError`."""
    levels = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            raise DialError(
                f"{option}: got {argument!r}, allowed is name=value", hint=f"for example {option} safety=0.5"
            )
        levels[name.strip()] = _level(name.strip(), value)
    return levels


def parse_levels(text: str) -> tuple[float, ...]:
    """Comma-separated levels in [0, 1], ascending; raises `DialError`."""
    return tuple(sorted({_level("--levels", part) for part in text.split(",")}))


def messages_of(text: str, system: str | None = None) -> tuple[Message, ...]:
    """A conversation of one user turn; raises `InputError` where it is empty."""
    if not text.strip():
        raise InputError("got an empty text, allowed is anything to respond to", hint="write it in quotes")
    turn = Message("user", text.strip())
    return (Message("system", system), turn) if system else (turn,)


def answer(model: Talker, messages: Sequence[Message], dials: Mapping[str, float], manner: Manner) -> str:
    """One answer."""
    return model.respond_batch(
        [(messages, dials)], temperature=manner.temperature, max_tokens=manner.max_tokens, seed=manner.seed
    )[0]


def answer_grid(
    model: Talker, messages: Sequence[Message], levels: Sequence[float] | None, manner: Manner
) -> list[tuple[Control, str]]:
    """Answers at every combination of levels; without `levels` at each dial's lowest, middle and highest."""
    form = model.control_format
    chosen = [levels or _ends_and_middle(form.levels_of(name)) for name in form.names]
    controls = [form.resolve(dict(zip(form.names, point, strict=True))) for point in product(*chosen)]
    distinct = list({form.render(control): control for control in controls}.values())
    answers = model.respond_batch(
        [(messages, control) for control in distinct],
        temperature=manner.temperature,
        max_tokens=manner.max_tokens,
        seed=manner.seed,
    )
    return list(zip(distinct, answers, strict=True))


@dataclass(slots=True)
class Conversation:
    """A conversation whose dials can be turned between turns."""

    model: Talker
    manner: Manner
    dials: dict[str, float]
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    answers: int = 0

    def show_dials(self) -> str:
        """The levels that the next answer obeys."""
        control = self.model.control_format.resolve(self.dials)
        return "  ".join(f"{name} {level:g}" for name, level in control.items())

    def command(self, line: str) -> str:
        """Obey a line that begins with `/`; gives what to show. Raises `DialError` and `InputError`."""
        word, value = _COMMAND.fullmatch(line.casefold()).groups()  # type: ignore[union-attr]  # fits every line
        if word == "dials":
            return self.show_dials()
        if word == "reset":
            self.turns.clear()
            return "the conversation is forgotten"
        if word == "help":
            return HELP
        if word in self.model.control_format.names:
            return self._turn(word, value) if value else self.show_dials()
        allowed = [*self.model.control_format.names, "dials", "reset", "help", "quit"]
        raise InputError(
            f"got /{word}, allowed are {', '.join('/' + name for name in allowed)}",
            hint="begin with two slashes to say something that begins with one",
        )

    def _turn(self, dial: str, value: str) -> str:
        asked = self.dials[dial] = _level(dial, value)
        level = self.model.control_format.resolve(self.dials)[dial]
        rounded = f"  ({level:g} is the level nearest to {asked:g})" if level != asked else ""
        return self.show_dials() + rounded

    def say(self, text: str) -> str:
        """The answer to a turn; a turn that cannot be answered leaves the conversation as it was."""
        turns = [*self.turns, Message("user", text)]
        system = [Message("system", self.system)] if self.system else []
        manner = replace(self.manner, seed=self.manner.seed + self.answers)
        said = answer(self.model, [*system, *turns], self.dials, manner)
        self.turns = [*turns, Message("assistant", said)]
        self.answers += 1
        return said


def converse(
    conversation: Conversation,
    lines: Iterator[str],
    *,
    reply: Callable[[str], None],
    note: Callable[[str], None],
    fault: Callable[[RheostatError], None],
) -> None:
    """Talk until the lines end or `/quit`: answers to `reply`, remarks to `note`, errors to `fault`."""
    for line in lines:
        text = line.strip()
        if text.casefold() in ("/quit", "/exit"):
            return
        if not text:
            continue
        try:
            if text.startswith("/") and not text.startswith("//"):
                note(conversation.command(text))
            else:
                reply(conversation.say(text.removeprefix("/") if text.startswith("//") else text))
        except RheostatError as error:
            fault(error)


def _ends_and_middle(levels: Sequence[float]) -> tuple[float, ...]:
    return levels[0], levels[len(levels) // 2], levels[-1]


def _level(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise DialError(
            f"{name}: got {value.strip()!r}, allowed is a number from 0 to 1",
            hint="0.5 is the middle of a dial",
        ) from None
    return check_dial(name, number)
