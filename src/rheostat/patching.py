"""SafePatching's mathematics (arXiv 2405.13820): which places of which weights its two patches change. Pure.

Training on harmful data D_h gives a safety-enhancing patch P_SE = θ_SE − θ0 by gradient ascent and an
over-safety-mitigating patch P_OS = θ_OS − θ0 by descent. Of each a random share p is retained (P̂), and of the places
that matter, by SNIP (arXiv 1810.02340) S = |W · ∇_W L|, only those that do not matter to the other:

M_SE = top_a(SE) \\ top_b(OS),  M_OS = top_b(OS) \\ top_a(SE),  θ = θ0 + α·M_SE⊙P̂_SE + β·M_OS⊙P̂_OS.

Assembled from the paper's words; no code is published. Ours, where it is silent: S is taken at the *patched* weights
(W = θ_SE, θ_OS) of the mean NLL of D_h, since at θ0 both patches would have the same importance and one difference set
would be empty; top_a is the share a *of each tensor*; retention is not rescaled by 1/p, which α and β do.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rheostat.weight_mixing import Delta


@dataclass(frozen=True, slots=True)
class Masks:
    """Which places of a tensor each patch may change, bool, of its shape; never the same place."""

    enhancing: Tensor
    mitigating: Tensor


def importance(weight: Tensor, gradient: Tensor) -> Tensor:
    """SNIP's S = |W · ∇_W L|, at least 0, of the weights' shape, float32.

    How much the loss changes, to first order, where that weight is set to 0. Worked: w = −2 under gradient ½ has S = 1.
    """
    return (weight.detach().float() * gradient.float()).abs()


def most_important(scores: Tensor, share: float) -> Tensor:
    """True on the round(share · n) highest of the n `scores`, of equal ones the earlier places; their shape.

    Worked: half of 5 1 2 / 5 0 3 is 5 _ _ / 5 _ 3.
    """
    flat = scores.flatten()
    order = flat.sort(descending=True, stable=True).indices
    found = torch.zeros_like(flat, dtype=torch.bool)
    found[order[: round(share * len(flat))]] = True
    return found.view(scores.shape)


def difference_masks(
    enhancing: Tensor, mitigating: Tensor, *, enhancing_share: float, mitigating_share: float
) -> Masks:
    """M_SE and M_OS of a tensor, from the importance of its places to each patch, both of the tensor's shape.

    Worked, both shares ½: S_SE = 6 5 4 / 3 2 1 and S_OS = 1 6 2 / 5 4 3 have the tops (6 5 4 / _ _ _) and
    (_ 6 _ / 5 4 _), which share the second place, so M_SE = 1 0 1 / 0 0 0 and M_OS = 0 0 0 / 1 1 0.
    """
    ours, theirs = most_important(enhancing, enhancing_share), most_important(mitigating, mitigating_share)
    return Masks(ours & ~theirs, theirs & ~ours)


def retained(shape: Sequence[int], rate: float, *, seed: int, label: str) -> Tensor:
    """True on each place with probability `rate`, independently: `shape`, bool, on the CPU.

    `label` names patch and tensor, so that each has its own draw. The random retention is that of arXiv 2311.03099.
    """
    digest = hashlib.sha256(f"{seed} {label}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(*shape, generator=generator) < rate


def masked_delta(base: Tensor, tuned: Tensor, mask: Tensor) -> Delta:
    """M⊙(θ − θ0) as the places where it is not 0, and its values there, in float32."""
    change = (tuned.detach().float() - base.detach().float()).flatten()
    places = (mask.flatten() & (change != 0)).nonzero().squeeze(-1)
    return Delta(change[places], places)
