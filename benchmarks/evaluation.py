"""The evaluation grid: prompts × controls, generated and scored, against transformers' own pipelines.

Ours is what the stage does with a tuned method: one engine call over all cells, then both rewards. The rival is what a
user would write: pipeline("text-generation") over the same prompts with their controls, then one
pipeline("text-classification") a reward; in batches of 1 (their default), 8, 32 and 128. Repetitions alternate,
medians of cells a second are compared.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation.json
"""

import argparse
import statistics
import warnings
from typing import Any

from transformers import pipeline

import machine
from rheostat.chat import conversation_text, prompt_text
from rheostat.engines.transformers import build
from rheostat.model_files import quiet
from rheostat.models import load_classifier, load_policy
from rheostat.plugins import GenerationRequest, Judged, Sampling
from rheostat.pocket import prompts as pocket_prompts
from rheostat.recipe import load_config
from rheostat.records import Message
from rheostat.rewards.classifier import ClassifierReward

SAMPLING = Sampling(temperature=0.7, max_tokens=96)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of cells a second of each contestant, and the mean scores, which should agree but for sampling."""
    form = load_config("pocket").control_format
    policy = load_policy(arguments.model, device="cpu")
    rewards = [load_classifier(f"pocket:reward-{name}", device="cpu") for name in form.names]
    cells = [
        ((Message("user", prompt.text),), control)
        for prompt in pocket_prompts("optimization")[: arguments.prompts]
        for control in form.grid()
    ]

    def ours(seed: int) -> list[float]:
        engine = build(policy, form, batch_tokens=arguments.batch_tokens)
        rows = engine.generate([GenerationRequest(*cell) for cell in cells], SAMPLING, seed=seed)
        judged = [Judged(messages, row[0].text) for (messages, _), row in zip(cells, rows, strict=True)]
        return [
            statistics.mean(ClassifierReward(reward, arguments.batch_tokens).score(judged)) for reward in rewards
        ]

    def theirs(batch_size: int) -> list[float]:
        generator = pipeline("text-generation", model=policy.model, tokenizer=policy.tokenizer)
        texts = [
            prompt_text(policy.tokenizer, messages, control_text=form.render(control), neutralise=form.neutralise)
            for messages, control in cells
        ]
        rows = generator(
            texts, batch_size=batch_size, do_sample=True, temperature=SAMPLING.temperature, top_k=0, top_p=1.0,
            max_new_tokens=SAMPLING.max_tokens, add_special_tokens=False, return_full_text=False,
        )  # fmt: skip
        found = []
        for reward in rewards:
            judge = pipeline("text-classification", model=reward.model, tokenizer=reward.tokenizer)
            conversations = [
                conversation_text(reward.tokenizer, messages, row[0]["generated_text"])
                for (messages, _), row in zip(cells, rows, strict=True)
            ]
            scores = judge(
                conversations, batch_size=batch_size, function_to_apply="none", add_special_tokens=False
            )
            found.append(statistics.mean(row["score"] for row in scores))
        return found

    names = ["rheostat", *(f"pipelines, batch {size}" for size in arguments.batch_sizes)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    means: dict[str, list[float]] = {}

    def note(name: str, seed: int) -> None:
        means[name] = ours(seed) if name == "rheostat" else theirs(int(name.split()[-1]))

    note("rheostat", 0)
    for seed in range(arguments.repetitions):
        for name in names:
            rates[name].append(len(cells) / machine.timed(lambda name=name, seed=seed: note(name, seed)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rivals = [value for name, value in medians.items() if name != "rheostat"]
    return {
        "model": arguments.model,
        "cells": len(cells),
        "batch_tokens": arguments.batch_tokens,
        "repetitions": arguments.repetitions,
        "cells_per_second": medians,
        "mean_scores": means,
        "ratio_to_best": medians["rheostat"] / max(rivals),
        "ratio_to_default": medians["rheostat"] / medians["pipelines, batch 1"],
        "machine": machine.describe(),
    }


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = machine.contest(
        __doc__, model="pocket:tuned", prompts=16, batch_tokens=65536
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with quiet():
        figures = measure(arguments)
    ours = figures["cells_per_second"]["rheostat"]
    print(f"{'':24}{'cells/s':>10}{'rheostat is':>14}{'mean scores':>18}")
    for name, rate in figures["cells_per_second"].items():
        scores = "  ".join(f"{score:+.2f}" for score in figures["mean_scores"][name])
        print(f"{name:24}{rate:10.0f}{ours / rate:13.2f}x{scores:>18}")
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
