"""log p(verdict | prompt) of a guard model: a prompt is read once for all its verdicts, what prompts share once for
all of them.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rheostat.engines._slots import Forward, Prefilled, Prompt, prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rheostat.rewards._guard_prompts import Asked

_CPU_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Judgements:
    """Of some prompts: `values[i][v]` is log p of verdict v, in nats, after prompt `numbers[i]`."""

    numbers: Sequence[int]
    values: Sequence[Sequence[float]]


def judge(
    model: "PreTrainedModel",
    asked: Sequence["Asked"],
    families: Sequence[Hashable],
    *,
    pad_id: int,
    batch_tokens: int,
) -> Iterator[Judgements]:
    """The verdicts' log-probabilities, batch by batch; prompts of equal `families` are likely to begin alike.

    Of a verdict of several tokens all count: it is the probability that exactly this text comes next. A batch's
    prompts × its longest is at most `batch_tokens`.
    """
    forward = Forward(model)
    budget = min(batch_tokens, _CPU_BATCH_TOKENS) if model.device.type == "cpu" else batch_tokens
    with torch.inference_mode():
        for batch in _batches(asked, families, budget):
            prompts = _prompts([asked[number].ids for number in batch], [families[number] for number in batch])
            prefilled = prefill(forward, prompts, pad_id)
            verdicts = [asked[number].verdicts for number in batch]
            yield Judgements(batch, _log_probabilities(forward, prefilled, verdicts).tolist())


def _batches(asked: Sequence["Asked"], families: Sequence[Hashable], budget: int) -> Iterator[list[int]]:
    """Families whole where they fit, the longest first."""
    longest: dict[Hashable, int] = {}
    for each, family in zip(asked, families, strict=True):
        longest[family] = max(longest.get(family, 0), len(each.ids))
    place = {family: at for at, family in enumerate(longest)}
    order = sorted(range(len(asked)), key=lambda at: (-longest[families[at]], place[families[at]], at))
    batch: list[int] = []
    width = 0
    for number in order:
        width_with = max(width, len(asked[number].ids))
        if batch and width_with * (len(batch) + 1) > budget:
            yield batch
            batch, width_with = [], len(asked[number].ids)
        batch.append(number)
        width = width_with
    if batch:
        yield batch


def _prompts(rows: Sequence[tuple[int, ...]], families: Sequence[Hashable]) -> list[Prompt]:
    """The rows with what each shares with the others of its family."""
    members: dict[Hashable, list[tuple[int, ...]]] = {}
    for row, family in zip(rows, families, strict=True):
        members.setdefault(family, []).append(row)
    shared = {}
    for family, group in members.items():
        first, last = min(group), max(group)
        limit = min(map(len, group)) - 1
        count = 0
        while count < limit and first[count] == last[count]:
            count += 1
        shared[family] = count if len(group) > 1 else 0
    return [Prompt(row, shared[family]) for row, family in zip(rows, families, strict=True)]


def _log_probabilities(
    forward: Forward, prefilled: Sequence[Prefilled], verdicts: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """`(prompts, verdicts)`, nats."""
    first = torch.stack([each.logits for each in prefilled]).float().log_softmax(-1)
    device = first.device
    rows = torch.arange(len(prefilled), device=device)
    columns = []
    for number in range(len(verdicts[0])):
        tokens = [each[number] for each in verdicts]
        total = first[rows, torch.tensor([each[0] for each in tokens], device=device)]
        longest = max(map(len, tokens))
        if longest > 1:
            total = total + _rest(forward, prefilled, tokens, longest)
        columns.append(total)
    return torch.stack(columns, 1)


def _rest(
    forward: Forward, prefilled: Sequence[Prefilled], tokens: Sequence[Sequence[int]], longest: int
) -> Tensor:
    """Σ log p of each row's tokens after its first, `(rows,)`; the prompts' keys and values are put back after it."""
    device = forward.model.device
    cache = prefilled[0].cache
    columns = cache.get_seq_length()
    mask = torch.zeros(len(prefilled), columns, dtype=torch.long, device=device)
    for each in prefilled:
        for start, stop in each.spans:
            mask[each.row, start:stop] = 1
    lengths = torch.tensor([each.length for each in prefilled], device=device)
    rows = torch.arange(len(prefilled), device=device)
    total = torch.zeros(len(prefilled), device=device)
    for step in range(longest - 1):
        given = [each[min(step, len(each) - 1)] for each in tokens]
        mask = torch.cat([mask, mask.new_ones(len(prefilled), 1)], 1)
        logits = forward(torch.tensor(given, device=device)[:, None], mask, (lengths + step)[:, None], cache)
        has_next = torch.tensor([step + 1 < len(each) for each in tokens], device=device)
        wanted = torch.tensor([each[min(step + 1, len(each) - 1)] for each in tokens], device=device)
        total += torch.where(has_next, logits.float().log_softmax(-1)[rows, wanted], 0.0)
    cache.crop(-(longest - 1))
    return total
