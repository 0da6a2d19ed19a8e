"""Models mixed in weight space: θ = θ0 + Σ_k c_k·δ_k, one merge a setting of the dials, the base put back afterwards.

δ_k is what a training changed: all weights, a merged adapter, or a few places of a mask. This is what a dial of weights
costs: every new setting is a merge, and requests of different settings cannot share a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rheostat.by_setting import answer_by_setting
from rheostat.errors import ModelError
from rheostat.plugins import (
    Completion,
    ControlledCompletion,
    ControlledRequest,
    Engine,
    GenerationRequest,
    Models,
    Progress,
    Sampling,
)
from rheostat.records import Control

if TYPE_CHECKING:
    from rheostat.models import Policy

Coefficients = Mapping[str, float]
"""How much of each change is put in, by its role."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A change of one tensor: `values` of its shape, or, with `places` `(n,)`, flat indices, of those only: `(n,)`."""

    values: Tensor
    places: Tensor | None = None

    def added(self, weight: Tensor, coefficient: float) -> Tensor:
        """`weight` + coefficient · δ, a new tensor of its shape, in float32.

        Worked: 1 2 / 3 4 with δ = 10 at place 2 and coefficient ½ is 1 2 / 8 4.
        """
        found = weight.float().clone(memory_format=torch.contiguous_format)
        if self.places is None:
            return found.add_(self.values, alpha=coefficient)
        found.view(-1).index_add_(0, self.places, self.values.float(), alpha=coefficient)
        return found

    def to(self, device: torch.device) -> "Delta":
        """The same on a device."""
        return Delta(self.values.to(device), None if self.places is None else self.places.to(device))


Deltas = Mapping[str, Delta]
"""The changes of a training, by the name of the parameter; what it left alone is absent."""


def deltas(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Delta]:
    """What a training changed, tuned − base, in float32; tensors that it left alone are absent.

    Raises `ModelError` where the two are not the same architecture.
    """
    unlike = [name for name in base.keys() | tuned.keys() if _shape(base, name) != _shape(tuned, name)]
    if unlike:
        name = min(unlike)
        raise ModelError(
            f"got models of different architectures: {name} is {_shape(base, name)} and {_shape(tuned, name)}",
            hint="mix models that were tuned from the same base",
        )
    return {
        name: Delta(tuned[name].detach().float() - weight.detach().float())
        for name, weight in base.items()
        if not torch.equal(tuned[name], weight)
    }


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def parameters_of(policy: "Policy") -> dict[str, Tensor]:
    """A model's parameters by name, tied ones once. Raises `ModelError` where they are in 4 bits."""
    if policy.is_quantized_here:
        raise ModelError(
            f"{policy.name}: got weights of 4 bits, which cannot be mixed",
            hint="leave out `quantization`, or the methods that mix weights",
        )
    return dict(policy.model.named_parameters())


def expert_deltas(models: Models, roles: Sequence[str]) -> dict[str, dict[str, Delta]]:
    """What each of a method's trainings changed of the base, by role; one tuned model is in memory at a time."""
    base = parameters_of(models.base())
    return {role: deltas(base, parameters_of(models.tuned(role))) for role in roles}


class WeightMixer:
    """Puts θ0 + Σ_k c_k·δ_k into a model, and its own weights back, to the last bit.

    `merges` counts how often it did. The weights that some δ_k changes are held twice.
    """

    def __init__(self, policy: "Policy", experts: Mapping[str, Deltas]) -> None:
        self.merges = 0
        self._parameters = parameters_of(policy)
        self._experts = {
            role: {name: delta.to(policy.device) for name, delta in changed.items()}
            for role, changed in experts.items()
        }
        changed = dict.fromkeys(name for each in self._experts.values() for name in each)
        self._base = {name: self._parameters[name].detach().clone() for name in changed}

    @contextmanager
    def mixed(self, coefficients: Coefficients) -> Iterator[None]:
        """Within, the model has the mixture's weights; roles without a coefficient count as 0.

        The sum is in float32, in the order of the roles, and rounded to the weights' type once.
        """
        assert coefficients.keys() <= self._experts.keys(), (coefficients, list(self._experts))
        self.merges += 1
        try:
            with torch.no_grad():
                for name, base in self._base.items():
                    self._parameters[name].copy_(self._mixture(name, base, coefficients))
            yield
        finally:
            with torch.no_grad():
                for name, base in self._base.items():
                    self._parameters[name].copy_(base)

    def _mixture(self, name: str, base: Tensor, coefficients: Coefficients) -> Tensor:
        found = base
        for role, changed in self._experts.items():
            coefficient = coefficients.get(role, 0.0)
            if coefficient and name in changed:
                found = changed[name].added(found, coefficient)
        return found


@dataclass(frozen=True, slots=True)
class MixedWeights:
    """A method whose dials are coefficients of weights: requests are answered setting by setting, a merge each."""

    mixer: WeightMixer
    engine: Engine
    coefficients: Callable[[Control], Coefficients]

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One sample a request, from the mixture that its control asks for."""

        def setting_of(control: Control) -> tuple[tuple[str, float], ...]:
            return tuple(sorted(self.coefficients(control).items()))

        def answer(
            setting: tuple[tuple[str, float], ...], asked: Sequence[GenerationRequest], first: int
        ) -> list[list[Completion]]:
            # Of the first request's place, so that no two settings draw the same random numbers.
            own_seed = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
            with self.mixer.mixed(dict(setting)):
                return self.engine.generate(asked, sampling, seed=own_seed, progress=progress)

        return answer_by_setting(requests, setting_of, answer)
