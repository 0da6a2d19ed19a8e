"""Which untreated control ζ′ an example meets, and which examples of a batch meet one. Pure.

ExMATE (arXiv 2404.01295, 2212.10515) contrasts a treated with an untreated control; where ζ′ comes from is ours,
after the measured study in LOG.md.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rheostat.config import CounterfactualConfig
from rheostat.control import ControlFormat
from rheostat.records import Example


class CounterfactualSampler:
    """Draws ζ′ ≠ ζ for an example.

    `siblings`: from the controls of the other responses to the same prompt, so that the data hold a response for ζ′
    to move to; an example without a sibling of another control falls back to the grid. `grid`: from all controls.
    With `moves="one"` candidates that differ in more than one dial are set to ζ but for one of the dials in which
    they differ.
    """

    def __init__(
        self, examples: Sequence[Example], control_format: ControlFormat, options: CounterfactualConfig
    ) -> None:
        self._names = control_format.names
        self._options = options
        self._grid = [self._vector(control) for control in control_format.grid()]
        self._siblings: dict[str, list[tuple[float, ...]]] = {}
        for example in examples:
            known = self._siblings.setdefault(example.prompt_id, [])
            vector = self._vector(example.control)
            if vector not in known:
                known.append(vector)

    def draw(self, example: Example, generator: np.random.Generator) -> dict[str, float]:
        """A control that differs from the example's own in at least one dial."""
        own = self._vector(example.control)
        candidates: list[tuple[float, ...]] = []
        if self._options.source == "siblings":
            candidates = self._reachable(own, self._siblings[example.prompt_id])
        if not candidates:
            candidates = self._reachable(own, self._grid)
        distances = np.abs(np.asarray(candidates) - np.asarray(own)).sum(axis=1)
        weights = distances**self._options.distance_power
        chosen = candidates[generator.choice(len(candidates), p=weights / weights.sum())]
        return dict(zip(self._names, chosen, strict=True))

    def _reachable(
        self, own: tuple[float, ...], controls: Sequence[tuple[float, ...]]
    ) -> list[tuple[float, ...]]:
        others = [control for control in controls if control != own]
        if self._options.moves == "any":
            return others
        single: dict[tuple[float, ...], None] = {}
        for control in others:
            for dial, value in enumerate(control):
                if value != own[dial]:
                    single[(*own[:dial], value, *own[dial + 1 :])] = None
        return list(single)

    def _vector(self, control: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(control[name] for name in self._names)


def subsample(rows: int, fraction: float, generator: np.random.Generator) -> list[int]:
    """A uniform sub-sample of `rows` without replacement, at least one, ascending.

    Every row is equally likely, so the mean over the sub-sample is an unbiased estimate of the mean over the batch.
    """
    count = max(1, round(rows * fraction))
    return sorted(int(row) for row in generator.choice(rows, size=min(count, rows), replace=False))
