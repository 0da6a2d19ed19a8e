"""SafePatching (arXiv 2405.13820): two patches from harmful data, edited into the weights. A point, no dial.

θ = θ0 + α·M_SE⊙P̂_SE + β·M_OS⊙P̂_OS: the formula and what is unknown in it are in `patching.py`. As a file of its own:
`rheostat patch`.
"""

from collections.abc import Mapping, Sequence

from rheostat.methods._patch_options import ENHANCING, MITIGATING, TRAININGS, PatchOptions
from rheostat.plugins import Method, MethodContext, MethodNeeds

HAS_DIAL = False
NEEDS = MethodNeeds(whole_weights=True)
OPTIONS = PatchOptions


def models(dials: Sequence[str]) -> Mapping[str, str]:
    """The trainings by ascent and by descent."""
    return TRAININGS


def build(context: MethodContext) -> Method:
    """The method over the base model and its two patches."""
    from rheostat.patches import patches_of
    from rheostat.weight_mixing import MixedWeights, WeightMixer

    options: PatchOptions = context.options
    base = context.models.base()
    mixer = WeightMixer(base, patches_of(base, context.models.tuned, context.models.folder, options))
    point = {ENHANCING: options.alpha, MITIGATING: options.beta}
    return MixedWeights(mixer, context.models.engine(base), lambda control: point)
