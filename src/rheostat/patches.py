"""SafePatching's two patches, M⊙P̂ of each role, from the base, the two tuned models and their weights' importance."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from rheostat.methods._patch_options import ENHANCING, MITIGATING, PatchOptions
from rheostat.models import Policy
from rheostat.patching import Masks, difference_masks, masked_delta, retained
from rheostat.weight_importance import read_importance
from rheostat.weight_mixing import Delta, parameters_of

ROLES = (ENHANCING, MITIGATING)


def patches_of(
    base: Policy, tuned: Callable[[str], Policy], folder: Callable[[str], Path], options: PatchOptions
) -> dict[str, dict[str, Delta]]:
    """M⊙P̂ of both roles, without their coefficients; one tuned model is in memory at a time.

    `tuned` gives the model of a role, `folder` its training's stage. Raises `StageMissing` without its importance.
    """
    weights = parameters_of(base)
    enhancing, mitigating = (read_importance(folder(role)) for role in ROLES)
    masks = _masks(enhancing, mitigating, options)
    found: dict[str, dict[str, Delta]] = {}
    for role in ROLES:
        after = parameters_of(tuned(role))
        chosen: dict[str, Delta] = {}
        for name, before in weights.items():
            drawn = retained(before.shape, options.retention, seed=options.seed, label=f"{role} {name}")
            own = masks[name].enhancing if role == ENHANCING else masks[name].mitigating
            delta = masked_delta(before.cpu(), after[name].cpu(), own & drawn)
            if delta.values.numel():
                chosen[name] = delta
        found[role] = chosen
    return found


def _masks(
    enhancing: Mapping[str, Tensor], mitigating: Mapping[str, Tensor], options: PatchOptions
) -> dict[str, Masks]:
    return {
        name: difference_masks(
            scores,
            mitigating[name],
            enhancing_share=options.enhancing_share,
            mitigating_share=options.mitigating_share,
        )
        for name, scores in enhancing.items()
    }
