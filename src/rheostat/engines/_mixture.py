"""Several models as one: forwards side by side, each with its own keys and values, and the mixing of their logits.

Keys and values do not depend on the weights, so a prompt goes through every model once for all the controls that it is
answered under, and rows of unlike weights stand in one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from rheostat.engines._slots import Forward
from rheostat.records import Control

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Mixture:
    """Models of one tokenizer, and what each of them weighs under a control, in their order, summing to 1."""

    models: "tuple[PreTrainedModel, ...]"
    weigh: Callable[[Control], Sequence[float]]


class MixedForward:
    """`Forward` of several models of one kind: the layers of the cache are the first model's, then the second's, …"""

    def __init__(self, models: "Sequence[PreTrainedModel]") -> None:
        assert models, "no model"
        self._forwards = tuple(Forward(model) for model in models)
        self.model = models[0]
        self.takes_positions = self._forwards[0].takes_positions

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of the last position, `(rows, models, vocabulary)`; arguments as `Forward`'s.

        An empty `cache` gets its layers here; in one with layers each model finds its own.
        """
        if not cache.layers:
            own: Sequence[Any] = [DynamicCache() for _ in self._forwards]
        else:
            depth, rest = divmod(len(cache.layers), len(self._forwards))
            assert rest == 0, (len(cache.layers), len(self._forwards))
            starts = range(0, len(cache.layers), depth)
            own = [Cache(layers=cache.layers[start : start + depth]) for start in starts]
        found = [
            forward(ids, mask, positions, each) for forward, each in zip(self._forwards, own, strict=True)
        ]
        if not cache.layers:
            cache.layers.extend(layer for each in own for layer in each.layers)
        return torch.stack(found, 1)


def mix(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of π ∝ Π_k π_k^{λ_k}, `(rows, vocabulary)`: Σ_k λ_k · logits_k, up to a constant of each row.

    `logits` `(rows, models, vocabulary)`, `weights` λ `(rows, models)`, each row at least 0 and summing to 1. The
    models' own normalisations are constants of the row, so that no log-softmax is needed. A model of weight 0 says
    nothing, not even by a probability of 0; one of any other weight forbids with it.

    Source: MOD, arXiv 2406.18853, the mixture for the reverse Kullback-Leibler divergence.

    Worked: (½, ¼, ¼) and (¼, ½, ¼) under λ = (½, ½) give weights √⅛ : √⅛ : ¼, which are 0.3694, 0.3694, 0.2612; under
    λ = (1, 0) the first.
    """
    finite = logits.float().clamp(min=torch.finfo(torch.float32).min)  # 0 · −∞ is not a number
    return torch.bmm(weights.float()[:, None], finite).squeeze(1)
