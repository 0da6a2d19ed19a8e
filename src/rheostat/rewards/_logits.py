"""The logits of a classifier for many token rows, computed with as little work as they need.

Rows of like length make a batch. Where several rows begin alike, as the responses to one prompt do, a decoder
reads the beginning once and keeps its keys and values for all of them. Its last feed-forward network, whose output
only the pooled token needs, reads that token alone.
"""

import inspect
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_layers import GenericForSequenceClassification

from rheostat.models import cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, list[int]]

# On a CPU small batches stay in its caches: 2,048 tokens scored 20 % more texts a second than 16,384.
_CPU_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of some of the rows: `values[i]` are those of row `numbers[i]`, one a label."""

    numbers: Sequence[int]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Token ids that open the rows `numbers`."""

    ids: Sequence[int]
    numbers: Sequence[int]


def logits(
    model: "PreTrainedModel", rows: Sequence[Row], families: Sequence[Hashable], *, batch_tokens: int
) -> Iterator[Logits]:
    """The logits of each row, batch by batch; rows of equal `families` are likely to begin alike.

    A batch has at most `batch_tokens` tokens, and so have the beginnings that are kept at a time.
    """
    budget = min(batch_tokens, _CPU_BATCH_TOKENS) if model.device.type == "cpu" else batch_tokens
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    beginnings = _beginnings(model, rows, families) if _keeps_a_past(model, longest) else []
    opened = {number for beginning in beginnings for number in beginning.numbers}
    alone = [number for number in range(len(rows)) if number not in opened]
    with torch.inference_mode():
        for batch in _by_length({number: len(rows[number]["input_ids"]) for number in alone}, budget):
            yield Logits(batch, _whole(model, [rows[number] for number in batch]))
        lengths = {place: len(beginning.ids) for place, beginning in enumerate(beginnings)}
        for places in _by_length(lengths, batch_tokens):
            yield from _continued(model, rows, [beginnings[place] for place in places], budget)


def _beginnings(
    model: "PreTrainedModel", rows: Sequence[Row], families: Sequence[Hashable]
) -> list[_Beginning]:
    """What the rows of each family share; the rest of a row keeps a token that the pooling can find."""
    pad_id = _pad_id(model)
    members: dict[Hashable, list[int]] = {}
    for number, family in enumerate(families):
        members.setdefault(family, []).append(number)
    found = []
    for numbers in members.values():
        ids = [rows[number]["input_ids"] for number in numbers]
        first, last = min(ids), max(ids)
        limit = min(max((at for at, each in enumerate(row) if each != pad_id), default=0) for row in ids)
        shared = 0
        while shared < limit and first[shared] == last[shared]:
            shared += 1
        if len(numbers) > 1 and shared:
            found.append(_Beginning(first[:shared], numbers))
    return found


def _keeps_a_past(model: "PreTrainedModel", longest: int) -> bool:
    """Whether the model is a decoder whose past is keys and values, all of them in sight of a row's end."""
    known = inspect.signature(type(model).forward).parameters
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return (
        cache_argument(model) is not None
        and "position_ids" in known
        and not model._is_stateful
        and not kinds - {"full_attention", "sliding_attention"}
        and (window is None or longest <= window)
    )


def _whole(model: "PreTrainedModel", rows: Sequence[Row]) -> list[list[float]]:
    width = max(len(row["input_ids"]) for row in rows)
    fill = dict.fromkeys(rows[0], 0) | {"input_ids": _pad_id(model)}
    inputs = {
        name: torch.tensor(
            [row[name] + [value] * (width - len(row[name])) for row in rows], device=model.device
        )
        for name, value in fill.items()
    }
    with _last_feed_forward_at_the_end(model, inputs["input_ids"]):
        return _values(model(**inputs))


def _continued(
    model: "PreTrainedModel", rows: Sequence[Row], beginnings: Sequence[_Beginning], budget: int
) -> Iterator[Logits]:
    device, pad_id = model.device, _pad_id(model)
    heads, head_mask = _padded([beginning.ids for beginning in beginnings], pad_id, device)
    past = DynamicCache()
    name = cache_argument(model)
    assert name is not None
    model(input_ids=heads, attention_mask=head_mask, use_cache=True, **{name: past})
    place_of = {number: place for place, beginning in enumerate(beginnings) for number in beginning.numbers}
    rest = {
        number: rows[number]["input_ids"][len(beginnings[place].ids) :] for number, place in place_of.items()
    }
    lengths = {number: len(ids) for number, ids in rest.items()}
    for batch in _by_length(lengths, budget, besides=heads.shape[1]):
        index = torch.tensor([place_of[number] for number in batch], device=device)
        cache = DynamicCache()
        for layer, each in enumerate(past.layers):
            cache.update(each.keys[index], each.values[index], layer)
        tails, tail_mask = _padded([rest[number] for number in batch], pad_id, device)
        mask = head_mask[index]
        positions = mask.sum(1, keepdim=True) + torch.arange(tails.shape[1], device=device)
        with _last_feed_forward_at_the_end(model, tails):
            output = model(
                input_ids=tails,
                attention_mask=torch.cat([mask, tail_mask], 1),
                position_ids=positions,
                use_cache=True,
                **{name: cache},
            )
        yield Logits(batch, _values(output))


@contextmanager
def _last_feed_forward_at_the_end(model: "PreTrainedModel", ids: Tensor) -> Iterator[None]:
    """Within, the last layer's feed-forward network of a decoder reads only the last token of each row that is no pad.

    That token is the one transformers pools. The network's output, `(rows, 1, hidden)`, is added to the whole row:
    right at that token, and what stands elsewhere is not looked at. Models of other build run as they are.
    """
    layers = getattr(model.base_model, "layers", None)
    network = getattr(layers[-1], "mlp", None) if layers is not None else None
    if network is None or not isinstance(model, GenericForSequenceClassification):
        yield
        return
    is_text = (ids != _pad_id(model)).long()
    last = (is_text * torch.arange(ids.shape[1], device=ids.device)).argmax(1)
    rows = torch.arange(len(ids), device=ids.device)
    handle = network.register_forward_pre_hook(lambda _, arguments: (arguments[0][rows, last][:, None],))
    try:
        yield
    finally:
        handle.remove()


def _pad_id(model: "PreTrainedModel") -> int:
    """The token that the pooling skips: transformers asks the text's configuration for it."""
    pad_id: int = model.config.get_text_config().pad_token_id
    return pad_id


def _values(output: Any) -> list[list[float]]:
    values: list[list[float]] = output.logits.float().tolist()
    return values


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, `(rows, longest)` each, padded on the right, which keeps every token's position."""
    width = max(map(len, rows))
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _by_length(lengths: dict[int, int], budget: int, besides: int = 0) -> Iterator[list[int]]:
    """Rows of like length together, the longest first, so that too large a budget fails at once.

    A batch's rows × (longest row + `besides`) is at most `budget`; a longer row makes a batch of its own.
    """
    order = sorted(lengths, key=lambda number: (-lengths[number], number))
    start = 0
    while start < len(order):
        count = max(1, budget // (lengths[order[start]] + besides))
        yield order[start : start + count]
        start += count
