"""The pocket reward models: Bradley–Terry scorers learned from noisy preferences, what a user would have.

For each request some responses are drawn and every pair of different truth is a preference
(all pairs of a ranking, as InstructGPT does, arXiv 2203.02155, section 3.5); one label in ten is wrong.
Loss of a pair: −log σ(r(chosen) − r(rejected)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rheostat.pocket.comparisons import Attribute, Graded, draw_group
from rheostat.pocket.conversations import Message
from rheostat.pocket.language import POSITIONS, VOCABULARY, render
from rheostat.pocket.training import Budget, Fit, fit, right_padded

GROUP = 4
"""Responses per request; up to six pairs."""
GROUPS = 16
"""Requests per step."""
FLIPPED = 0.1
"""The share of preferences with the wrong label."""
LEAST_DIFFERENCE = 0.02
"""Responses nearer than this in truth are no pair."""
FLAT = 0.6
SPOILT = 0.15
LEARNING_RATE = 2e-3


def reward_model(seed: int) -> LlamaForSequenceClassification:
    """The untrained reward model: 2 layers of width 160, 1.0 M parameters, one score."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=2,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            num_labels=1,
            initializer_range=0.04,
        )
    )


def encode_rewarded(tokenizer: PreTrainedTokenizerFast, items: Sequence[Graded]) -> list[list[int]]:
    """Token ids of prompt and response in the chat template."""
    texts = [render([Message("user", item.prompt)]) + item.response + "</s>" for item in items]
    return [found.ids for found in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def rewards(
    model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]], *, chunk: int = 16
) -> Tensor:
    """Raw scores ``(rows,)``, computed in chunks of like length."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    scores = torch.cat(
        [
            model(
                input_ids=right_padded([rows[place] for place in order[start : start + chunk]], fill=0)
            ).logits[:, 0]
            for start in range(0, len(order), chunk)
        ]
    )
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return scores[back]


def bradley_terry(scores: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean −log σ(scores[chosen] − scores[rejected]); places are ``(pairs,)``."""
    return -functional.logsigmoid(scores[chosen] - scores[rejected]).mean()


def preferences(
    groups: Sequence[Sequence[Graded]], attribute: Attribute, rng: Random
) -> tuple[list[int], list[int]]:
    """Places of chosen and rejected responses in the concatenated groups, one label in ten wrong."""
    chosen: list[int] = []
    rejected: list[int] = []
    start = 0
    for group in groups:
        for first in range(len(group)):
            for second in range(first):
                difference = group[first].level(attribute) - group[second].level(attribute)
                if abs(difference) < LEAST_DIFFERENCE:
                    continue
                is_first = (difference > 0) != (rng.random() < FLIPPED)
                chosen.append(start + (first if is_first else second))
                rejected.append(start + (second if is_first else first))
        start += len(group)
    return chosen, rejected


def train_reward(
    tokenizer: PreTrainedTokenizerFast, attribute: Attribute, seed: int, *, budget: Budget, console: Console
) -> tuple[LlamaForSequenceClassification, Fit]:
    """Train the reward model of one attribute on freshly drawn preferences."""
    model = reward_model(seed)

    def loss(rows: list[list[int]], chosen: list[int], rejected: list[int]) -> Tensor:
        return bradley_terry(rewards(model, rows), torch.tensor(chosen), torch.tensor(rejected))

    def losses() -> Iterator[tuple[float, Callable[[], Tensor]]]:
        rng = Random(f"reward {attribute} {seed}")
        seen = 0
        while seen < budget.reward_tokens:
            groups = [draw_group(rng, size=GROUP, flat=FLAT, spoilt=SPOILT) for _ in range(GROUPS)]
            chosen, rejected = preferences(groups, attribute, rng)
            if not chosen:
                continue
            rows = encode_rewarded(tokenizer, [item for group in groups for item in group])
            seen += sum(len(row) for row in rows)
            yield min(1.0, seen / budget.reward_tokens), partial(loss, rows, chosen, rejected)

    return model, fit(
        model, losses(), learning_rate=LEARNING_RATE, label=f"reward {attribute}", console=console
    )
