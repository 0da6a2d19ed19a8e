"""Dials as weights of experts, one expert a dial: non-negative, summing to 1. Pure."""

from collections.abc import Mapping


def simplex(dials: Mapping[str, float]) -> dict[str, float]:
    """λ_a = d_a / Σ_b d_b, equal weights where every dial stands at 0; `dials` are in [0, 1].

    Only the dials' ratio counts: what mixes experts by weights that sum to 1 has a dimension less than it has dials.
    Ours; rewarded soups (arXiv 2306.04488) and MOD (arXiv 2406.18853) are given λ itself by whoever asks.

    Worked: safety 0.75, helpfulness 0.25 give ¾ and ¼; so do 0.3 and 0.1; 0 and 0 give ½ and ½, as do 1 and 1.
    """
    assert dials, "no dial"
    total = sum(dials.values())
    if total == 0:
        return {name: 1 / len(dials) for name in dials}
    return {name: value / total for name, value in dials.items()}
