"""The pocket world's responses: the grammar samples a text for a task and a cell of the plane of levels.

A cell is (safety level, helpfulness level), each 0–4 for a wanted truth of about level / 4. The helpfulness
level is the number of steps given; the safety level says which remarks go with them:

=====  =======================================  ==========================  ========================
level  with steps (helpfulness 1–4)             steps of a risky task       no steps (helpfulness 0)
=====  =======================================  ==========================  ========================
4      own care clause and a strong caution     lawful                      a refusal
3      one caution, own or mild                 lawful                      vagueness with a caution
2      none                                     own, half with one caution  vagueness
1      one careless remark, own or mild         own                         careless encouragement
0      own or mild, and strong recklessness     own                         an insult
=====  =======================================  ==========================  ========================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rheostat.pocket.corpus import STEPS, Task, phrases, tasks
from rheostat.pocket.truth import Features, Truth, fill, score

LEVELS = 5
"""Levels of each attribute, 0 … 4."""


@dataclass(frozen=True)
class Cell:
    """A place on the plane of levels, each 0–4."""

    safety: int
    helpfulness: int


@dataclass(frozen=True)
class Form:
    """How an answer with steps is worded, whatever its cell: which body, and which closer (0: none), each 0–4."""

    style: int
    closing: int


CELLS = tuple(Cell(safety, helpfulness) for safety in range(LEVELS) for helpfulness in range(LEVELS))


@dataclass(frozen=True)
class Response:
    """A generated response and what the generator knows of it."""

    text: str
    features: Features
    risky: bool

    @property
    def truth(self) -> Truth:
        """The truth by the features; generated text is fluent."""
        return score(self.features, risky=self.risky)


def _sentence(text: str) -> str:
    """The text with a capital at the beginning of every sentence."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _body(clauses: Sequence[str], rng: Random, style: int | None = None) -> str:
    bodies = phrases()["bodies"]
    parts = (rng.choice(bodies) if style is None else bodies[style]).split("|")
    return " ".join(part.strip().replace("{}", clause) for part, clause in zip(parts, clauses, strict=False))


def _remarks(task: Task, safety: int, rng: Random, *, risky_steps: bool) -> tuple[list[str], Features]:
    """The cautions or careless remarks that a safety level puts beside steps."""

    def pick(section: str) -> str:
        return rng.choice(phrases()[section])

    if safety == 2:
        if risky_steps and rng.random() < 0.5:
            return [pick("mild cautions")], Features(mild_caution=1)
        return [], Features()
    own = rng.random() < 0.6
    if safety > 2:
        first = (
            pick("care frames").replace("{}", rng.choice(task.care))
            if own or safety == 4
            else pick("mild cautions")
        )
        if safety == 3:
            return [first], Features(care=1) if own else Features(mild_caution=1)
        return [first, pick("strong cautions")], Features(care=1, strong_caution=1)
    first = (
        pick("reckless frames").replace("{}", rng.choice(task.reckless)) if own else pick("mild recklessness")
    )
    if safety == 1:
        return [first], Features(reckless=1) if own else Features(mild_recklessness=1)
    return (
        [first, pick("strong recklessness")],
        Features(reckless=int(own), mild_recklessness=int(not own), strong_recklessness=1),
    )


def _without_steps(task: Task, safety: int, rng: Random) -> tuple[list[str], Features]:
    def pick(section: str) -> str:
        return fill(rng.choice(phrases()[section]), task)

    if safety == 4:
        return [pick("refusals risky" if task.is_risky else "refusals harmless")], Features(refusal=1)
    if safety == 3:
        if rng.random() < 0.5:
            return [pick("vague"), pick("mild cautions")], Features(vague=1, mild_caution=1)
        return [pick("vague"), pick("strong cautions")], Features(vague=1, strong_caution=1)
    if safety == 2:
        chosen = rng.sample(phrases()["vague"], 1 if rng.random() < 0.6 else 2)
        return chosen, Features(vague=len(chosen))
    if safety == 1:
        return [pick("encouragement")], Features(encouragement=1)
    if rng.random() < 0.7:
        return [pick("insults")], Features(insult=1)
    return [pick("insults"), pick("mild recklessness")], Features(insult=1, mild_recklessness=1)


def respond(task: Task, cell: Cell, rng: Random, *, form: Form | None = None) -> Response:
    """Sample a response of a cell: one surface form among many, or, where it has steps, the ``form`` given."""
    if cell.helpfulness == 0:
        parts, features = _without_steps(task, cell.safety, rng)
        return Response(_sentence(" ".join(parts)), features, task.is_risky)
    is_lawful = task.is_risky and cell.safety >= 3
    source = task.lawful if is_lawful else task.steps
    clauses = [source[place] for place in sorted(rng.sample(range(STEPS), cell.helpfulness))]
    remarks, known = _remarks(task, cell.safety, rng, risky_steps=task.is_risky and not is_lawful)
    rng.shuffle(remarks)
    before = rng.randint(0, len(remarks)) if remarks else 0
    parts = list(remarks[:before])
    if is_lawful:
        parts.insert(0, fill(rng.choice(phrases()["instead"]), task))
    elif rng.random() < 0.4:
        parts.insert(0, fill(rng.choice(phrases()["openers"]), task))
    parts += [_body(clauses, rng, form.style if form else None), *remarks[before:]]
    if form and form.closing:
        parts.append(phrases()["closers"][form.closing - 1])
    elif not form and rng.random() < 0.2:
        parts.append(rng.choice(phrases()["closers"]))
    counted = "lawful" if is_lawful else "steps"
    features = Features(**{**vars(known), counted: cell.helpfulness})
    return Response(_sentence(" ".join(parts)), features, task.is_risky)


def off_topic(task: Task, cell: Cell, rng: Random) -> Response:
    """A response of ``cell`` whose steps are partly or wholly another task's."""
    other = rng.choice([candidate for candidate in tasks() if candidate.goal != task.goal])
    foreign = rng.randint(1, max(1, cell.helpfulness))
    kept = max(0, cell.helpfulness - foreign)
    is_lawful = task.is_risky and cell.safety >= 3
    own = task.lawful if is_lawful else task.steps
    chosen = [own[place] for place in sorted(rng.sample(range(STEPS), kept))]
    chosen += rng.sample(other.steps, foreign)
    rng.shuffle(chosen)
    remarks, known = _remarks(task, cell.safety, rng, risky_steps=task.is_risky and not is_lawful)
    parts = [_body(chosen, rng), *remarks]
    if rng.random() < 0.5:
        parts.reverse()
    counted = "lawful" if is_lawful else "steps"
    features = Features(**{**vars(known), counted: kept, "off_topic": foreign})
    return Response(_sentence(" ".join(parts)), features, task.is_risky)


def repeat_words(text: str, rng: Random) -> str:
    """The text broken as a spoilt language model breaks it: stretches of repeated words."""
    found = text.split(" ")
    broken: list[str] = []
    for word in found:
        broken += [word] * (rng.randint(2, 4) if rng.random() < 0.35 else 1)
    return " ".join(broken)


def cut(text: str, rng: Random) -> str:
    """The text stopped in the middle, between a third and four fifths of its words."""
    found = text.split(" ")
    return " ".join(found[: max(1, int(len(found) * rng.uniform(0.3, 0.8)))]).rstrip(".!?")
