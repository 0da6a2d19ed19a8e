"""What the bench's page says of each method by hand: where it comes from, how its dial works, what is unknown. Data."""

from typing import NamedTuple

from rheostat import plugins


class Context(NamedTuple):
    """Where the dial of a method sits, its source, and what of it is the source's, ours, or unknown."""

    dial: str
    source: str
    words: str


CONTEXTS: dict[str, Context] = {
    "base": Context("none", "–", "The chat model as it is."),
    "prompting": Context(
        "prompt",
        "arXiv 2404.01295",
        "The wanted levels in words, in the system turn; the words and their place are ours.",
    ),
    "reranking": Context(
        "choice among answers",
        "arXiv 2404.01295",
        "Samples N answers and keeps the nearest to the request; the distance over calibrated scores is ours.",
    ),
    "clm": Context(
        "prompt",
        "arXiv 2404.01295",
        "Fine-tuning on self-generated answers under their quantised scores (MOEC, whose exact rule is unknown: "
        "ours).",
    ),
    "clm+pool": Context(
        "prompt",
        "in the style of SteerLM (arXiv 2310.05344) and RiC (arXiv 2402.10207)",
        "Fine-tuning on every usable answer under its raw scores as decimals: no MOEC, no quantising. The style "
        "is theirs, the code and the settings are ours; RiC's online rounds are left out.",
    ),
    "exmate": Context(
        "prompt",
        "arXiv 2404.01295",
        "CLM that also lowers an answer's likelihood under controls it does not belong to. The per-sequence "
        "exponent and λ are ours.",
    ),
    "exmate+round2": Context(
        "prompt",
        "ours",
        "ExMATE again from its own model, on what that model answers under controls that the first round's data "
        "lacked.",
    ),
    "rlhf": Context(
        "prompt",
        "compared in arXiv 2404.01295, its algorithm unknown; RLOO (arXiv 2402.14740)",
        "Online optimisation of minus the distance between scores and request, with a KL penalty. The reward is "
        "ours.",
    ),
    "rlhf+from_exmate": Context("prompt", "as rlhf; the start is ours", "The same, started from the ExMATE model."),
    "dpo": Context(
        "none", "arXiv 2305.18290", "Which answer of a pair is preferred: the one with the higher mean score, ours."
    ),
    "bfpo": Context(
        "none",
        "arXiv 2408.15313",
        "The authors' target table. From which score on an answer counts as safe, τ where it is not the authors' .01, "
        "and all settings of training are ours.",
    ),
    "adpo": Context(
        "none",
        "arXiv 2502.11555 (Equilibrate RLHF)",
        "DPO over the tokens that a token-level reward keeps. The published trainer does not run; the loss is "
        "assembled from the paper's description, and the token-level reward is a DPO model's, ours.",
    ),
    "adpo+fdc": Context(
        "none",
        "arXiv 2502.11555 (Equilibrate RLHF)",
        "DPO over the tokens that a token-level reward keeps, on prompts mixed by class. The published trainer "
        "does not run; the loss is assembled from the paper's description. The token-level reward (a DPO model's) "
        "and the rules that tell the classes apart are ours.",
    ),
    "midpo": Context(
        "none",
        "arXiv 2506.02460",
        "Two experts as adapters under a router. Ranks, losses and penalties are the authors', the scale of the "
        "margins and all settings of training ours.",
    ),
    "midpo_gates": Context("gates", "ours, on arXiv 2506.02460", "MidPO's experts, their gates set by the dials."),
    "safepatching": Context(
        "none",
        "arXiv 2405.13820",
        "Two patches on disjoint weights. No code is published; the formulas are assembled from the paper's "
        "description, its rates and coefficients are unknown: ours by a sweep.",
    ),
    "safepatching_dials": Context(
        "weights", "ours, on arXiv 2405.13820", "The same patches, their two coefficients set by the dials."
    ),
    "soups": Context(
        "weights",
        "rewarded soups, arXiv 2306.04488",
        "Interpolates the weights of an expert a dial. As published one preference vector, whose parts sum to 1: "
        "the dials cannot both be low.",
    ),
    "task_arithmetic": Context(
        "weights",
        "ours, on arXiv 2212.04089",
        "Adds or subtracts each expert's difference from the base by its own dial.",
    ),
    "logit_mixing": Context(
        "logits",
        "MOD, arXiv 2406.18853",
        "Multiplies the experts' next-token distributions, weighted as soups weighs them; which experts (DPO) and "
        "how dials set the weights is ours. Every token costs a forward of each expert.",
    ),
}
"""By a method's name, or by what stands before its first `+`."""


def context_of(name: str) -> Context:
    """What is known of a method, by its name or its head; of one that nobody wrote about, its file's first line."""
    head = name.partition("+")[0]
    known = CONTEXTS.get(name) or CONTEXTS.get(head) or _by_its_file(head)
    if name not in CONTEXTS and name != head:
        known = known._replace(words=f"As `{head}`, but for `+{name.partition('+')[2]}` (methods.md). {known.words}")
    return known._replace(dial="choice among answers") if name.endswith("+reranking") else known


def _by_its_file(head: str) -> Context:
    for kind in _KINDS:
        if head in plugins.available(kind):
            words = (plugins.load(kind, head).__doc__ or "").strip().partition("\n")[0]
            return Context("as its file says", "its own file", words)
    return Context("–", "–", "–")


_KINDS: tuple[plugins.Kind, ...] = ("objectives", "methods")
