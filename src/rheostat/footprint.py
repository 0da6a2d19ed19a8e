"""What a model takes: bytes of memory and floating-point operations, from its shape. Pure.

Operations: 2 for each parameter and token forward, 4 backward (Kaplan et al., arXiv 2001.08361); with adapters the
weights' own gradients fall away, 2 backward. Activations: 34 · hidden bytes a layer and token in 16 bits
(Korthikanti et al., arXiv 2205.05198, without the attention matrix, which fused attention does not keep).
"""

from dataclasses import dataclass
from typing import Literal

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

FOUR_BIT_BYTES = 0.56
"""Bytes a parameter of NF4 with double quantisation, block scales included (arXiv 2305.14314, 4.127 bits) and a little
for the layers that stay in 16 bits.
"""

_ACTIVATIONS = 17
"""Numbers kept a layer, token and hidden unit for the backward pass: 34 bytes in 16 bits."""

_LORA_SHARE = 0.01
"""Trained parameters of rank-16 adapters on all linear layers, as a share of the model's."""

Training = Literal["full", "lora", "4bit"]
Use = Literal["generate", "full", "lora", "4bit"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's size: parameters, layers, and the widths that its cache and activations grow with."""

    parameters: int
    layers: int
    hidden: int
    key_value_heads: int
    head_size: int
    vocabulary: int

    def weights(self, dtype: str) -> int:
        """Bytes of the weights."""
        return self.parameters * BYTES[dtype]

    def cache(self, dtype: str, tokens: int) -> int:
        """Bytes of the keys and values of some tokens."""
        return 2 * self.layers * self.key_value_heads * self.head_size * BYTES[dtype] * tokens

    def generating(self, dtype: str, *, rows: int, tokens: int) -> int:
        """Bytes at most in generation: weights, the cache of `tokens` in flight, logits and probabilities of `rows`."""
        return self.weights(dtype) + self.cache(dtype, tokens) + 3 * rows * self.vocabulary * 4

    def training(
        self, dtype: str, how: Training, *, tokens: int, response_tokens: int, checkpointing: bool = False
    ) -> int:
        """Bytes at most in a training pass over `tokens`, of which `response_tokens` have logits.

        Full: weights, gradients and AdamW's two moments, all in 32 bits whatever `dtype` is. Adapters: the weights as
        they are loaded, and gradients and moments of the adapters in 32 bits. Activations; with gradient checkpointing
        one hidden state a layer and one layer's activations. Logits and their gradient in 32 bits.
        """
        number = BYTES[dtype]
        states = {
            "full": 16 * self.parameters,
            "lora": self.weights(dtype) + round(self.parameters * _LORA_SHARE * 16),
            "4bit": round(self.parameters * (FOUR_BIT_BYTES + _LORA_SHARE * 16)),
        }[how]
        kept = self.layers + _ACTIVATIONS if checkpointing else self.layers * _ACTIVATIONS
        return states + tokens * self.hidden * number * kept + 3 * response_tokens * self.vocabulary * 4

    def forward_operations(self, tokens: float) -> float:
        """Floating-point operations of a forward pass."""
        return 2.0 * self.parameters * tokens

    def training_operations(self, tokens: float, how: Training) -> float:
        """Floating-point operations of forward and backward passes."""
        return (6.0 if how == "full" else 4.0) * self.parameters * tokens


def largest_model(memory: int, dtype: str, use: Use) -> int:
    """Parameters of the largest model that fits into `memory` bytes, a fifth of which is left to all else."""
    each = {
        "generate": BYTES[dtype],
        "full": 16,
        "lora": BYTES[dtype] + 16 * _LORA_SHARE,
        "4bit": FOUR_BIT_BYTES + 16 * _LORA_SHARE,
    }[use]
    return int(0.8 * memory / each)
