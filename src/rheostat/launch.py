"""Training in several processes, as `accelerate launch` and `torchrun` start them.

The leading process alone writes into the run directory; the others wait until what it prepares is there.
"""

import os
from dataclasses import dataclass

from rheostat.errors import InputError


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `count` processes that train together; number `index`, from 0."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.index == 0

    def rows(self, count: int) -> list[int]:
        """Which of a batch's `count` rows it computes: as many as every other process, the first one repeated.

        Row i is process i mod `self.count`'s. Worked: 3 rows of 2 processes are [0, 2] and [1, 0].
        """
        own = list(range(self.index, count, self.count))
        return own + [0] * (-(-count // self.count) - len(own))


ALONE = Rank()


def rank() -> Rank:
    """This process among those of its launcher; without a launcher it is alone."""
    return Rank(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def is_sharded() -> bool:
    """Whether the launcher asks for FSDP, which places the weights itself."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def join(*, on_cpu: bool) -> Rank:
    """Meet the other processes of the launcher, where there are any, and take this one's own device."""
    found = rank()
    if found.count > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu)
    return found


def meet(among: Rank) -> None:
    """Wait until every process is here."""
    if among.count > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def refuse_several(command: str) -> None:
    """Raises `InputError` where a launcher starts a command that does not train in several processes."""
    count = rank().count
    if count > 1:
        raise InputError(
            f"rheostat {command}: got {count} processes of a launcher, allowed is one",
            hint="launch `rheostat train RUN` alone; the other stages spread by `executor: ray` (docs/scale.md)",
        )
