"""Steering: how often each control is asked in a further round, so that thin cells of the control grid fill. Pure.

The paper samples its model once (arXiv 2404.01295); rounds, and this rule of what they ask for, are ours.
"""

import hashlib
import math
from collections.abc import Mapping

Cell = tuple[float, ...]
"""A control's levels in the order of the control text."""


def shares(counts: Mapping[Cell, int], *, thinness: float) -> dict[Cell, float]:
    """Which share of all questions each cell gets, by how many examples it holds: w_c = (1 + n_c)^(−k) / Σ_c′ …

    k = `thinness` ≥ 0: at 0 all cells are asked for alike, at 1 a cell with half as many examples is asked for about
    twice as often. Shares are positive and add up to 1; a thinner cell never gets less than a fuller one.

    Worked, k = 1: counts 0, 1 and 3 have the weights 1, 1/2 and 1/4, so the shares 4/7, 2/7 and 1/7.
    """
    assert counts and thinness >= 0 and all(count >= 0 for count in counts.values()), (counts, thinness)
    logarithms = {cell: -thinness * math.log1p(count) for cell, count in counts.items()}
    largest = max(logarithms.values())
    weights = {cell: math.exp(each - largest) for cell, each in logarithms.items()}
    total = sum(weights.values())
    return {cell: weight / total for cell, weight in weights.items()}


def asked(wanted: Mapping[Cell, float], *, samples: int, offset: float) -> dict[Cell, int]:
    """How often each cell is asked of one prompt, `samples` times in all: systematic sampling (Madow, 1949).

    The cells' shares lie end to end on [0, 1); the points (offset + j) / samples, j = 0 … samples − 1, `offset` in
    [0, 1), each ask for the cell that they fall into. A cell of share w is asked ⌊samples · w⌋ or ⌈samples · w⌉ times,
    and under a uniform offset samples · w on average. Cells that are not asked are left out.

    Worked: shares 1/2, 1/4, 1/4 and 2 samples. Offset 0 gives the points 0 and 1/2: the first two cells. Offset 0.6
    gives 0.3 and 0.8: the first and the last.
    """
    assert samples >= 1 and 0 <= offset < 1, (samples, offset)
    cells = list(wanted)
    found: dict[Cell, int] = {}
    before, begun = 0.0, 0
    for place, cell in enumerate(cells):
        before += wanted[cell]
        ended = samples if place == len(cells) - 1 else min(samples, max(begun, math.ceil(samples * before - offset)))
        if ended > begun:
            found[cell] = ended - begun
        begun = ended
    return found


def offset_of(prompt: str, *, seed: int) -> float:
    """The offset of a prompt in [0, 1), uniform over prompts: what is asked of it depends on no other prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:6], "big") / 2**48
