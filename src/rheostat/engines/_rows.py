"""The rows that decode side by side: whom each serves, its last token and position, its keys and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rheostat.engines._slots import NextLogits, Prefilled, SlotCache

Served = TypeVar("Served")


@dataclass(slots=True)
class Row(Generic[Served]):
    """Whom a row serves, and the step after which it has reached its limit."""

    served: Served
    born: int
    deadline: int
    prompt_length: int


class Rows(Generic[Served]):
    """Rows that join and leave between two steps; those in use are always the first ones of every buffer.

    `states` are further tensors of a value (or more) a row, `(0, …)` at first, which `reserve` and `leave` keep in
    step with the rows.
    """

    def __init__(self, device: torch.device, states: Mapping[str, Tensor]) -> None:
        self.device = device
        self.cache = SlotCache()
        self.rows: list[Row[Served]] = []
        self.step = 0
        self.states = dict(states)
        self.last = torch.empty(0, dtype=torch.long, device=device)
        self.positions = torch.empty(0, dtype=torch.long, device=device)
        self._row_ids = torch.empty(0, dtype=torch.long, device=device)
        self._column_ids = torch.empty(0, dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Columns that the longest row has filled, 0 where there is no row."""
        return max((row.prompt_length - row.born for row in self.rows), default=-self.step) + self.step

    def reserve(self, like: Any, rows: int, columns: int) -> None:
        """Room for `rows` × `columns`, of the heads of the cache `like`; the rows in use are kept."""
        used = len(self.rows)
        self.cache.reserve(like, rows, columns, used)
        self.last = _grown(self.last, rows, used)
        self.positions = _grown(self.positions, rows, used)
        self.states = {name: _grown(state, rows, used) for name, state in self.states.items()}
        self._row_ids = torch.arange(rows, device=self.device)
        self._column_ids = torch.arange(columns, device=self.device)

    def join(self, prompt: Prefilled, served: Sequence[Served], limit: int) -> tuple[int, int]:
        """A row for each of `served`, which all answer `prompt` in at most `limit` tokens; the first and past the last.

        The first token of each is not drawn yet: `last` waits for it.
        """
        start, stop = len(self.rows), len(self.rows) + len(served)
        self.cache.put(prompt, start, stop)
        self.positions[start:stop] = prompt.length
        deadline = self.step + limit - 1
        self.rows += [Row(each, self.step, deadline, prompt.length) for each in served]
        return start, stop

    def logits(self, forward: NextLogits) -> Tensor:
        """Of every row's next token, from its last one, whose keys and values take their column."""
        used = len(self.rows)
        positions = self.positions[:used]
        longest = self.longest + 1
        mask = self._column_ids[:longest] <= positions[:, None]
        self.cache.step(self._row_ids[:used], positions, longest)
        return forward(self.last[:used, None], mask, positions[:, None], self.cache)

    def advance(self, drawn: Tensor) -> None:
        """Every row has its next token, `(rows,)`."""
        used = len(self.rows)
        self.last[:used] = drawn
        self.positions[:used] += 1
        self.step += 1

    def leave(self, places: Sequence[int]) -> None:
        """Takes the rows at `places`, ascending, out and closes the gaps with the last rows."""
        used = len(self.rows)
        gone = set(places)
        remaining = used - len(places)
        gaps = [place for place in places if place < remaining]
        movers = [place for place in range(remaining, used) if place not in gone]
        if movers:
            sources = torch.tensor(movers, device=self.device)
            targets = torch.tensor(gaps, device=self.device)
            self.cache.move(sources, targets, self.longest)
            for state in (self.last, self.positions, *self.states.values()):
                state[targets] = state[sources]
            for source, target in zip(movers, gaps, strict=True):
                self.rows[target] = self.rows[source]
        del self.rows[remaining:]

    def free(self) -> None:
        """Takes all rows out and frees the buffer now: cache and layers hold each other until the collector comes."""
        self.rows.clear()
        self.cache.clear()


def _grown(state: Tensor, rows: int, used: int) -> Tensor:
    grown = state.new_zeros(rows, *state.shape[1:])
    grown[:used] = state[:used]
    return grown
