"""The shapes in which a row of data can hold a conversation that waits for an answer (docs/prompts.md).

| keys                                             | common in                                      |
|--------------------------------------------------|------------------------------------------------|
| `messages` (or `conversation`)                   | chat data: turns with `role` and `content`     |
| `conversations`                                  | ShareGPT: turns with `from` and `value`        |
| `prompt`                                         | text, or turns as in TRL                       |
| `instruction` with `input` or `context`          | Alpaca, Dolly                                  |
| `question`, `query`                              | question answering                             |
| `chosen`, `rejected`, `transcript`               | preferences as turns, or HH's `Human:` text    |

Whatever the shape, answers at the end are dropped, so that the conversation ends with the user's turn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from rheostat.records import Message, Role

TURN_COLUMNS = ("messages", "conversations", "conversation")
"""Columns that hold turns and nothing else."""

PREFERENCES = ("chosen", "rejected", "transcript")
"""Columns that hold a conversation with its answer: turns, or a transcript."""

PROMPT_COLUMNS = (*TURN_COLUMNS, "prompt", "instruction", "question", "query", *PREFERENCES)
"""Where a prompt is looked for; the first that is there counts."""

INPUTS = ("input", "context")
"""What an `instruction` is applied to."""

SYSTEM_COLUMNS = ("system_prompt", "system")
"""A system turn beside a conversation that has none."""

COLUMNS = (*PROMPT_COLUMNS, *INPUTS, *SYSTEM_COLUMNS)
ROLES = ("system", "user", "assistant")

_SHAREGPT: Mapping[object, str] = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a source: its number, counted from 1, and its conversation, or else what is wrong."""

    number: int
    messages: tuple[Message, ...] = ()
    problem: str | None = None


class RowProblem(ValueError):
    """What is wrong with a row."""


def read_row(number: int, row: object, column: str | None = None) -> Line:
    """A row as a line: its `conversation`, or what is wrong with it."""
    try:
        return Line(number, conversation(row, column))
    except RowProblem as problem:
        return Line(number, problem=str(problem))


def conversation(row: object, column: str | None = None) -> tuple[Message, ...]:
    """The conversation of a row, in `column` or in the first of `PROMPT_COLUMNS` that the row has.

    The assistant's turns at the end are dropped. Outer white space of each turn is stripped, nothing else is
    changed. Raises `RowProblem`.
    """
    if not isinstance(row, Mapping):
        raise RowProblem(f"got {kind_of(row)}, allowed is an object with {allowed_columns()}")
    name = column or next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if name is None or row.get(name) is None:
        keys = ", ".join(repr(str(key)[:40]) for key in list(row)[:6]) or "none"
        raise RowProblem(f"it has the keys {keys}, allowed are {column or allowed_columns()}")
    value = row[name]
    if name in TURN_COLUMNS or not isinstance(value, str):
        turns = _turns(value, name)
    elif _SPOKEN.match(value):
        turns = _transcript(value)
    elif name in PREFERENCES and column is None:
        raise RowProblem(f"{name}: got text without turns, allowed is one that begins with a blank line and 'Human:'")
    else:
        more = _input(row) if name == "instruction" else ""
        turns = (Message("user", _text(value, name) + more),)
    return turns if column else _with_system(row, turns)


def allowed_columns() -> str:
    """The columns in which a prompt is looked for, in words."""
    return f"{', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}"


def kind_of(value: object) -> str:
    """A value of a JSON file in words: `a list`, `nothing`."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _input(row: Mapping[str, object]) -> str:
    for name in INPUTS:
        more = row.get(name)
        if more is not None and (not isinstance(more, str) or more.strip()):
            return "\n\n" + _text(more, name)
    return ""


def _with_system(row: Mapping[str, object], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if turns[0].role == "system":
        return turns
    for name in SYSTEM_COLUMNS:
        system = row.get(name)
        if system is not None and (not isinstance(system, str) or system.strip()):
            return (Message("system", _text(system, name)), *turns)
    return turns


def _transcript(text: str) -> tuple[Message, ...]:
    """The turns of `"\\n\\nHuman: …\\n\\nAssistant: …"`."""
    parts = _SPOKEN.split(text)[1:]
    return _checked([(_SPEAKERS[name], said) for name, said in zip(parts[::2], parts[1::2], strict=True)])


def _turns(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        allowed = "a list of turns" if name in TURN_COLUMNS or isinstance(value, Sequence) else "text or turns"
        raise RowProblem(f"{name}: got {kind_of(value)}, allowed is {allowed}")
    turns: list[tuple[object, object]] = []
    for place, turn in enumerate(value, start=1):
        if isinstance(turn, Mapping) and {"role", "content"} <= set(turn):
            turns.append((turn["role"], turn["content"]))
        elif isinstance(turn, Mapping) and {"from", "value"} <= set(turn):
            speaker = turn["from"]
            role = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else speaker
            turns.append((role, turn["value"]))
        else:
            raise RowProblem(
                f"turn {place}: got {kind_of(turn)}, allowed is an object with role and content, or from and value"
            )
    return _checked(turns)


def _checked(turns: Sequence[tuple[object, object]]) -> tuple[Message, ...]:
    """The turns without the answers at the end, in an order that a chat template takes."""
    for place, (role, _) in enumerate(turns, start=1):
        if role not in ROLES:
            raise RowProblem(f"turn {place}: got the role {role!r}, allowed are {', '.join(ROLES)}")
    asked = list(turns)
    while asked and asked[-1][0] == "assistant":
        asked.pop()
    if not asked:
        raise RowProblem("every turn is the assistant's, allowed is one with a user's turn")
    messages = tuple(
        Message(cast(Role, role), _text(content, f"turn {place}"))
        for place, (role, content) in enumerate(asked, start=1)
    )
    spoken = [turn.role for turn in messages[messages[0].role == "system" :]]
    if not spoken or spoken[-1] != "user":
        raise RowProblem(f"the last turn is the {messages[-1].role}'s, allowed is the user's")
    if spoken != [("user", "assistant")[place % 2] for place in range(len(spoken))]:
        order = ", ".join(turn.role for turn in messages)
        raise RowProblem(
            f"got the roles {order}; allowed is at most one system turn, then user and assistant by turns"
        )
    return messages


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(f"{name}: got {kind_of(value)}, allowed is text")
    text = value.strip()
    if not text:
        raise RowProblem(f"{name}: it is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowProblem(f"{name}: it is not valid UTF-8 text") from None
    return text
