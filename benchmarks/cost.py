"""What a large run costs, in tokens, floating-point operations and GPU-hours: arithmetic, nothing is run.

    python benchmarks/cost.py --prompts 1000000 --samples 8

Operations a token and parameter: 2 forward, 6 forward and backward (Kaplan et al., arXiv 2001.08361; attention over
short contexts left out). GPU-hours: operations over the card's published peak times an *assumed* share of it.
"""

import argparse
from dataclasses import dataclass

H100_PEAK = 989e12
"""FLOP/s: NVIDIA's published dense bfloat16 rate of an H100 SXM."""


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's tokens and operations, and the share of the peak that is assumed for it."""

    stage: str
    tokens: float
    operations: float
    share: float

    @property
    def gpu_hours(self) -> float:
        return self.operations / (H100_PEAK * self.share) / 3600


def reckon(parameters: float, arguments: argparse.Namespace) -> list[Work]:
    prompt, response = arguments.prompt_tokens, arguments.response_tokens
    responses = arguments.prompts * arguments.samples
    generated = responses * response
    prefilled = arguments.prompts * prompt
    scored = responses * (prompt + response) * arguments.rewards
    trained = arguments.prompts * arguments.kept * (prompt + response)
    return [
        Work("generate", generated, 2 * parameters * (generated + prefilled), arguments.generation_share),
        Work("score", scored, 2 * arguments.reward_parameters * scored, arguments.scoring_share),
        Work("train, CLM", trained, 6 * parameters * trained, arguments.training_share),
        Work(
            "train, ExMATE", 1.25 * trained, 6 * parameters * 1.25 * trained, arguments.training_share
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, nargs="+", default=[7e9, 70e9])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--response-tokens", type=int, default=300)
    parser.add_argument("--rewards", type=int, default=2)
    parser.add_argument("--reward-parameters", type=float, default=7e9)
    parser.add_argument("--kept", type=int, default=4, help="examples that distilling keeps of a prompt")
    parser.add_argument("--generation-share", type=float, default=0.1, help="of the peak: an assumption")
    parser.add_argument("--scoring-share", type=float, default=0.4, help="of the peak: an assumption")
    parser.add_argument("--training-share", type=float, default=0.4, help="of the peak: an assumption")
    arguments = parser.parse_args()
    print("| parameters | stage | tokens | FLOP | share of peak (assumed) | H100-hours |")
    print("|---|---|---|---|---|---|")
    for parameters in arguments.parameters:
        for work in reckon(parameters, arguments):
            print(
                f"| {parameters / 1e9:g} B | {work.stage} | {work.tokens:.2g} | {work.operations:.2g} | "
                f"{work.share:g} | {work.gpu_hours:,.0f} |"
            )


if __name__ == "__main__":
    main()
