"""The pocket world's tasks and requests, read from the text files in ``data/``.

A task is one everyday goal with its own four steps, two precautions and two careless remarks; a risky task
also has a lawful alternative. A request is a task's goal in one of the grammar's phrasings. All of it is
deterministic: choices are made by hashing names, never by a random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

Kind = Literal["harmless", "borderline", "risky"]
Split = Literal["train", "optimization", "generalization"]

DATA = Path(__file__).parent / "data"
STEPS = 4
OPTIMIZATION_PHRASINGS = 2
"""How many of the training phrasings each task keeps for the optimization evaluation."""
HELD_OUT_TOPICS: Mapping[str, int] = {"harmless": 2, "risky": 1}
"""How many whole topics of each data file only the generalization evaluation sees."""
HELD_OUT_SHARE = 0.25
"""The share of every other topic's tasks that only the generalization evaluation sees."""


class CorpusError(ValueError):
    """A data file of the pocket world is malformed; the message names the file and the line."""


@dataclass(frozen=True)
class Task:
    """One goal: 4 ``steps``, 2 each of ``care`` and ``reckless``; a risky task also 4 ``lawful`` steps."""

    goal: str
    topic: str
    kind: Kind
    steps: tuple[str, ...]
    care: tuple[str, ...]
    reckless: tuple[str, ...]
    instead: str = ""
    lawful: tuple[str, ...] = ()

    @property
    def is_risky(self) -> bool:
        """Whether an aligned answer refuses or offers the lawful alternative."""
        return self.kind == "risky"

    @property
    def slug(self) -> str:
        """The goal as an identifier, e.g. ``boil-an-egg``."""
        return self.goal.replace(" ", "-")


@dataclass(frozen=True)
class PocketPrompt:
    """One request; ``task`` is its task's goal, ``id`` is unique over all splits."""

    id: str
    text: str
    task: str
    topic: str
    kind: Kind


def unit_hash(*parts: str) -> float:
    """A fixed number in [0, 1) for these strings, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _clauses(text: str, *, count: int, where: str) -> tuple[str, ...]:
    clauses = tuple(part.strip() for part in text.split("/"))
    if len(clauses) != count or not all(clauses):
        raise CorpusError(
            f"{where}: expected {count} clauses separated by '/', found {len(clauses)}: {text!r}"
        )
    for clause in clauses:
        if not all(character.isalpha() or character in " -" for character in clause):
            raise CorpusError(f"{where}: a clause may hold letters, spaces and hyphens only: {clause!r}")
    return clauses


def _task(lines: Sequence[tuple[int, str]], *, name: str, default_kind: Kind) -> Task:
    first, goal = lines[0]
    if goal != goal.strip() or ":" in goal:
        raise CorpusError(f"{name}:{first}: a block begins with its goal, unindented, not {goal!r}")
    allowed = ("topic", "kind", "steps", "care", "reckless", "instead", "lawful")
    fields: dict[str, tuple[int, str]] = {}
    for number, line in lines[1:]:
        key, colon, value = line.strip().partition(":")
        if not colon or key not in allowed or key in fields or not value.strip():
            raise CorpusError(
                f"{name}:{number}: expected one new '<field>: …' of {', '.join(allowed)}, not {line!r}"
            )
        fields[key] = (number, value.strip())
    kind = fields.get("kind", (first, default_kind))[1]
    if kind not in get_args(Kind):
        raise CorpusError(f"{name}:{fields['kind'][0]}: kind is one of {get_args(Kind)}, not {kind!r}")
    needed = ("topic", "steps", "care", "reckless", *(("instead", "lawful") if kind == "risky" else ()))
    missing = [key for key in needed if key not in fields]
    if missing:
        raise CorpusError(f"{name}:{first}: {goal!r} lacks {', '.join(missing)}")
    if kind != "risky" and ("instead" in fields or "lawful" in fields):
        raise CorpusError(f"{name}:{first}: {goal!r} has a lawful alternative but is {kind}")

    def clauses(key: str, count: int) -> tuple[str, ...]:
        number, text = fields[key]
        return _clauses(text, count=count, where=f"{name}:{number}")

    return Task(
        goal=goal,
        topic=fields["topic"][1],
        kind=cast(Kind, kind),
        steps=clauses("steps", STEPS),
        care=clauses("care", 2),
        reckless=clauses("reckless", 2),
        instead=fields["instead"][1] if kind == "risky" else "",
        lawful=clauses("lawful", STEPS) if kind == "risky" else (),
    )


def parse_tasks(text: str, *, name: str, default_kind: Kind = "harmless") -> tuple[Task, ...]:
    """The tasks of a data file's text, in its order.

    Raises:
        CorpusError: a block is malformed, or a goal or step occurs twice; names ``name`` and the line.
    """
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#"):
            continue
        if line.strip():
            blocks[-1].append((number, line.rstrip()))
        elif blocks[-1]:
            blocks.append([])
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    for block in blocks:
        if not block:
            continue
        task = _task(block, name=name, default_kind=default_kind)
        for clause in (task.goal, *task.steps, *task.lawful):
            if clause in seen:
                raise CorpusError(
                    f"{name}:{block[0][0]}: {clause!r} of {task.goal!r} is also in {seen[clause]!r}"
                )
            seen[clause] = task.goal
        tasks.append(task)
    return tuple(tasks)


@cache
def tasks() -> tuple[Task, ...]:
    """All tasks of the shipped corpus: harmless and borderline ones, then risky ones."""
    found: list[Task] = []
    for name in ("harmless", "risky"):
        path = DATA / f"{name}.txt"
        found += parse_tasks(path.read_text(encoding="utf-8"), name=path.name, default_kind=name)
    goals = [task.goal for task in found]
    if len(set(goals)) != len(goals):
        raise CorpusError(f"goals in both files: {sorted({goal for goal in goals if goals.count(goal) > 1})}")
    return tuple(found)


@cache
def by_goal() -> Mapping[str, Task]:
    """The shipped tasks by their goals."""
    return {task.goal: task for task in tasks()}


@cache
def phrases() -> Mapping[str, tuple[str, ...]]:
    """The sections of ``data/grammar.txt``: name → its lines."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate((DATA / "grammar.txt").read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("[") and text.endswith("]"):
            if text[1:-1] in sections:
                raise CorpusError(f"grammar.txt:{number}: section {text} occurs twice")
            current = sections.setdefault(text[1:-1], [])
        elif current is None:
            raise CorpusError(f"grammar.txt:{number}: a phrase before the first [section]: {text!r}")
        else:
            current.append(text)
    return {name: tuple(lines) for name, lines in sections.items()}


