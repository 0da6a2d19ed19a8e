"""SafePatching's two coefficients as if they were dials; ours.

θ = θ0 + α·d_safety·M_SE⊙P̂_SE + β·d_helpfulness·M_OS⊙P̂_OS.

The safety dial sets how much of the safety-enhancing patch is put in, the helpfulness dial how much of the one against
over-safety; at 0 and 0 the model is the base. Without a helpfulness dial its patch is put in whole; other dials do
nothing. The patches and their options are those of `safepatching`.
"""

from collections.abc import Mapping, Sequence

from rheostat.methods._patch_options import ENHANCING, MITIGATING, TRAININGS, PatchOptions
from rheostat.plugins import Method, MethodContext, MethodNeeds
from rheostat.records import Control

HAS_DIAL = True
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
    return MixedWeights(mixer, context.models.engine(base), lambda control: scaled(control, options))


def scaled(control: Control, options: PatchOptions) -> dict[str, float]:
    """α and β times their dials. Worked, α = 2, β = 1: safety 0.5 and helpfulness 0.25 give 1 and 0.25."""
    return {
        ENHANCING: options.alpha * control.get("safety", 1.0),
        MITIGATING: options.beta * control.get("helpfulness", 1.0),
    }
