"""The grid of an evaluation: requested levels and achieved scores as arrays.

Pure: no disk, no device, no global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rheostat.control import ControlFormat, Levels, levels_of
from rheostat.records import EvaluationRow, by_prompt

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """What was requested of a method and what one scorer says came out.

    `requested` and `achieved`: `(prompts, cells, attributes)`. Every prompt has the same cells in the same
    order, a cell may occur more than once; requests lie on each dial's levels, and every dial is turned to its
    lowest and its highest. Raises `ValueError` where that does not hold or a number is not finite.
    """

    attributes: tuple[str, ...]
    levels: Levels
    requested: Array
    achieved: Array

    def __post_init__(self) -> None:
        shape = self.requested.shape
        if len(shape) != 3 or 0 in shape or self.achieved.shape != shape or shape[2] != len(self.attributes):
            raise ValueError(
                f"got requested {shape} and achieved {self.achieved.shape}, allowed is the same "
                f"(prompts, cells, {len(self.attributes)} attributes) for both, none of them 0"
            )
        if broken := int((~np.isfinite(self.achieved)).sum()):
            raise ValueError(f"got {broken} NaN or infinite achieved scores, allowed are finite numbers")
        if (self.requested != self.requested[:1]).any():
            raise ValueError("got prompts with different cells, allowed are the same ones in the same order")
        for name, column in zip(self.attributes, self.requested[0].T, strict=True):
            levels = self.levels_of(name)
            if not np.isin(column, levels).all():
                raise ValueError(f"{name}: got requests off the grid, allowed are the levels {levels}")
            ends = {levels[0], levels[-1]}
            if len(ends) < 2 or not ends <= set(column.tolist()):
                raise ValueError(f"{name} is not requested at both its lowest and its highest level")

    @classmethod
    def from_rows(
        cls, rows: Sequence[EvaluationRow], *, attributes: Sequence[str], levels: Levels, scorer: str
    ) -> "Grid":
        """The grid of a method's evaluation rows by one scorer: scores named `scorer/attribute`.

        Prompts are ordered by id and cells by request, so that all methods draw the same prompts.
        """
        groups = by_prompt(rows)
        prompts = [
            sorted(groups[key], key=lambda row: [row.requested[name] for name in attributes])
            for key in sorted(groups)
        ]
        if len({len(cells) for cells in prompts}) != 1:
            raise ValueError("got prompts with different numbers of cells, or no row at all")
        scores = [f"{scorer}/{name}" for name in attributes]
        requested = [[[row.requested[name] for name in attributes] for row in cells] for cells in prompts]
        achieved = [[[row.scores[score] for score in scores] for row in cells] for cells in prompts]
        return cls(tuple(attributes), levels, np.array(requested, float), np.array(achieved, float))

    @classmethod
    def of(cls, rows: Sequence[EvaluationRow], scorer: str, control_format: ControlFormat) -> "Grid":
        """The grid of rows that were asked for under the controls of `control_format`; raises as `from_rows` does."""
        return cls.from_rows(
            rows, attributes=control_format.names, levels=control_format.levels, scorer=scorer
        )

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return int(self.requested.shape[0])

    def levels_of(self, attribute: str) -> tuple[float, ...]:
        """The levels of an attribute's dial, ascending."""
        return levels_of(self.levels, attribute)

    def request(self, attribute: str) -> Array:
        """The requested levels of an attribute, `(cells,)`: the same for every prompt."""
        return self.requested[0, :, self.attributes.index(attribute)]

    def outcome(self, attribute: str) -> Array:
        """The achieved scores of an attribute, `(prompts, cells)`."""
        return self.achieved[:, :, self.attributes.index(attribute)]