def _group(task: Task) -> str:
    return "risky" if task.is_risky else "harmless"


@cache
def held_out_tasks() -> frozenset[str]:
    """Goals that only the generalization split uses: whole topics, and a quarter of each other topic."""
    held: set[str] = set()
    for group, count in HELD_OUT_TOPICS.items():
        topics: dict[str, list[str]] = {}
        for task in tasks():
            if _group(task) == group:
                topics.setdefault(task.topic, []).append(task.goal)
        order = sorted(topics, key=lambda topic: unit_hash("topic", topic))
        for place, topic in enumerate(order):
            goals = sorted(topics[topic], key=lambda goal: unit_hash("goal", goal))
            held.update(goals if place < count else goals[: max(1, round(HELD_OUT_SHARE * len(goals)))])
    return frozenset(held)


def request(phrasing: str, task: Task) -> str:
    """A request's text: ``phrasing`` with the task's goal in it, verbatim."""
    return phrasing.replace("{goal}", task.goal)


def _phrasings(task: Task, split: Split) -> list[tuple[str, str]]:
    """(identifier, phrasing) pairs of one task in one split, in the task's own hashed order."""
    if split == "generalization":
        named = [(f"h{place}", phrasing) for place, phrasing in enumerate(phrases()["held-out requests"])]
        return sorted(named, key=lambda pair: unit_hash("held-out", task.goal, pair[1]))
    named = [(f"t{place}", phrasing) for place, phrasing in enumerate(phrases()["requests"])]
    named.sort(key=lambda pair: unit_hash("phrasing", task.goal, pair[1]))
    return named[:OPTIMIZATION_PHRASINGS] if split == "optimization" else named[OPTIMIZATION_PHRASINGS:]


@cache
def prompts(split: Split) -> tuple[PocketPrompt, ...]:
    """The requests of a split, ordered so that every prefix is a balanced sample of kinds and tasks.

    ``train`` and ``optimization`` share tasks but no phrasing of a task; ``generalization`` has tasks, three
    whole topics and phrasings of its own.

    Raises:
        ValueError: ``split`` is none of the three.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is one of {', '.join(get_args(Split))}, not {split!r}")
    keyed: list[tuple[float, str, PocketPrompt]] = []
    for kind in get_args(Kind):
        members = [
            task
            for task in tasks()
            if task.kind == kind and (task.goal in held_out_tasks()) == (split == "generalization")
        ]
        members.sort(key=lambda task: unit_hash("order", task.goal))
        rounds = zip(*(_phrasings(task, split) for task in members), strict=True)
        flat = [(task, *named) for names in rounds for task, named in zip(members, names, strict=True)]
        for place, (task, name, phrasing) in enumerate(flat):
            prompt = PocketPrompt(f"{task.slug}/{name}", request(phrasing, task), task.goal, task.topic, kind)
            keyed.append(((place + 0.5) / len(flat), prompt.id, prompt))
    return tuple(prompt for _, _, prompt in sorted(keyed, key=lambda item: item[:2]))
