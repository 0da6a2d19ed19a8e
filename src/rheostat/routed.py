"""A model with frozen low-rank experts under gates: h′ = W h + Σ_r g_r(h)·E_r(h), E_r(h) = (α/rank)·B_r A_r h.

The layers are those that the experts' adapters sit on; by MidPO (arXiv 2506.02460) the last linear one of every MLP.
A gate lies in [0, 1] where a router computes it from h, token by token; it is any number where a dial sets it.

The paper's: one gate an expert, a layer and a token, each σ(linear(d → 512 → d → 1)) of the layer's input, no
activation between. Ours: any number of experts, and the adapters' scale α/rank, which the authors' published router
code leaves out. A router's three linear maps are one linear map in the end; they are kept, as they train differently.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rheostat.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER_WEIGHTS, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ROUTER = "router.safetensors"
_PEFT_PREFIX, _FIRST, _SECOND = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Expert(nn.Module):
    """One layer's part of a LoRA adapter, frozen: E(h) = scale·B A h, `first` A `(rank, d)`, `second` B `(out, rank)`.

    Worked: A = (1, 2), B = (3), scale 2 and h = (1, 1) give E(h) = 2·3·(1 + 2) = 18.
    """

    def __init__(self, first: Tensor, second: Tensor, scale: float) -> None:
        super().__init__()
        self.first = nn.Parameter(first.float(), requires_grad=False)
        self.second = nn.Parameter(second.float(), requires_grad=False)
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """E(h), `(…, out)`, in float32."""
        return self.scale * (hidden.to(self.first.dtype) @ self.first.T @ self.second.T)


class RouterGate(nn.Module):
    """σ(linear(d → width → d → 1)) of a layer's input."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(size, width)
        self.outward = nn.Linear(width, size)
        self.last = nn.Linear(size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """The gate of each token, `(…, 1)`, in (0, 1)."""
        found: Tensor = self.last(self.outward(self.inward(hidden.to(self.last.weight.dtype)))).sigmoid()
        return found


class SetGate(nn.Module):
    """A gate that is set from outside, one value for all tokens; `value` may change between two forward passes."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden: Tensor) -> Tensor:
        """The gate of each token, `(…, 1)`."""
        return torch.full((*hidden.shape[:-1], 1), self.value, device=hidden.device)


class RoutedLayer(nn.Module):
    """A linear layer with experts beside it, each under its gate; remembers its gates while it trains.

    Worked: W h = 5, two experts with E(h) = 18 and 4 under gates of 1/2 and 1/4 give h′ = 5 + 9 + 1 = 15.
    """

    def __init__(
        self, linear: nn.Module, experts: Mapping[str, Expert], gates: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        assert set(experts) == set(gates), (set(experts), set(gates))
        self.linear = linear
        self.experts = nn.ModuleDict(experts)
        self.gates = nn.ModuleDict(gates)
        self.seen: dict[str, Tensor] = {}

    def forward(self, hidden: Tensor) -> Tensor:
        """h′, `(rows, tokens, out)`, in the type of W h."""
        output: Tensor = self.linear(hidden)
        seen = {role: self.gates[role](hidden) for role in self.experts}
        for role, expert in self.experts.items():
            output = output + (seen[role] * expert(hidden)).to(output.dtype)
        if self.training:
            self.seen = {role: gate.squeeze(-1) for role, gate in seen.items()}
        return output


Experts = Mapping[str, Mapping[str, Expert]]
"""By role, by layer: the layers of all roles are the same."""
Gates = Mapping[str, Mapping[str, nn.Module]]
"""By layer, by role."""


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """The routed layers of a model, in place, by name."""

    layers: Mapping[str, RoutedLayer]

    @property
    def routers(self) -> Gates:
        """Their gates."""
        return {name: dict(layer.gates.items()) for name, layer in self.layers.items()}

    def gates(self, mask: Tensor) -> dict[str, Tensor]:
        """By role the gates of the last pass in training, of tokens where `mask` `(rows, tokens)` is 1.

        `(layers × such tokens,)` each, with gradient.
        """
        held = mask.bool()
        roles = list(next(iter(self.layers.values())).experts)
        return {role: torch.cat([layer.seen[role][held] for layer in self.layers.values()]) for role in roles}


@contextmanager
def routed(model: "PreTrainedModel", experts: Experts, gates: Gates) -> Iterator[RoutedModel]:
    """Within, the model computes with its experts under their gates; afterwards it is exactly as it was.

    Raises `ModelError` for experts that do not sit on layers of this model, or not all on the same.
    """
    names = _layers(experts)
    own = dict(model.named_modules())
    if unknown := [name for name in names if name not in own]:
        raise ModelError(
            f"{model.config.model_type}: got experts on {unknown[0]}, which it has not",
            hint="use adapters that were trained on this model",
        )
    device = next(model.parameters()).device
    layers = {
        name: RoutedLayer(own[name], {role: experts[role][name] for role in experts}, gates[name]).to(device)
        for name in names
    }
    for layer in layers.values():
        layer.train(model.training)
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        yield RoutedModel(layers)
    finally:
        for name in names:
            model.set_submodule(name, own[name])


def read_expert(adapter: Path) -> dict[str, Expert]:
    """A PEFT LoRA adapter by layer. Raises `ModelError` where the folder holds none."""
    weights, about = adapter / _ADAPTER_WEIGHTS, adapter / _ADAPTER_CONFIG
    if not (weights.is_file() and about.is_file()):
        raise ModelError(
            f"{adapter.parent.name}: got no adapter, an expert is one",
            hint="leave train.lora and train.overrides.spe_dpo.lora at auto, or give a block of keys, not null",
        )
    config = json.loads(about.read_text(encoding="utf-8"))
    scale = float(config["lora_alpha"]) / int(config["r"])
    tensors = load_file(weights)
    names = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)]
    return {
        name.removeprefix(_PEFT_PREFIX): Expert(tensors[name + _FIRST], tensors[name + _SECOND], scale)
        for name in names
    }


def read_experts(adapters: Mapping[str, Path]) -> dict[str, dict[str, Expert]]:
    """Several, by role."""
    return {role: read_expert(folder) for role, folder in adapters.items()}


def new_routers(experts: Experts, *, width: int) -> dict[str, dict[str, nn.Module]]:
    """Untrained gates of all layers and experts, by PyTorch's own initialisation, `width` the paper's 512."""
    return {
        name: {role: RouterGate(experts[role][name].first.shape[1], width) for role in experts}
        for name in _layers(experts)
    }


class DialledGates(NamedTuple):
    """A gate an expert that is set from outside, and the same gates as those of every layer."""

    by_role: Mapping[str, SetGate]
    by_layer: Gates


def set_gates(experts: Experts) -> DialledGates:
    """Gates to be set, one an expert."""
    gates = {role: SetGate() for role in experts}
    return DialledGates(gates, dict.fromkeys(_layers(experts), gates))


def save_routed(folder: Path, routers: Gates, adapters: Mapping[str, Path]) -> None:
    """`router.safetensors` and a copy of each expert's adapter, in a folder of its role's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, adapter in adapters.items():
        shutil.copytree(adapter, folder / role, dirs_exist_ok=True)
    save_file(
        {
            f"{layer}.{role}.{name}": value.detach().cpu().contiguous()
            for layer, gates in routers.items()
            for role, gate in gates.items()
            for name, value in gate.state_dict().items()
        },
        folder / _ROUTER,
    )


class SavedRouting(NamedTuple):
    """Experts and their trained routers."""

    experts: Experts
    routers: Gates


def load_routed(folder: Path) -> SavedRouting:
    """What `save_routed` wrote. Raises `ModelError` where it is not there, or not whole."""
    if not (folder / _ROUTER).is_file():
        raise ModelError(f"{folder}: got no {_ROUTER}", hint="train midpo_router first")
    experts = read_experts({path.name: path for path in sorted(folder.iterdir()) if path.is_dir()})
    tensors = load_file(folder / _ROUTER)
    width = next(len(value) for name, value in tensors.items() if name.endswith("inward.weight"))
    routers = new_routers(experts, width=width)
    for layer, gates in routers.items():
        for role, gate in gates.items():
            prefix = f"{layer}.{role}."
            own = {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }
            try:
                gate.load_state_dict(own)
            except RuntimeError as error:
                raise ModelError(
                    f"{folder}: its router does not fit its experts at {layer}",
                    hint="train midpo_router again",
                ) from error
    return SavedRouting(experts, routers)


def _layers(experts: Experts) -> list[str]:
    """The layers of all experts. Raises `ModelError` where they differ."""
    first, *others = experts.values()
    if any(set(first) != set(other) for other in others):
        raise ModelError(
            f"experts {', '.join(experts)}: got adapters on different layers, allowed are the same",
            hint="train them with the same train.overrides",
        )
    return list(first)
