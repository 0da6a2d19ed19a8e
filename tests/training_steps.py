"""A training step by itself, for tests."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rheostat.example_batches import as_objective_inputs
from rheostat.logprobs import response_logprobs
from rheostat.objective_trainer import ROW_TENSORS
from rheostat.plugins import ObjectiveInputs


def objective_inputs(model: Any, batch: Mapping[str, Tensor]) -> ObjectiveInputs:
    """One forward pass over the factual and the counterfactual rows of a batch."""
    return as_objective_inputs(response_logprobs(model, **{name: batch[name] for name in ROW_TENSORS}), batch)
