"""Optimisers of the trainings: AdamW, and Muon for the matrices inside the layers beside AdamW for all else."""

import re
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices inside the model's numbered layers: neither embeddings nor heads."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and re.search(r"\.\d+\.", name)
    ]


class MuonWithAdamW(Optimizer):
    """Muon (K. Jordan, 2024) for `matrices` and AdamW for `others`, as one optimiser.

    With `rms_matched`, Muon's update has the root mean square of AdamW's (arXiv 2502.16982), so that one learning
    rate serves both; otherwise each matrix's update is scaled as in Muon's first description.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float,
        matrix_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
        rms_matched: bool = True,
    ) -> None:
        super().__init__([*matrices, *others], {})
        self._parts: list[Optimizer] = []
        if matrices:
            rate, adjust = matrix_lr or lr, "match_rms_adamw" if rms_matched else "original"
            self._parts.append(Muon(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn=adjust))
        if others:
            self._parts.append(AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True))
        self._share_groups()

    def _share_groups(self) -> None:
        """Schedulers turn the rates in `param_groups`, so these are the parts' own."""
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters; a closure is refused, since it would be computed twice."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the states of both parts."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def muon_with_adamw(model: nn.Module, **options: Any) -> MuonWithAdamW:
    """`MuonWithAdamW` over a model's trainable parameters."""
    matrices = hidden_matrices(model)
    hidden = {id(parameter) for parameter in matrices}
    others = [each for each in model.parameters() if each.requires_grad and id(each) not in hidden]
    return MuonWithAdamW(matrices, others, **options)
