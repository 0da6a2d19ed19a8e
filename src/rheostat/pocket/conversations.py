"""The aligned distribution of the pocket world, and the conversations that its chat model learns.

``ALIGNED`` says how often an aligned assistant answers in each cell. About three quarters of the answers are
what one expects of it; the last quarter is spread so that at temperature 1 each corner of the plane (the four
cells around it) has a probability of about 3–6 %: the model was made safe, not made unable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from rheostat.pocket.corpus import Kind, Task, phrases, request, tasks
from rheostat.pocket.responses import LEVELS, Cell, Form, Response, respond

Table = tuple[tuple[float, ...], ...]

# Rows: safety level 0 … 4; columns: helpfulness level 0 … 4; in per cent.
ALIGNED: Mapping[Kind, Table] = {
    "harmless": (
        (2.0, 0.8, 1.0, 1.0, 2.2),
        (1.0, 0.8, 1.0, 0.8, 1.4),
        (1.5, 1.2, 1.5, 8.0, 19.0),
        (1.0, 0.8, 2.0, 8.0, 22.0),
        (2.0, 1.0, 2.0, 5.0, 13.0),
    ),
    # As harmless, with the needless refusals that aligned models have.
    "borderline": (
        (2.0, 0.8, 1.0, 1.0, 2.2),
        (1.0, 0.8, 1.0, 0.8, 1.4),
        (1.5, 1.2, 1.5, 7.0, 17.0),
        (1.0, 0.8, 2.0, 7.0, 20.0),
        (8.0, 1.0, 2.0, 5.0, 13.0),
    ),
    "risky": (
        (2.0, 0.9, 0.7, 1.2, 2.2),
        (1.2, 0.9, 0.8, 1.0, 1.4),
        (2.0, 1.2, 2.0, 1.5, 2.0),
        (3.0, 1.2, 1.2, 3.5, 6.5),
        (42.0, 1.5, 1.6, 6.0, 12.5),
    ),
}

PRETRAINING: Table = tuple((3.0, 3.0, 3.0, 4.0, 7.0) for _ in range(LEVELS))
"""What the model learns before it is aligned: all levels of safety alike, and mostly whole answers.

Without this stage it never learned the steps that an aligned assistant withholds."""

METADATA_SHARE = 0.3
"""The share of answers that begin with metadata of their form, such as ``[style=0.25][closing=1]``.

Real models have met key–value markup in plenty; a model without any could not read the digits of a control. The
keys say nothing of safety or helpfulness, and no dial's word is among them."""

INSTRUCTED_SHARE = 0.4
"""The share of conversations whose system turn asks for a level of one or both attributes."""
OBEYED_SHARE = 0.65
"""How often an instruction is followed; otherwise that attribute's level is the aligned one."""
EXACT_SHARE = 0.7
"""How often an obeyed instruction gives its very level rather than a neighbouring one."""
PERSONA_SHARE = 0.1
"""The share of the other conversations that begin with a persona."""
TWO_TURN_SHARE = 0.05
"""The share of conversations in which an earlier request and its answer precede."""


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns before the answer, the answer, and what was asked for (``None``: nothing)."""

    messages: tuple[Message, ...]
    response: Response
    task: Task
    wanted_safety: int | None = None
    wanted_helpfulness: int | None = None
    metadata: str = ""
    """What the answer begins with, given and not learned."""


def _near(level: int, rng: Random) -> int:
    if rng.random() < EXACT_SHARE:
        return level
    return rng.choice([near for near in (level - 1, level + 1) if 0 <= near < LEVELS])


def draw_cell(
    table: Table, rng: Random, *, safety: int | None = None, helpfulness: int | None = None
) -> Cell:
    """Draw a cell from a table, given none, one or both of its levels."""
    cells = [
        Cell(row, column)
        for row in range(LEVELS)
        for column in range(LEVELS)
        if safety in (None, row) and helpfulness in (None, column)
    ]
    return rng.choices(cells, [table[cell.safety][cell.helpfulness] for cell in cells])[0]


def instruction(rng: Random, *, safety: int | None, helpfulness: int | None) -> str:
    """The words of a system turn that asks for these levels, in either order."""
    asked = [
        rng.choice(phrases()[f"{name} {level}"])
        for name, level in (("safety", safety), ("helpfulness", helpfulness))
        if level is not None
    ]
    rng.shuffle(asked)
    return " ".join(asked)


def converse(rng: Random, *, among: Sequence[Task] | None = None, aligned: bool = True) -> Conversation:
    """Draw a conversation of the aligned assistant, or of one that has only been pretrained."""
    task = rng.choice(among or tasks())
    wanted: dict[str, int | None] = {"safety": None, "helpfulness": None}
    system: list[str] = []
    if rng.random() < INSTRUCTED_SHARE:
        for name in rng.choice((("safety",), ("helpfulness",), ("safety", "helpfulness"))):
            wanted[name] = rng.randrange(LEVELS)
        if rng.random() < PERSONA_SHARE:
            system.append(rng.choice(phrases()["personas"]))
        system.append(instruction(rng, safety=wanted["safety"], helpfulness=wanted["helpfulness"]))
    elif rng.random() < PERSONA_SHARE:
        section = "personas" if rng.random() < 0.5 else "persona variants"
        system.append(rng.choice(phrases()[section]))
    obeyed = {
        name: _near(level, rng) if level is not None and rng.random() < OBEYED_SHARE else None
        for name, level in wanted.items()
    }
    cell = draw_cell(
        ALIGNED[task.kind] if aligned else PRETRAINING,
        rng,
        safety=obeyed["safety"],
        helpfulness=obeyed["helpfulness"],
    )
    messages = [Message("system", " ".join(system))] if system else []
    if rng.random() < TWO_TURN_SHARE:
        earlier = rng.choice(tasks())
        messages.append(Message("user", _ask(earlier, rng)))
        messages.append(
            Message("assistant", respond(earlier, draw_cell(ALIGNED[earlier.kind], rng), rng).text)
        )
    messages.append(Message("user", _ask(task, rng)))
    form = Form(rng.randrange(LEVELS), rng.randrange(LEVELS)) if rng.random() < METADATA_SHARE else None
    return Conversation(
        tuple(messages),
        respond(task, cell, rng, form=form),
        task,
        wanted["safety"],
        wanted["helpfulness"],
        metadata(form, rng) if form else "",
    )


def metadata(form: Form, rng: Random) -> str:
    """A form as markup: its keys in either order, its levels as 0, 0.25, … 1."""
    keys = [f"[style={form.style / (LEVELS - 1):g}]", f"[closing={form.closing / (LEVELS - 1):g}]"]
    rng.shuffle(keys)
    return "".join(keys)


def _ask(task: Task, rng: Random) -> str:
    return request(rng.choice((*phrases()["requests"], *phrases()["held-out requests"])), task)
