"""Scoring off the event loop: what waits is scored together, in one batch, by one thread."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rheostat.plugins import Judged, Scorer
from rheostat.records import Scores

LARGEST_BATCH = 512
"""Responses that are scored together at most, so that the last of many requests does not wait for all others."""


@dataclass(frozen=True, slots=True)
class _Job:
    items: Sequence[Judged]
    done: "asyncio.Future[list[Scores]]"


class ScoringWorker:
    """Scores with `scorer`, one batch at a time; of one event loop. Begins with the first job."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._waiting: list[_Job] = []
        self._thread: ThreadPoolExecutor | None = None
        self._working: asyncio.Task[None] | None = None

    async def score(self, items: Sequence[Judged]) -> list[Scores]:
        """Per item its scores. Raises what the scorer raises for these items; others' faults are not theirs."""
        job = _Job(items, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await job.done

    async def stop(self) -> None:
        """Jobs that wait end cancelled; the batch under way is not waited for."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        for job in self._waiting:
            job.done.cancel()
        self._waiting.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    async def _work(self) -> None:
        while jobs := self._next():
            try:
                await self._score_together(jobs)
            finally:
                for job in jobs:
                    job.done.cancel()  # nothing where it is done: only a worker that was stopped leaves one

    def _next(self) -> list[_Job]:
        """The jobs whose askers still wait, as many as fit one batch, one at least."""
        waiting = [job for job in self._waiting if not job.done.done()]
        size, count = 0, 0
        while count < len(waiting) and (count == 0 or size + len(waiting[count].items) <= LARGEST_BATCH):
            size += len(waiting[count].items)
            count += 1
        self._waiting = waiting[count:]
        return waiting[:count]

    async def _score_together(self, jobs: Sequence[_Job]) -> None:
        scores = await self._scored([item for job in jobs for item in job.items])
        if isinstance(scores, Exception) and len(jobs) > 1:  # whose fault it is shows one by one
            for job in jobs:
                _settle(job, await self._scored(job.items))
            return
        start = 0
        for job in jobs:
            stop = start + len(job.items)
            _settle(job, scores if isinstance(scores, Exception) else scores[start:stop])
            start = stop

    async def _scored(self, items: Sequence[Judged]) -> list[Scores] | Exception:
        self._thread = self._thread or ThreadPoolExecutor(1, "scoring")
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self.scorer.score, items)
        # A reward is a plug-in and may raise anything; each asker is told, and nobody is left waiting.
        except Exception as error:
            return error
        if len(scores) != len(items):
            return ValueError(f"got {len(scores)} scores for {len(items)} responses")
        return list(scores)


def _settle(job: _Job, found: list[Scores] | Exception) -> None:
    if job.done.done():
        return
    if isinstance(found, Exception):
        job.done.set_exception(found)
    else:
        job.done.set_result(found)
