"""MOEC and what it is compared with: which responses of a scored pool become examples, under which control. Pure.

`moec` keeps the extreme cases of the pool and quantises their scores. That much is the paper's
(arXiv 2404.01295, MOEC); the rule that says which cases are extreme, the contrast and the bound on a cell's
share are ours. `raw` is the comparison: a uniform sub-sample of the pool under its unquantised scores. `whole_pool` is
the public state of practice: the whole of it under those, as SteerLM (arXiv 2310.05344) and Rewards-in-Context (arXiv
2402.10207; its code writes standardised scores with one decimal) condition on numbers. That ours are calibrated, stand
in this project's control text and have two decimals (`raw_decimals`) is ours.

Seeds are arguments, and the order of the input does not matter.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rheostat.config import DistilConfig
from rheostat.control import ControlFormat
from rheostat.records import Example, Prompt, ScoredResponse
from rheostat.scored_pool import Candidate, UsablePool, usable_pool

RETAINED_SHARE = 0.5
"""At least this share survives the bound on cells: where the pool fills too few of them, the bound gives."""


@dataclass(frozen=True)
class DistilCounts:
    """What became of the pool: the pool is the examples plus all `*_dropped` of responses.

    Responses dropped, in this order: `empty_dropped` (no text), `truncated_dropped` (ended by length, and not kept),
    `outside_dropped` (scored outside the range of a dial with restricted levels), `duplicates_dropped` (text already
    there for the prompt), `middling_dropped` (no extreme case, or not drawn), `contrast_dropped` (of the
    `prompts_without_contrast`), `share_dropped` (over the cell's share). `prompts_without_responses` had none that
    could be used. `cells_before` (the usable pool) and `cells_after` (the examples) count responses by the control
    text of their quantised scores. `cell_limit` is the most examples a cell may hold (None: no limit);
    `largest_cell_share` is the largest share that a cell has in the end (None: there is no example).
    """

    pool: int
    examples: int
    prompts: int
    prompts_without_responses: int
    prompts_without_contrast: int
    empty_dropped: int
    truncated_dropped: int
    outside_dropped: int
    duplicates_dropped: int
    middling_dropped: int
    contrast_dropped: int
    share_dropped: int
    cells_before: Mapping[str, int]
    cells_after: Mapping[str, int]
    cell_limit: int | None
    largest_cell_share: float | None


@dataclass(frozen=True)
class Distilled:
    """Training examples, ordered by prompt id and sample, and what became of the pool."""

    examples: tuple[Example, ...]
    counts: DistilCounts


def moec(
    scored: Mapping[str, Sequence[ScoredResponse]],
    prompts: Mapping[str, Prompt],
    *,
    control_format: ControlFormat,
    options: DistilConfig,
    further_from: Sequence[int] = (),
) -> Distilled:
    """Keep the extreme cases of each prompt, under their scores quantised to the level grid.

    `further_from`: ascending sample numbers at which the pools of further rounds begin. Each pool has its own extreme
    cases, so that what was sampled to fill the middle of the grid is not crowded out by more extreme responses.

    A dial with restricted levels learns nothing from beyond them: a response that scores outside its range
    (`ControlFormat.holds`) is left out, not raised to the nearest level that is allowed. Of each prompt's other
    responses (by prompt id, empty, truncated and repeated ones left out) it keeps the `per_corner` nearest to each
    corner of the cube of the dials' lowest and highest levels, L1 on calibrated scores, and the
    `per_extreme` best and worst of each attribute; each once, equally good ones by sample number. A prompt
    whose kept responses span less than `minimum_contrast` on every attribute is dropped. Then no control
    cell may hold more than `maximum_cell_share` of the examples; where holding that would cost more than
    half of them, because the pool fills too few cells, the bound is the tightest that keeps half. A cell is
    thinned evenly over prompts: those with most examples in it lose first, and lose the example furthest
    from the cell's levels.
    """
    pool = usable_pool(scored, control_format, with_repeats=False, with_truncated=options.keep_truncated)
    kept = {
        prompt: [
            candidate
            for responses in _by_round(candidates, further_from)
            for candidate in _extremes(responses, control_format, options)
        ]
        for prompt, candidates in pool.candidates.items()
    }
    contrasting = [responses for responses in kept.values() if _widest(responses) >= options.minimum_contrast]
    selected = [candidate for responses in contrasting for candidate in responses]
    limit = _cell_limit(Counter(candidate.cell for candidate in selected), options.maximum_cell_share)
    bounded = _thinned(selected, limit)
    examples = [
        _example(candidate, dict(zip(control_format.names, candidate.cell, strict=True)), prompts)
        for candidate in bounded
    ]
    counts = _counts(
        pool,
        bounded,
        control_format,
        prompts_without_contrast=len(kept) - len(contrasting),
        contrast_dropped=sum(map(len, kept.values())) - len(selected),
        share_dropped=len(selected) - len(bounded),
        cell_limit=limit,
    )
    return Distilled(tuple(examples), counts)


def raw(
    scored: Mapping[str, Sequence[ScoredResponse]],
    prompts: Mapping[str, Prompt],
    *,
    control_format: ControlFormat,
    count: int,
    seed: int,
    keep_truncated: bool = False,
    decimals: int = 2,
) -> Distilled:
    """A uniform sub-sample of `count` responses, without replacement, under scores rounded to so many `decimals`.

    Empty responses are left out, and truncated ones unless they are kept; repeated ones stay. Those outside the
    range of a dial with restricted levels are left out, and no control is beyond it. All usable ones are
    taken where there are fewer than `count`.
    """
    assert count >= 0, count
    pool = usable_pool(scored, control_format, with_repeats=True, with_truncated=keep_truncated)
    usable = pool.usable
    chosen = np.random.default_rng(seed).choice(len(usable), size=min(count, len(usable)), replace=False)
    drawn = [usable[index] for index in sorted(chosen.tolist())]
    return _unquantised(pool, drawn, prompts, control_format, decimals)


def whole_pool(
    scored: Mapping[str, Sequence[ScoredResponse]],
    prompts: Mapping[str, Prompt],
    *,
    control_format: ControlFormat,
    keep_truncated: bool = False,
    decimals: int = 2,
) -> Distilled:
    """Every response that `raw` may draw, under its scores rounded to so many `decimals`."""
    pool = usable_pool(scored, control_format, with_repeats=True, with_truncated=keep_truncated)
    return _unquantised(pool, pool.usable, prompts, control_format, decimals)


def _unquantised(
    pool: UsablePool,
    chosen: Sequence[Candidate],
    prompts: Mapping[str, Prompt],
    control_format: ControlFormat,
    decimals: int,
) -> Distilled:
    """The chosen ones under their rounded scores, none of them beyond the levels of its dial."""
    examples = []
    for candidate in chosen:
        control = {}
        for name, score in zip(control_format.names, candidate.scores, strict=True):
            lowest, *_, highest = control_format.levels_of(name)
            control[name] = min(max(round(score, decimals), lowest), highest)
        examples.append(_example(candidate, control, prompts))
    return Distilled(tuple(examples), _counts(pool, chosen, control_format))


def _by_round(candidates: Sequence[Candidate], further_from: Sequence[int]) -> list[list[Candidate]]:
    """A prompt's candidates, which are in the order of their samples, by the round that sampled them; no empty ones."""
    rounds: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        rounds.setdefault(bisect_right(further_from, candidate.response.sample), []).append(candidate)
    return list(rounds.values())


def _extremes(
    responses: Sequence[Candidate], control_format: ControlFormat, options: DistilConfig
) -> list[Candidate]:
    """What is nearest to the corners and each attribute's best and worst, each once, in the order given."""
    dials = range(len(responses[0].scores))
    kept: set[int] = set()
    ends = [(levels[0], levels[-1]) for levels in map(control_format.levels_of, control_format.names)]
    for corner in product(*ends):
        nearest = sorted(range(len(responses)), key=lambda index: responses[index].distance(corner))
        kept.update(nearest[: options.per_corner])
    for dial in dials:
        for sign in (1, -1):
            ordered = sorted(range(len(responses)), key=lambda index: sign * responses[index].scores[dial])
            kept.update(ordered[: options.per_extreme])
    return [responses[index] for index in sorted(kept)]


def _widest(responses: Sequence[Candidate]) -> float:
    """Highest minus lowest calibrated score, of the attribute in which that is most."""
    scores = np.array([candidate.scores for candidate in responses])
    return float(np.ptp(scores, axis=0).max())


def _cell_limit(cells: Mapping[tuple[float, ...], int], maximum_share: float) -> int:
    """The most examples a cell may hold, so that none exceeds its share of what then remains.

    With g(K) = Σ min(count, K) the examples left under limit K: the largest K with K ≤ share · g(K), but no
    less than the smallest with g(K) ≥ half of all. g is concave with g(0) = 0, so the first holds up to
    some K and fails from there on.
    """
    counts = np.array(sorted(cells.values()), dtype=np.int64)
    if not counts.size:
        return 0
    limits = np.arange(1, counts[-1] + 1)
    cumulated = np.append(0, np.cumsum(counts))
    smaller = np.searchsorted(counts, limits)
    remaining = cumulated[smaller] + limits * (counts.size - smaller)
    within = limits <= maximum_share * remaining + 1e-9
    retained = remaining >= RETAINED_SHARE * counts.sum()
    return int(max(within.sum(), limits[retained][0]))


def _thinned(selected: Sequence[Candidate], limit: int) -> list[Candidate]:
    """`selected` with at most `limit` of each cell, in the order given.

    A prompt's examples in a cell are ranked by nearness to it; the cell takes all first ranks, then all
    second ones, and so on. Within a rank a hash decides, so that no prompt is always the one that loses.
    """
    ranked: Counter[tuple[str, tuple[float, ...]]] = Counter()
    queues: dict[tuple[float, ...], list[tuple[int, str, int]]] = {}
    by_nearness = sorted(enumerate(selected), key=lambda entry: entry[1].distance(entry[1].cell))
    for index, candidate in by_nearness:
        prompt, cell = candidate.response.prompt_id, candidate.cell
        lot = hashlib.sha256(f"{prompt} {cell}".encode()).hexdigest()
        queues.setdefault(cell, []).append((ranked[prompt, cell], lot, index))
        ranked[prompt, cell] += 1
    kept = {index for queue in queues.values() for _, _, index in sorted(queue)[:limit]}
    return [candidate for index, candidate in enumerate(selected) if index in kept]


def _example(candidate: Candidate, control: dict[str, float], prompts: Mapping[str, Prompt]) -> Example:
    response = candidate.response
    return Example(
        prompt_id=response.prompt_id,
        messages=prompts[response.prompt_id].messages,
        control=control,
        response=response.text,
        scores=dict(zip(control, candidate.scores, strict=True)),
        finish=response.finish,
    )


def _counts(
    pool: UsablePool,
    chosen: Sequence[Candidate],
    control_format: ControlFormat,
    *,
    prompts_without_contrast: int = 0,
    contrast_dropped: int = 0,
    share_dropped: int = 0,
    cell_limit: int | None = None,
) -> DistilCounts:
    """The account of the pool; a usable response that no other count explains is middling."""
    usable, after = pool.usable, _cells(chosen, control_format)
    return DistilCounts(
        pool=sum(pool.fates.values()),
        examples=len(chosen),
        prompts=len({candidate.response.prompt_id for candidate in chosen}),
        prompts_without_responses=pool.prompts_without_responses,
        prompts_without_contrast=prompts_without_contrast,
        empty_dropped=pool.fates["empty"],
        truncated_dropped=pool.fates["truncated"],
        outside_dropped=pool.fates["outside"],
        duplicates_dropped=pool.fates["duplicate"],
        middling_dropped=len(usable) - len(chosen) - contrast_dropped - share_dropped,
        contrast_dropped=contrast_dropped,
        share_dropped=share_dropped,
        cells_before=_cells(usable, control_format),
        cells_after=after,
        cell_limit=cell_limit,
        largest_cell_share=max(after.values()) / len(chosen) if chosen else None,
    )


def _cells(candidates: Sequence[Candidate], control_format: ControlFormat) -> dict[str, int]:
    """How many candidates each control cell holds, by its text, in the order of the grid."""
    counts = Counter(candidate.cell for candidate in candidates)
    return {
        control_format.render(dict(zip(control_format.names, cell, strict=True))): counts[cell]
        for cell in sorted(counts)
    }
