"""Scoring: our classifier reward against transformers' own pipeline("text-classification"), same texts.

The texts are sampled responses in the reward model's chat template, as a run has them. The pipeline gets them
ready, in batches of 1 (its default), 8, 32 and 128. Repetitions alternate, medians are compared.

    python benchmarks/scoring.py --json benchmarks/results/scoring.json
"""

import argparse
import statistics
import warnings
from typing import Any

import torch
from transformers import pipeline

import machine
from rheostat.chat import conversation_text
from rheostat.engines.transformers import build
from rheostat.model_files import quiet
from rheostat.models import load_classifier, load_policy
from rheostat.plugins import GenerationRequest, Judged, Sampling
from rheostat.pocket import prompts as pocket_prompts
from rheostat.records import Message
from rheostat.rewards.classifier import ClassifierReward


def sampled(arguments: argparse.Namespace) -> list[Judged]:
    """Responses of the policy to prompts, in the order in which they are generated."""
    policy = load_policy(arguments.policy, device="cpu")
    requests = [
        GenerationRequest((Message("user", prompt.text),), samples=arguments.samples)
        for prompt in pocket_prompts("train")[: arguments.prompts]
    ]
    rows = build(policy, None, batch_tokens=65536).generate(requests, Sampling(), seed=0)
    return [
        Judged(request.messages, completion.text)
        for request, row in zip(requests, rows, strict=True)
        for completion in row
    ]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of texts a second of each contestant, and how far their scores are apart."""
    items = sampled(arguments)
    classifier = load_classifier(arguments.model, device="cpu")
    texts = [conversation_text(classifier.tokenizer, item.messages, item.response) for item in items]
    rival = pipeline("text-classification", model=classifier.model, tokenizer=classifier.tokenizer)
    names = ["rheostat", *(f"pipeline, batch {size}" for size in arguments.batch_sizes)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    scores: dict[str, list[float]] = {}

    def run(name: str) -> list[float]:
        if name == "rheostat":
            return ClassifierReward(classifier, arguments.batch_tokens).score(items)
        size = int(name.split()[-1])
        rows = rival(texts, batch_size=size, function_to_apply="none", add_special_tokens=False)
        return [row["score"] for row in rows]

    def note(name: str) -> None:
        scores[name] = run(name)

    note("rheostat")
    for _ in range(arguments.repetitions):
        for name in names:
            rates[name].append(len(items) / machine.timed(lambda name=name: note(name)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rivals = [value for name, value in medians.items() if name != "rheostat"]
    tokens = sum(len(ids) for ids in classifier.tokenizer(texts, add_special_tokens=False)["input_ids"])
    embedded = classifier.model.get_input_embeddings().weight.numel()
    parameters = sum(each.numel() for each in classifier.model.parameters()) - embedded
    apart = torch.tensor(scores["rheostat"]) - torch.tensor(scores["pipeline, batch 1"])
    return {
        "model": arguments.model,
        "texts": len(items),
        "distinct_texts": len(set(texts)),
        "tokens": tokens,
        "batch_tokens": arguments.batch_tokens,
        "repetitions": arguments.repetitions,
        "texts_per_second": medians,
        "largest_difference": float(apart.abs().max()),
        "ratio_to_best": medians["rheostat"] / max(rivals),
        "ratio_to_default": medians["rheostat"] / medians["pipeline, batch 1"],
        "achieved_flops": 2 * parameters * tokens / len(items) * medians["rheostat"],
        "machine": machine.describe(),
    }


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = machine.contest(
        __doc__, model="pocket:reward-safety", prompts=128, batch_tokens=16384
    )
    parser.add_argument("--policy", default="pocket:chat", help="whose responses are scored")
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with quiet():
        figures = measure(arguments)
    ours = figures["texts_per_second"]["rheostat"]
    print(f"{'':24}{'texts/s':>10}{'rheostat is':>14}")
    for name, rate in figures["texts_per_second"].items():
        print(f"{name:24}{rate:10.0f}{ours / rate:13.2f}x")
    print(
        f"{figures['texts']} texts, {figures['distinct_texts']} distinct; "
        f"scores at most {figures['largest_difference']:.1e} apart\n"
        f"weights' products: {figures['achieved_flops'] / 1e9:.1f} GFLOP/s; "
        f"the machine's matrix product: {figures['machine']['matmul_flops'] / 1e9:.1f} GFLOP/s"
    )
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
