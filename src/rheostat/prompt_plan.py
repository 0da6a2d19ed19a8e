"""The whole of an online training decided beforehand: which prompts, under which controls, at which step. Pure.

What is answered is the model's matter; what is asked is a function of the options and the seed, so that a resumed
training asks exactly what an uninterrupted one does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rheostat.config import TrainConfig


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """A prompt, by its number, and the control that its responses are to obey."""

    prompt: int
    control: Mapping[str, float]


def plan_prompts(
    count: int, grid: Sequence[Mapping[str, float]], *, per_step: int, options: TrainConfig, seed: int
) -> list[tuple[PlannedPrompt, ...]]:
    """Every step's `per_step` prompts out of `count`: `options.epochs` passes over them, or `options.steps` steps.

    Prompts and controls are each drawn without replacement, pass by pass: every prompt comes once before any comes
    twice, and so does every control of the `grid`, which is therefore covered uniformly.

    Worked: 6 prompts, 4 a step and 3 epochs are round(6 · 3 / 4) = 4 steps; of a grid of 8 controls each comes twice.
    """
    steps = options.steps or max(1, round(count * options.epochs / per_step))
    prompts = _passes(count, steps * per_step, np.random.default_rng([seed, 3]))
    controls = _passes(len(grid), steps * per_step, np.random.default_rng([seed, 4]))
    asked = [PlannedPrompt(int(prompt), grid[control]) for prompt, control in zip(prompts, controls, strict=True)]
    return [tuple(asked[at : at + per_step]) for at in range(0, len(asked), per_step)]


def _passes(count: int, total: int, generator: np.random.Generator) -> np.ndarray:
    """`total` numbers below `count`, one shuffled pass after the other."""
    passes = [generator.permutation(count) for _ in range(-(-total // count))]
    return np.concatenate(passes)[:total]
