"""Which prompts of a batch begin alike, so that the model reads the beginning once. Pure."""

from collections.abc import Sequence

from rheostat.engines._slots import Prompt

_WORTH = 0.75


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all rows begin with."""
    first, last = min(rows), max(rows)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return length


def with_beginnings(prompts: Sequence[tuple[int, ...]]) -> list[Prompt]:
    """Distinct prompts, each with the beginning it shares with others where that saves a quarter of the tokens.

    Prompts stand together whose beginning is half of each of them or more: one text under many controls, many texts
    after one long system turn.
    """
    groups: list[list[tuple[int, ...]]] = []
    for ids in sorted(prompts):
        if groups and 2 * common_prefix([*groups[-1][:1], ids]) >= max(len(groups[-1][0]), len(ids)):
            groups[-1].append(ids)
        else:
            groups.append([ids])
    shared: dict[tuple[int, ...], int] = {}
    for group in groups:
        # One that is the beginning of the others keeps an end of its own, and so do they then.
        common = min(common_prefix(group), *(len(ids) - 1 for ids in group)) if len(group) > 1 else 0
        shared.update(dict.fromkeys(group, common))
    cuts = [shared[ids] or len(ids) - 1 for ids in prompts]
    heads = len({ids[:cut] for ids, cut in zip(prompts, cuts, strict=True)})
    in_two = heads * max(cuts) + len(prompts) * max(
        len(ids) - cut for ids, cut in zip(prompts, cuts, strict=True)
    )
    is_worth_it = in_two <= _WORTH * len(prompts) * max(map(len, prompts))
    return [Prompt(ids, shared[ids] if is_worth_it else 0) for ids in prompts]
