"""The whole training run decided beforehand: which examples, in which batch, against which counterfactuals. Pure.

A plan is a function of the examples, the options and the seed, so a resumed training sees exactly the batches that
an uninterrupted one does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rheostat import forging
from rheostat.config import LoraConfig, TrainConfig
from rheostat.control import ControlFormat
from rheostat.counterfactual import CounterfactualSampler, subsample
from rheostat.records import Example, Message

_BUCKET_BATCHES = 16
_ADAPTER_RATE = 2e-4
_SMALL_MODEL = 100e6
_SMALL_RATE = 5e-4
_LARGE_RATE = 1e-5


def settled(
    options: TrainConfig, parameters: int, *, is_quantized: bool = False, adapter: LoraConfig | None = None
) -> TrainConfig:
    """The options with what they leave to `auto` decided for a model of so many parameters.

    `lora`: the objective's own `adapter`, where it has one; else adapters of the default rank above `lora_above`
    parameters and for quantised weights, else none.
    `learning_rate`: 2e-4 for adapters, after QLoRA (arXiv 2305.14314); for all weights 5e-4 up to 100 million
    parameters, as the pocket world and other small models want it, and 1e-5 above, as is usual for billions.
    """
    lora = options.lora
    if lora == "auto":
        lora = adapter or (LoraConfig() if is_quantized or parameters > options.lora_above else None)
    rate = options.learning_rate
    if rate == "auto":
        of_all = _SMALL_RATE if parameters <= _SMALL_MODEL else _LARGE_RATE
        rate = of_all if lora is None else _ADAPTER_RATE
    return options.model_copy(update={"lora": lora, "learning_rate": rate})
_TWINS = 0.3
_STYLES = tuple(forging.STYLES)


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A step: indices of examples, and for some of its rows an untreated control."""

    examples: tuple[int, ...]
    counterfactual_rows: tuple[int, ...] = ()
    counterfactual_controls: tuple[dict[str, float], ...] = ()


def plan_batches(
    examples: Sequence[Example],
    lengths: Sequence[int],
    *,
    control_format: ControlFormat,
    options: TrainConfig,
    needs_counterfactual: bool,
    seed: int,
) -> list[PlannedBatch]:
    """Every step of a training: `options.epochs` passes, or `options.steps` steps.

    Batches hold examples of similar length (`lengths`, in tokens).

    The order of examples depends on neither the objective nor its counterfactuals, so objectives are compared on
    the same batches.
    """
    chooser = np.random.default_rng([seed, 1])
    sampler = CounterfactualSampler(examples, control_format, options.counterfactual)
    batches = plan_rows(lengths, _copies(examples, options.balance), options=options, seed=seed)
    if not needs_counterfactual:
        return [PlannedBatch(batch) for batch in batches]
    plan: list[PlannedBatch] = []
    for batch in batches:
        rows = subsample(len(batch), options.counterfactual.fraction, chooser)
        controls = tuple(sampler.draw(examples[batch[row]], chooser) for row in rows)
        plan.append(PlannedBatch(batch, tuple(rows), controls))
    return plan


def plan_rows(
    lengths: Sequence[int], copies: np.ndarray | None = None, *, options: TrainConfig, seed: int
) -> list[tuple[int, ...]]:
    """The rows of every step, of similar `lengths`; `copies`: how often each is seen in an epoch (None: once)."""
    order = np.random.default_rng([seed, 0])
    often = np.ones(len(lengths)) if copies is None else copies
    batches: list[tuple[int, ...]] = []
    total = options.steps * options.batch_size if options.steps else round(len(lengths) * options.epochs)
    while total > 0:
        counts = np.floor(often + order.random(len(lengths))).astype(int)
        shuffled = order.permutation(np.repeat(np.arange(len(lengths)), counts))[:total]
        total -= len(shuffled)
        batches += _bucketed(shuffled, lengths, options.batch_size, order)
    return batches[: options.steps]


def _copies(examples: Sequence[Example], balance: float) -> np.ndarray:
    """How often each example is seen in an epoch, 1 on average: ∝ (examples under its control)^−balance."""
    counts = Counter(tuple(example.control.values()) for example in examples)
    weights = np.array([float(counts[tuple(example.control.values())]) ** -balance for example in examples])
    copies: np.ndarray = weights / weights.mean()
    return copies


def _bucketed(
    shuffled: np.ndarray, lengths: Sequence[int], batch_size: int, order: np.random.Generator
) -> list[tuple[int, ...]]:
    batches: list[tuple[int, ...]] = []
    window = batch_size * _BUCKET_BATCHES
    for start in range(0, len(shuffled), window):
        bucket = sorted((int(index) for index in shuffled[start : start + window]), key=lambda i: lengths[i])
        cut = [tuple(bucket[at : at + batch_size]) for at in range(0, len(bucket), batch_size)]
        batches += [cut[position] for position in order.permutation(len(cut))]
    return batches


def with_forged_controls(
    examples: Sequence[Example],
    *,
    control_format: ControlFormat,
    share: float,
    styles: Literal["exact", "all"] = "exact",
    seed: int,
) -> list[Example]:
    """The examples, a random `share` of them with a random control typed into the user's own text.

    The response keeps obeying the real control, so that a forged one is learned to mean nothing. With `all` styles each
    is typed in one of `forging.STYLES`, three in ten as the innocent twin.
    """
    generator = np.random.default_rng([seed, 2])
    grid = control_format.grid()
    changed: list[Example] = []
    for example in examples:
        if generator.random() >= share:
            changed.append(example)
            continue
        control = grid[generator.integers(len(grid))]
        forged = control_format.render(control)
        if styles == "all":
            style = _STYLES[generator.integers(len(_STYLES))]
            type_it = forging.twin if generator.random() < _TWINS else forging.forged
            forged = type_it(style, control, control_format)
        *before, last = example.messages
        text = f"{last.content} {forged}" if generator.random() < 0.5 else f"{forged} {last.content}"
        changed.append(replace(example, messages=(*before, Message(last.role, text))))
    return changed
