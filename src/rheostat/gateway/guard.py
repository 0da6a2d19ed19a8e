"""Guarded answers: several are drawn and scored, the one nearest the granted dials is given, none below a floor.

Fails closed: without scores of every answer no answer goes out.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rheostat.control import LEVELS, nearest_level
from rheostat.gateway.backend import Ask, Backend, Ending, Piece, Usage
from rheostat.gateway.policy import Tenant
from rheostat.gateway.policy_file import GuardBlock
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.scoring_worker import ScoringWorker
from rheostat.plugins import Judged, Scorer
from rheostat.records import Control, Scores
from rheostat.scoring import nearest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guarded answer, or the refusal that stands for it (`content_filter`), and what all samples took.

    `drawn` answers were scored, of which `reached` reach every floor; `scores` are those of the answer that is given,
    None where it was refused.
    """

    text: str
    finish: Ending
    usage: Usage
    drawn: int
    reached: int
    scores: Scores | None

    @property
    def report(self) -> Mapping[str, Any]:
        """What the answer and the audit line say of it."""
        return {"samples": self.drawn, "reached_floors": self.reached, "refused": self.scores is None}


def choose(scores: Sequence[Scores], control: Control, floors: Mapping[str, float]) -> tuple[int | None, int]:
    """The place of the answer to give, None where none reaches every floor, and how many do.

    Of those that do, it is the one whose scores are nearest to the control.
    """
    reached = [
        place for place, own in enumerate(scores) if all(reaches(own[dial], floor) for dial, floor in floors.items())
    ]
    if not reached:
        return None, 0
    return reached[nearest([scores[place] for place in reached], control)], len(reached)


def reaches(score: float, floor: float) -> bool:
    """Whether a calibrated score reaches a floor: no level of the full grid below the floor is nearer to it.

    A floor is a level, and a level stands for the scores around it, as in training: 0.75 for those from 0.625 on. Held
    against the floor itself, nearly no answer would reach a floor of 1.
    """
    return nearest_level(score, (floor, *(level for level in LEVELS if level < floor))) == floor


def samples_drawn(ask: Ask, guard: GuardBlock) -> int:
    """How many answers are drawn for one: at temperature 0 all would be the same."""
    return guard.samples if ask.temperature > 0 else 1


def _unheard(part: Piece | Usage) -> None: ...


class Guard:
    """Answers guardedly over a backend, and scores single answers; of one event loop."""

    def __init__(self, backend: Backend, scorer: Scorer) -> None:
        self._backend = backend
        self._worker = ScoringWorker(scorer)

    async def answer(
        self, ask: Ask, tenant: Tenant, note: Callable[[Piece | Usage], None] = _unheard
    ) -> Guarded:
        """The answer for a tenant with a guard; `ask` is for one sample, `note` hears of what is drawn as it comes.

        Raises what the backend raises, and `Refusal` (503) where not every answer has its scores.
        """
        guard = tenant.guard
        assert guard is not None, tenant.name
        drawn = replace(ask, samples=samples_drawn(ask, guard), stream=False)
        texts, finishes, usage = await self._draw(drawn, note)
        floors = {dial: floor for dial, floor in tenant.limits.floors.items() if dial in ask.control}
        scores = await self._scores([Judged(ask.messages, text) for text in texts], ask.control)
        place, reached = choose(scores, ask.control, floors)
        if place is None:
            return Guarded(guard.refusal, "content_filter", usage, len(texts), 0, None)
        return Guarded(texts[place], finishes[place], usage, len(texts), reached, scores[place])

    async def score(self, ask: Ask, text: str) -> Scores:
        """The achieved scores of an answer, in [0, 1] by dial. Raises `Refusal` (503)."""
        return (await self._scores([Judged(ask.messages, text)], ask.control))[0]

    async def stop(self) -> None:
        """Ends the scoring."""
        await self._worker.stop()

    async def _draw(
        self, ask: Ask, note: Callable[[Piece | Usage], None]
    ) -> tuple[list[str], list[Ending], Usage]:
        texts = [""] * ask.samples
        finishes: dict[int, Ending] = {}
        usage = None
        async with aclosing(self._backend.answer(ask)) as parts:
            async for part in parts:
                note(part)
                if not isinstance(part, Piece):
                    usage = part
                    continue
                texts[part.sample] += part.text
                if part.finish is not None:
                    finishes[part.sample] = part.finish
        assert usage is not None and len(finishes) == ask.samples, (usage, finishes)
        return texts, [finishes[place] for place in range(ask.samples)], usage

    async def _scores(self, items: Sequence[Judged], control: Control) -> list[Scores]:
        """Scores of every item for every dial, each in [0, 1]."""
        try:
            scores = await self._worker.score(items)
        # Whatever a reward raises, nothing goes out unscored.
        except Exception as error:
            _logger.warning("guard: the rewards failed: %s: %s", type(error).__name__, error)
            raise _unscored() from error
        for own in scores:
            missing = [dial for dial in control if not _is_score(own.get(dial))]
            if missing:
                found = {dial: own.get(dial) for dial in missing}
                _logger.warning("guard: got the scores %s, allowed are numbers from 0 to 1", found)
                raise _unscored()
        return scores


def _is_score(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 1  # type: ignore[arg-type, operator]


def _unscored() -> Refusal:
    return Refusal(
        503,
        "guard_unavailable",
        "the answer could not be scored, and is not given without",
        "try again; if it stays so, tell the operator",
        retry_after_s=5.0,
    )
