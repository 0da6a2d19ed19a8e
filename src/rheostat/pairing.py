"""Pairs of responses to one prompt, for objectives that learn from preferences that the rewards have. Pure.

What orders a pair is a calibrated score, or the mean of all; which pairs are taken is ours.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from rheostat.config import PairsConfig
from rheostat.control import ControlFormat
from rheostat.records import Pair, Prompt
from rheostat.scored_pool import Candidate, UsablePool


@dataclass(frozen=True)
class PairCounts:
    """What became of the pool: how many responses it has, pairs, prompts that gave some and that had none to give."""

    pool: int
    pairs: int
    prompts: int
    prompts_without_pairs: int


@dataclass(frozen=True)
class Paired:
    """The pairs, ordered by prompt id, and what became of the pool."""

    pairs: tuple[Pair, ...]
    counts: PairCounts


def pairs(
    pool: UsablePool,
    prompts: Mapping[str, Prompt],
    *,
    control_format: ControlFormat,
    by: str | None,
    options: PairsConfig,
    seed: int,
) -> Paired:
    """Of each prompt `options.per_prompt` pairs, drawn uniformly from those that differ by `options.minimum_gap`.

    The chosen response of a pair has more of the attribute `by`; None: the higher mean over attributes. A prompt's draw
    depends on the seed and its id only.
    """
    names = control_format.names
    found: list[Pair] = []
    for prompt_id, candidates in pool.candidates.items():
        worth = [_worth(each, None if by is None else names.index(by)) for each in candidates]
        unequal = [
            (better, worse)
            for better, worse in permutations(range(len(candidates)), 2)
            if worth[better] > worth[worse] and worth[better] - worth[worse] >= options.minimum_gap
        ]
        key = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8])
        generator = np.random.default_rng([seed, key])
        count = min(options.per_prompt, len(unequal))
        for place in sorted(generator.choice(len(unequal), size=count, replace=False)) if count else ():
            better, worse = unequal[place]
            found.append(_pair(prompts[prompt_id], candidates[better], candidates[worse], control_format))
    with_pairs = len({pair.prompt_id for pair in found})
    counts = PairCounts(sum(pool.fates.values()), len(found), with_pairs, len(pool.candidates) - with_pairs)
    return Paired(tuple(found), counts)


def _worth(candidate: Candidate, dial: int | None) -> float:
    return float(np.mean(candidate.scores)) if dial is None else candidate.scores[dial]


def _pair(prompt: Prompt, chosen: Candidate, rejected: Candidate, control_format: ControlFormat) -> Pair:
    return Pair(
        prompt_id=prompt.id,
        messages=prompt.messages,
        chosen=chosen.response.text,
        rejected=rejected.response.text,
        chosen_scores=dict(zip(control_format.names, chosen.scores, strict=True)),
        rejected_scores=dict(zip(control_format.names, rejected.scores, strict=True)),
        chosen_finish=chosen.response.finish,
        rejected_finish=rejected.response.finish,
    )
