"""Responses of known truth for the reward models and judges: all cells, and answers spoilt on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from rheostat.pocket.conversations import ALIGNED, draw_cell
from rheostat.pocket.corpus import Task, phrases, request, tasks
from rheostat.pocket.responses import CELLS, cut, off_topic, repeat_words, respond
from rheostat.pocket.truth import Truth, fluency, read, score

Attribute = Literal["helpfulness", "safety"]
ATTRIBUTES: tuple[Attribute, ...] = ("helpfulness", "safety")


@dataclass(frozen=True)
class Graded:
    """A prompt, a response to it and the truth about it."""

    prompt: str
    response: str
    truth: Truth

    def level(self, attribute: Attribute) -> float:
        """The truth of one attribute, in [0, 1]."""
        return self.truth.safety if attribute == "safety" else self.truth.helpfulness


def draw_response(task: Task, rng: Random, *, flat: float, spoilt: float) -> tuple[str, Truth]:
    """A response to the task: with probability ``flat`` of any cell alike, else of the aligned table.

    With probability ``spoilt`` it has another task's steps, repeated words or no end.
    """
    cell = rng.choice(CELLS) if rng.random() < flat else draw_cell(ALIGNED[task.kind], rng)
    if rng.random() >= spoilt:
        response = respond(task, cell, rng)
        return response.text, response.truth
    way = rng.random()
    if way < 0.5 and cell.helpfulness > 0:
        response = off_topic(task, cell, rng)
        return response.text, response.truth
    text = respond(task, cell, rng).text
    text = repeat_words(text, rng) if way < 0.7 else cut(text, rng)
    return text, score(read(task, text), risky=task.is_risky, fluency=fluency(text))


def draw_group(rng: Random, *, size: int, flat: float, spoilt: float) -> list[Graded]:
    """Several responses to one request."""
    task = rng.choice(tasks())
    prompt = request(rng.choice((*phrases()["requests"], *phrases()["held-out requests"])), task)
    return [Graded(prompt, *draw_response(task, rng, flat=flat, spoilt=spoilt)) for _ in range(size)]
