"""Local: this process, one task after another."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rheostat.plugins import Executor, Result, Task, Work


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """Local has no options."""


@dataclass(frozen=True, slots=True)
class Local:
    """Opens the work once and does its tasks in order."""

    def map(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """Each task's result as it is computed, none before it is asked for."""
        compute = work.open()
        for place, task in enumerate(tasks):
            yield place, compute(task)


LOCAL = Local()
"""It holds nothing: one serves all."""


def build(options: OPTIONS) -> AbstractContextManager[Executor]:
    """The executor."""
    return nullcontext(LOCAL)
