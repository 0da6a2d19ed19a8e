"""Drawing the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLDEST = 1e-4


def draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token id a row, `(rows,)`, from `logits` `(rows, vocabulary)`.

    `temperature` 0 takes the most likely token. Else the draw is from softmax(logits / temperature), kept
    to the nucleus: the fewest most likely tokens whose probability reaches `top_p` (arXiv 1904.09751). It
    inverts the cumulative distribution: the first token whose cumulative probability exceeds a uniform
    number. On a CPU that costs a twentieth of `torch.multinomial`, which takes a random number for every
    token of the vocabulary.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    uniforms = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    return _invert(probabilities, uniforms) if top_p >= 1 else _nucleus(probabilities, top_p, uniforms)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How each of several rows is drawn: `temperatures` and `top_ps` `(rows, 1)`, and the places of each way."""

    temperatures: Tensor
    top_ps: Tensor
    greedy: Tensor
    plain: Tensor
    nucleus: Tensor

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float]], device: torch.device) -> "RowSampling":
        """From (temperature, top_p) of each row. A temperature so low that float32 overflows counts as 0."""
        ways: tuple[list[int], list[int], list[int]] = ([], [], [])
        for place, (temperature, top_p) in enumerate(rows):
            ways[0 if temperature < _COLDEST else 1 if top_p >= 1 else 2].append(place)
        values = torch.tensor(rows, dtype=torch.float32, device=device)
        places = (torch.tensor(way, dtype=torch.long, device=device) for way in ways)
        return cls(values[:, :1], values[:, 1:], *places)


def draw_rows(logits: Tensor, sampling: RowSampling, uniforms: Tensor) -> Tensor:
    """One token id a row as `draw` has it, `(rows,)`, by `uniforms` `(rows, 1)` in [0, 1): a row's own number.

    What a row gets depends on its own logits, sampling and number alone.
    """
    drawn = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    if len(places := sampling.greedy):
        drawn[places] = logits[places].argmax(-1)
    if len(places := sampling.plain):
        probabilities = torch.softmax(logits[places].float() / sampling.temperatures[places], -1)
        drawn[places] = _invert(probabilities, uniforms[places])
    if len(places := sampling.nucleus):
        probabilities = torch.softmax(logits[places].float() / sampling.temperatures[places], -1)
        drawn[places] = _nucleus(probabilities, sampling.top_ps[places], uniforms[places])
    return drawn


def _nucleus(probabilities: Tensor, top_p: float | Tensor, uniforms: Tensor) -> Tensor:
    ranked, ids = probabilities.sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    rank = _invert(ranked.masked_fill(before >= top_p, 0.0), uniforms)
    return ids.gather(-1, rank[:, None]).squeeze(-1)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = weights.cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True).squeeze(-1)
    # Rounding can put the product at the very end of the last row of weights.
    return drawn.clamp_(max=weights.shape[-1] - 1)
