"""Time and memory of the search for near-duplicates, and what it finds in prompt files of your own.

    python benchmarks/near_duplicates.py --prompts 50000
    python benchmarks/near_duplicates.py --files FILE... --thresholds 0.75,0.8,0.85,0.9

The prompts of the first are made of a vocabulary of 20,000 words with Zipf's frequencies, about fourteen words each; a
tenth of them are copies of another with one letter changed. The second prints how many prompts of the files each
threshold leaves out, and the pairs that are most and least alike among them.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rheostat.near_duplicates import near_duplicates
from rheostat.prompts import read_prompts
from rheostat.records import Message

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def synthetic(count: int, seed: int = 0) -> list[tuple[Message, ...]]:
    """`count` conversations of one turn."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(LETTERS, random.integers(2, 11))) for _ in range(20_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    texts: list[str] = []
    for _ in range(count):
        if texts and random.random() < 0.1:
            text = list(texts[random.integers(len(texts))])
            text[random.integers(len(text))] = str(random.choice(LETTERS))
            texts.append("".join(text))
        else:
            chosen = random.choice(len(words), size=random.integers(8, 21), p=weights / weights.sum())
            texts.append(" ".join(words[place] for place in chosen))
    return [(Message("user", text),) for text in texts]


def measure(count: int, threshold: float) -> None:
    conversations = synthetic(count)
    started = time.perf_counter()
    found = near_duplicates(conversations, threshold)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} prompts at {threshold:g}: {seconds:.1f} s, {count / seconds:.0f} prompts/s, "
        f"{len(found)} left out, peak memory {peak:.0f} MiB"
    )


def inspect(files: Sequence[Path], thresholds: Sequence[float]) -> None:
    prompts = read_prompts([str(path) for path in files], split="train").prompts
    for threshold in thresholds:
        found = sorted(
            near_duplicates([prompt.messages for prompt in prompts], threshold), key=lambda each: each.similarity
        )
        print(f"{threshold:g}: {len(found)} of {len(prompts)} prompts left out")
        for each in dict.fromkeys([*found[:4], *found[-4:]]):
            first, second = (prompts[place].text[-120:] for place in (each.of, each.index))
            print(f"   {each.similarity:.3f} {first!r} | {second!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--files", type=Path, nargs="+", default=[])
    parser.add_argument("--thresholds", default="0.85")
    options = parser.parse_args()
    thresholds = [float(each) for each in options.thresholds.split(",")]
    if options.files:
        inspect(options.files, thresholds)
    else:
        for threshold in thresholds:
            measure(options.prompts, threshold)


if __name__ == "__main__":
    main()
