"""Keys and values of the rows in flight, in one preallocated buffer, and the prefill that fills them.

Row r of the buffer holds its tokens at columns 0 to length - 1, whatever the other rows do, so a prompt
can be put anywhere at any time, and a token's position is its column. Rows in use are always the first
ones.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from rheostat.errors import ModelError
from rheostat.models import cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FULL = "full_attention"
_SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids; the first `shared` of them open other prompts of the batch too (0: none do)."""

    ids: Sequence[int]
    shared: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt's keys and values, columns `spans` of row `row` of `cache`, and its next token's `logits`."""

    cache: Any
    row: int
    spans: tuple[tuple[int, int], ...]
    logits: Tensor
    length: int


class NextLogits(Protocol):
    """What a prefill and a decoding step call: a model, or several at once."""

    model: "PreTrainedModel"
    takes_positions: bool

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of the last position, `(rows, …, vocabulary)`."""
        ...


class Forward:
    """Calls a decoder-only model with the arguments that it knows; logits of the last position only.

    Raises `ModelError` for a model whose past is more than keys and values (a state space, linear
    attention).
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self._layer_types = set(getattr(config, "layer_types", None) or ())
        if model._is_stateful or self._layer_types - {_FULL, _SLIDING}:
            found = ", ".join(sorted(self._layer_types)) or "a recurrent state"
            raise ModelError(
                f"{model.config.model_type}: got {found}, allowed are {_FULL} and {_SLIDING}",
                hint="serve the model with an OpenAI-compatible server and set `engine: openai`",
            )
        slides = _SLIDING in self._layer_types or not self._layer_types
        self._window: int | None = getattr(config, "sliding_window", None) if slides else None
        known = inspect.signature(type(model).forward).parameters
        self.takes_positions = "position_ids" in known
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        cache_name = cache_argument(model)
        assert cache_name is not None, f"{type(model).__name__} takes no cache"
        self._cache_name = cache_name

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of the last position, `(rows, vocabulary)`.

        `ids` and `positions` are `(rows, tokens)`, `mask` is `(rows, cached and new tokens)`.
        """
        arguments: dict[str, Any] = {**self._last_only, self._cache_name: cache}
        if self._window is not None and mask.shape[1] > self._window:
            mask = self._windowed(mask.bool(), positions, self._window)
        if self.takes_positions:
            arguments["position_ids"] = positions
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **arguments)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _windowed(self, mask: Tensor, positions: Tensor, window: int) -> Any:
        """What each new token may see, `(rows, 1, tokens, columns)`, by positions.

        A model left to itself measures the window in columns, which is wrong where rows have gaps or
        unlike ends.
        """
        seen = _positions(mask.long())[:, None, :]
        asking = positions[:, :, None]
        visible = mask[:, None, :] & (seen <= asking)
        masks = {_FULL: visible, _SLIDING: visible & (seen > asking - window)}
        lowest = torch.finfo(self.model.dtype).min
        additive = {
            kind: torch.zeros_like(each, dtype=self.model.dtype).masked_fill_(~each, lowest)[:, None]
            for kind, each in masks.items()
        }
        return additive if _FULL in self._layer_types else additive[_SLIDING]


