"""What every training of the pocket world shares: its budget, the loop, batches by length, saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

MUON_RATE = 0.02
"""The peak learning rate of the hidden layers' matrices, in every training."""


@dataclass(frozen=True)
class Budget:
    """How much a build computes; the defaults are the shipped recipe, about 25 minutes on two cores."""

    tokenizer_conversations: int = 20_000
    chat_tokens: int = 7_000_000
    reward_tokens: int = 2_000_000
    """Per reward model."""
    judge_tokens: int = 2_000_000
    """Per judge."""
    evaluation_requests: int = 48
    """Requests whose 64 samples give the corner probabilities."""
    evaluation_samples: int = 64
    evaluation_tokens: int = 120
    """The longest response sampled."""
    evaluation_pairs: int = 2_000
    """Fresh pairs for the reward models' and judges' accuracy."""


@dataclass(frozen=True)
class Fit:
    """What a training loop did: its steps, the seconds it took and the loss over its last tenth."""

    steps: int
    seconds: float
    final_loss: float


def _optimisers(model: nn.Module, learning_rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon (K. Jordan, 2024) for the hidden layers' matrices, AdamW for all else, with their peak rates.

    On 0.7 M tokens the chat model's held-out loss was 0.99 nats with Muon and 1.95 with AdamW alone.
    """
    hidden = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and (".layers." in name or ".layer." in name)
    }
    other = [parameter for name, parameter in model.named_parameters() if name not in hidden]
    return [
        (torch.optim.Muon(hidden.values(), lr=MUON_RATE, momentum=0.95, weight_decay=0.01), MUON_RATE),
        (
            torch.optim.AdamW(other, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
            learning_rate,
        ),
    ]


def fit(
    model: nn.Module,
    losses: Iterable[tuple[float, Callable[[], Tensor]]],
    *,
    learning_rate: float,
    label: str,
    console: Console,
    warm_up: float = 0.03,
) -> Fit:
    """Minimise a stream of losses with linear warm-up and cosine decay.

    Each item is (the share of the training done after it, in (0, 1]; a function that computes the loss).
    ``learning_rate`` is that of the embeddings, norms and heads.
    """
    optimisers = _optimisers(model, learning_rate)
    model.train()
    began = told = time.monotonic()
    history: list[float] = []
    for done, compute in losses:
        cosine = 0.5 * (1.0 + math.cos(math.pi * (done - warm_up) / (1.0 - warm_up)))
        factor = max(0.01, done / warm_up if done < warm_up else cosine)
        loss = compute()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        history.append(float(loss.detach()))
        if time.monotonic() - told > 10.0 or done >= 1.0:
            told = time.monotonic()
            recent = sum(history[-50:]) / len(history[-50:])
            left = (told - began) * (1.0 - done) / done
            console.print(f"{label}: {done:6.1%}, loss {recent:.4f}, {told - began:.0f} s, {left:.0f} s left")
    model.eval()
    tail = history[-max(1, len(history) // 10) :]
    return Fit(len(history), time.monotonic() - began, sum(tail) / len(tail))


def batches_by_length(
    lengths: Sequence[int], *, tokens: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Places of sequences in batches of like length, each at most ``tokens`` with padding; random order."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda place: lengths[place])
    batches: list[list[int]] = []
    batch: list[int] = []
    for place in order:
        if batch and lengths[place] * (len(batch) + 1) > tokens:
            batches.append(batch)
            batch = []
        batch.append(place)
    if batch:
        batches.append(batch)
    for place in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[place]


def right_padded(rows: Sequence[Sequence[int]], *, fill: int) -> Tensor:
    """Rows of token ids as one tensor ``(rows, longest)``."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows])


def save(model: nn.Module, tokenizer: object, out: Path) -> None:
    """Write a model in bfloat16 and its tokenizer as a Hugging Face directory."""
    model.to(torch.bfloat16)
    model.save_pretrained(out)  # type: ignore[operator]
    model.to(torch.float32)
    tokenizer.save_pretrained(out)  # type: ignore[attr-defined]
