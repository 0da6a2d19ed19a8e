"""How much each weight of a trained model matters to its training's loss: SNIP's |W · ∇_W L|, kept beside the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from rheostat.config import RunConfig
from rheostat.errors import StageMissing
from rheostat.example_batches import ExampleBatches
from rheostat.logprobs import response_logprobs
from rheostat.models import Policy
from rheostat.objective_trainer import ROW_TENSORS
from rheostat.patching import importance
from rheostat.plugins import Objective
from rheostat.records import Example
from rheostat.storage import write_bytes

FILE = "importance.safetensors"
EXAMPLES = 512
"""At most so many examples are averaged over; pruners by importance take some 128."""


def weight_importance(
    policy: Policy, examples: Sequence[Example], config: RunConfig, *, objective: Objective, options: object
) -> dict[str, Tensor]:
    """Per parameter |W · ∇_W L|, of its shape, on the CPU: L is the objective's, averaged over batches of examples.

    The batches are those of one pass in a random order, as many as hold `EXAMPLES`; `config.train` has their size. The
    model's weights and gradients stay as they were.
    """
    train = config.train.model_copy(update={"epochs": 1.0, "steps": None, "balance": 0.0})
    once = config.model_copy(update={"train": train})
    batches = ExampleBatches(policy, examples, config.control_format, once, objective=objective)
    parameters = dict(policy.model.named_parameters())
    sums = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in parameters.items()}
    count = min(len(batches), -(-EXAMPLES // train.batch_size))
    for step in range(count):
        batch = batches[step]
        rows = {name: batch[name].to(policy.device) for name in ROW_TENSORS}
        found = response_logprobs(policy.model, **rows)
        loss = objective.loss(batches.inputs(found, batch, warmth=1.0), options).total
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=1 / count)
    return {name: importance(parameters[name], total).cpu() for name, total in sums.items()}


def write_importance(folder: Path, found: Mapping[str, Tensor]) -> None:
    """Into a training's stage."""
    write_bytes(folder / FILE, safetensors.torch.save({name: each.contiguous() for name, each in found.items()}))


def read_importance(folder: Path) -> dict[str, Tensor]:
    """That of a training's stage. Raises `StageMissing` where there is none."""
    if not (folder / FILE).is_file():
        raise StageMissing(
            f"{folder.name}: got a training without {FILE}",
            hint="remove its folder and run `rheostat train` on the run again",
        )
    found: dict[str, Tensor] = safetensors.torch.load_file(folder / FILE)
    return found