class SlotCache(Cache):  # type: ignore[misc]
    """The buffer as transformers wants a cache: a layer for each of the model's, made by `reserve`."""

    layers: "list[SlotLayer]"

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows = 0
        self.columns = 0
        self.row_ids: Tensor = torch.empty(0, dtype=torch.long)
        self.positions: Tensor = torch.empty(0, dtype=torch.long)
        self.longest = 0

    def reserve(self, like: Any, rows: int, columns: int, used: int) -> None:
        """Room for `rows` × `columns`, layers shaped like those of `like`; the first `used` rows are kept."""
        if not self.layers:
            self.layers = [SlotLayer(self) for _ in like.layers]
        for layer, sample in zip(self.layers, like.layers, strict=True):
            layer.allocate(sample, rows, columns, used)
        self.rows, self.columns = rows, columns

    def clear(self) -> None:
        """Frees the buffer; `reserve` makes another."""
        self.layers.clear()
        self.rows = self.columns = 0

    def forget(self, row: int) -> None:
        """Zeros in a row: masked columns are multiplied by 0, which does not undo a value that is not a number."""
        for layer in self.layers:
            layer.keys[row].zero_()
            layer.values[row].zero_()

    def put(self, prompt: Prefilled, start: int, stop: int) -> None:
        """A prompt's keys and values into rows `start` to `stop`."""
        for layer, source in zip(self.layers, prompt.cache.layers, strict=True):
            column = 0
            for first, last in prompt.spans:
                columns = slice(column, column + last - first)
                layer.keys[start:stop, :, columns] = source.keys[prompt.row, :, first:last]
                layer.values[start:stop, :, columns] = source.values[prompt.row, :, first:last]
                column = columns.stop

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """The first `columns` of rows `sources` to the places of `targets`, both `(moved,)`."""
        for layer in self.layers:
            layer.keys[targets, :, :columns] = layer.keys[sources, :, :columns]
            layer.values[targets, :, :columns] = layer.values[sources, :, :columns]

    def step(self, row_ids: Tensor, positions: Tensor, longest: int) -> None:
        """Announces the next forward: each row's new column, and the longest row with its new token."""
        self.row_ids, self.positions, self.longest = row_ids, positions, longest


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, `(rows, heads, columns, head size)` each."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache
        self.is_initialized = True

    def allocate(self, like: Any, rows: int, columns: int, used: int) -> None:
        """A buffer of that size and of `like`'s heads; the first `used` rows are kept."""
        self.keys = _grown(self.keys, like.keys, rows, columns, used)
        self.values = _grown(self.values, like.values, rows, columns, used)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: `allocate` has done it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes one token a row at its column and returns the columns in use."""
        cache = self.cache
        used = len(cache.row_ids)
        self.keys[cache.row_ids, :, cache.positions] = key_states[:, :, 0]
        self.values[cache.row_ids, :, cache.positions] = value_states[:, :, 0]
        return self.keys[:used, :, : cache.longest], self.values[:used, :, : cache.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next forward sees, and the offset of the first."""
        return self.cache.longest, 0

    def get_seq_length(self) -> int:
        """Columns before the next forward's token."""
        return self.cache.longest - 1

    def get_max_length(self) -> int:
        """Columns of the buffer."""
        return self.cache.columns


def prefill(forward: NextLogits, prompts: Sequence[Prompt], pad_id: int) -> list[Prefilled]:
    """Runs prompts through the model; a beginning that several share goes through once.

    The gap that then lies between a beginning and its end needs a model that can be told positions;
    another gets each prompt whole. Raises `ModelError` where the model's logits are not numbers.
    """
    device = forward.model.device
    if not forward.takes_positions or not any(prompt.shared for prompt in prompts):
        cache = DynamicCache()
        ids, mask = _left_padded([prompt.ids for prompt in prompts], pad_id, device)
        logits = _checked(forward(ids, mask, _positions(mask), cache))
        width = ids.shape[1]
        return [
            Prefilled(cache, row, ((width - len(prompt.ids), width),), logits[row], len(prompt.ids))
            for row, prompt in enumerate(prompts)
        ]
    cuts = [prompt.shared or len(prompt.ids) - 1 for prompt in prompts]
    heads = [tuple(prompt.ids[:cut]) for prompt, cut in zip(prompts, cuts, strict=True)]
    places = {head: place for place, head in enumerate(dict.fromkeys(heads))}
    cache = DynamicCache()
    ids, mask = _left_padded(list(places), pad_id, device)
    forward(ids, mask, _positions(mask), cache)
    index = torch.tensor([places[head] for head in heads], device=device)
    cache.batch_select_indices(index)
    ends = [prompt.ids[cut:] for prompt, cut in zip(prompts, cuts, strict=True)]
    tails, tail_mask = _left_padded(ends, pad_id, device)
    whole_mask = torch.cat([mask[index], tail_mask], 1)
    logits = _checked(forward(tails, whole_mask, _positions(whole_mask)[:, ids.shape[1] :], cache))
    width, whole = ids.shape[1], whole_mask.shape[1]
    return [
        Prefilled(
            cache,
            row,
            ((width - cut, width), (whole - len(prompt.ids) + cut, whole)),
            logits[row],
            len(prompt.ids),
        )
        for row, (prompt, cut) in enumerate(zip(prompts, cuts, strict=True))
    ]


def _checked(logits: Tensor) -> Tensor:
    if bool(logits.isnan().any()):
        raise ModelError("the model's logits are not numbers", hint="load it with dtype float32 or bfloat16")
    return logits


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_(min=0)


def _grown(old: Tensor | None, like: Tensor, rows: int, columns: int, used: int) -> Tensor:
    new = like.new_zeros(rows, like.shape[1], columns, like.shape[3])
    if old is not None:
        kept = min(columns, old.shape[2])
        new[:used, :, :kept] = old[:used, :, :kept]
    return new
