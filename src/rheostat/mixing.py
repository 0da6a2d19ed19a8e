"""Fine-grained data mixing: of prompts told apart by class, which pairs are learned from. Pure.

Equilibrate RLHF (arXiv 2502.11555, FDC) divides safety prompts into explicitly harmful, implicitly harmful and mixed
ones and finds 10 : 3 : 1 of them to be best. Ours: what divides them (regular expressions or an LM judge), that pairs
are counted and not prompts, and that what belongs to no class is all kept.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rheostat.config_mixing import OTHER
from rheostat.errors import InputError
from rheostat.records import Pair, Prompt


@dataclass(frozen=True)
class ClassCounts:
    """Of one class: its prompts, the pairs that they gave, and how many of these are kept."""

    prompts: int
    pairs: int
    kept: int


@dataclass(frozen=True)
class Mixed:
    """The pairs that are kept, in the order given, and what became of each class."""

    pairs: tuple[Pair, ...]
    counts: Mapping[str, ClassCounts]


def classes_by_rules(prompts: Sequence[Prompt], rules: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The class of each prompt, by its id: of the first pattern found in its last user turn; `other` without one.

    Patterns are tried in the order of `rules`, whatever the case of letters.
    """
    compiled = [(name, re.compile(each, re.IGNORECASE)) for name, patterns in rules.items() for each in patterns]
    return {
        prompt.id: next((name for name, pattern in compiled if pattern.search(prompt.text)), OTHER)
        for prompt in prompts
    }


def mixed(pairs: Sequence[Pair], classes: Mapping[str, str], ratios: Mapping[str, float], *, seed: int) -> Mixed:
    """As many pairs of each class as its ratio allows when the scarcest class gives all that it has.

    `classes` maps prompt ids to classes. With n_c pairs of class c and k = min_c n_c / ratio_c, a class keeps
    ratio_c · k, rounded, at least one; one without a ratio (`other`, unless it has one) keeps all. What is dropped of a
    class is spread over its prompts: each keeps its first pair before any keeps a second, a hash of seed and prompt
    deciding who comes first. Raises `InputError` where a class with a ratio has no pair.

    Worked: 20, 9 and 2 pairs at 10 : 3 : 1 give k = min(2, 3, 2) = 2 and keep 20, 6 and 2.
    """
    available = Counter(classes[pair.prompt_id] for pair in pairs)
    if empty := [name for name in ratios if not available[name]]:
        raise InputError(
            f"mixing: got no pair whose prompt is {' or '.join(empty)}, allowed is one or more of each class in ratios",
            hint="correct the rules or the judge's descriptions, add prompts of that class, or take it out of ratios",
        )
    scale = min(available[name] / ratio for name, ratio in ratios.items())
    wanted = {name: min(available[name], max(1, round(ratio * scale))) for name, ratio in ratios.items()}
    seen: Counter[str] = Counter()
    queues: dict[str, list[tuple[int, str, int]]] = {name: [] for name in wanted}
    kept = set()
    for place, pair in enumerate(pairs):
        name = classes[pair.prompt_id]
        if name not in wanted:
            kept.add(place)
            continue
        lot = hashlib.sha256(f"{seed} {pair.prompt_id}".encode()).hexdigest()
        queues[name].append((seen[pair.prompt_id], lot, place))
        seen[pair.prompt_id] += 1
    for name, queue in queues.items():
        kept |= {place for _, _, place in sorted(queue)[: wanted[name]]}
    chosen = tuple(pair for place, pair in enumerate(pairs) if place in kept)
    remaining = Counter(classes[pair.prompt_id] for pair in chosen)
    prompts = Counter(classes.values())
    names = [*ratios, *sorted(set(prompts) - set(ratios))]
    counts = {name: ClassCounts(prompts[name], available[name], remaining[name]) for name in names}
    return Mixed(chosen, counts)
