"""log p(y | x): token log-probabilities of responses, computed where the responses are and nowhere else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rheostat.plugins import LogProbabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A prompt (with its control) and a response (with its end token) as token ids."""

    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def pad_rows(rows: Sequence[TokenRow], *, pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `response_mask`, each `(rows, longest)`, int64, padded on the right."""
    longest = max(map(len, rows))
    ids = [[*row.prompt, *row.response] + [pad_id] * (longest - len(row)) for row in rows]
    attention = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    response = [[0] * len(row.prompt) + [1] * len(row.response) + [0] * (longest - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(attention),
        "response_mask": torch.tensor(response),
    }


def response_logprobs(
    model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor
) -> LogProbabilities:
    """Log-probabilities of the response tokens: `(rows, longest − 1)`, nats, zero elsewhere.

    All inputs are `(rows, longest)`. The output layer sees response positions only: no logits of prompts or padding
    ever exist, whatever the architecture does to its logits afterwards.
    """
    return logprobs_through(model, model.get_output_embeddings(), input_ids, attention_mask, response_mask)


def logprobs_through(
    model: Any,
    output_layer: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
) -> LogProbabilities:
    """The same of a model that distributed training has wrapped, whose output layer is deeper inside.

    `temperature` is what logits are divided by.
    """
    predicts = response_mask[:, 1:].bool()
    with _output_layer_at(output_layer, predicts):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    if temperature != 1:
        logits = logits / temperature
    picked = picked_logprobs(logits, input_ids[:, 1:][predicts])
    values = picked.new_zeros(predicts.shape).masked_scatter(predicts, picked)
    return LogProbabilities(values=values, mask=predicts)


_CPU_ROWS = 16
"""Rows of a pass on a CPU, whose caches then hold it."""


def logprobs_of_padded(
    model: Any,
    output_layer: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: int,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """The log-probabilities of responses in the last `responses` columns, `(rows, responses)`, nats, 0 on padding.

    Prompts are padded on the left, responses on the right, `(rows, columns)`; the model sees rows of similar length
    together, without the padding before them. Logits are divided by `temperature` first.
    """
    lengths = attention_mask.sum(-1)
    order = lengths.argsort(stable=True)
    is_response = attention_mask[:, -responses:].bool()
    first_response = input_ids.shape[1] - responses
    placed = []
    each = _CPU_ROWS if input_ids.device.type == "cpu" else len(order)
    for at in range(0, len(order), each):
        chosen = order[at : at + each]
        start, length = attention_mask[chosen].argmax(-1)[:, None], lengths[chosen][:, None]
        place = torch.arange(int(length.max()), device=input_ids.device)
        columns = (start + place).clamp(max=input_ids.shape[1] - 1)
        attended = place < length
        found = logprobs_through(
            model,
            output_layer,
            input_ids[chosen].gather(1, columns),
            attended.long(),
            (attended & (columns >= first_response)).long(),
            temperature=temperature,
        )
        picked = found.values[found.mask]
        placed.append(picked.new_zeros(len(chosen), responses).masked_scatter(is_response[chosen], picked))
    return torch.cat(placed)[order.argsort()]


def picked_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of one target a row, `(rows,)`, float32, nats, from `logits` `(rows, vocabulary)`.

    Logits of 16 bits are never all turned into 32: chunk by chunk, forward and backward, so that a pass holds the
    logits and their gradient and nothing else of that size.
    """
    if logits.dtype == torch.float32:
        return -cross_entropy(logits, targets, reduction="none")
    return cast(Tensor, _PickedLogprobs.apply(logits, targets))  # type: ignore[no-untyped-call]


_CHUNK_ELEMENTS = 2**24
"""Logits that are in float32 at a time: 64 MiB."""


class _PickedLogprobs(torch.autograd.Function):
    """log softmax at the targets; the gradient of row r is g_r · (one-hot − softmax), in the logits' own type."""

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        picked = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        normaliser = torch.empty_like(picked)
        for rows in _chunks(logits):
            whole = logits[rows].float()
            normaliser[rows] = whole.logsumexp(-1)
            picked[rows] = whole.gather(-1, targets[rows, None]).squeeze(-1) - normaliser[rows]
        context.save_for_backward(logits, targets, normaliser)
        return picked

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets, normaliser = context.saved_tensors
        (gradient,) = gradients
        found = torch.empty_like(logits)
        for rows in _chunks(logits):
            softmax = (logits[rows].float() - normaliser[rows, None]).exp_()
            own = gradient[rows, None]
            chunk = softmax.mul_(-own)
            chunk.scatter_add_(-1, targets[rows, None], own.float())
            found[rows] = chunk.to(logits.dtype)
        return found, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


# On a CPU small batches stay in its caches: 2,048 tokens were 2.2 times as fast as 65,536.
_CPU_BATCH_TOKENS = 2048


@contextmanager
def _output_layer_at(output_layer: torch.nn.Module, predicts: Tensor) -> Iterator[None]:
    """Within, a model's output layer maps only the hidden states at `predicts`, `(rows, longest − 1)`."""

    def select(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        hidden: Tensor = arguments[0]
        return (hidden[:, :-1][predicts],)

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def sum_logprobs(
    model: "PreTrainedModel", rows: Sequence[TokenRow], *, pad_id: int, batch_tokens: int
) -> list[float]:
    """Summed log-probability of each response in nats, in order; batches bounded by `batch_tokens`."""
    sums = [0.0] * len(rows)
    for chosen, found in _in_batches(model, rows, pad_id=pad_id, batch_tokens=batch_tokens):
        for index, value in zip(chosen, found.sum().tolist(), strict=True):
            sums[index] = value
    return sums


def token_logprobs(
    model: "PreTrainedModel", rows: Sequence[TokenRow], *, pad_id: int, batch_tokens: int
) -> list[Tensor]:
    """Log-probability of each token of each response in nats, `(tokens of the response,)` on the CPU, in order."""
    tokens: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen, found in _in_batches(model, rows, pad_id=pad_id, batch_tokens=batch_tokens):
        values, mask = found.values.cpu(), found.mask.cpu()
        for place, index in enumerate(chosen):
            tokens[index] = values[place][mask[place]].clone()
    return tokens


def _in_batches(
    model: "PreTrainedModel", rows: Sequence[TokenRow], *, pad_id: int, batch_tokens: int
) -> Iterator[tuple[list[int], LogProbabilities]]:
    """The log-probabilities of rows of similar lengths, and which rows they are."""
    if model.device.type == "cpu":
        batch_tokens = min(batch_tokens, _CPU_BATCH_TOKENS)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= batch_tokens:
            end += 1
        chosen = order[start:end]
        batch = pad_rows([rows[index] for index in chosen], pad_id=pad_id)
        with torch.inference_mode():
            found = response_logprobs(model, **{name: each.to(model.device) for name, each in batch.items()})
        yield chosen, found
        start = end
