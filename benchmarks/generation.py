"""Generation: our engine against transformers' own pipeline("text-generation"), same model, prompts and
samples.

The pipeline gets every chance: the tokens of the prompts ready, `num_return_sequences` for the samples of
a prompt, and batches of 1 (its default), 8, 32 and 128 prompts. Repetitions alternate, medians are
compared.

    python benchmarks/generation.py --json benchmarks/results/generation.json
"""

import argparse
import statistics
import warnings
from typing import Any

import torch
from transformers import pipeline

import machine
from rheostat.chat import prompt_text
from rheostat.engines.transformers import build
from rheostat.model_files import quiet
from rheostat.models import Policy, load_policy
from rheostat.plugins import GenerationRequest, Sampling
from rheostat.pocket import prompts as pocket_prompts
from rheostat.records import Message


def pipeline_tokens(
    policy: Policy, requests: list[GenerationRequest], sampling: Sampling, *, batch_size: int, seed: int
) -> int:
    """Runs the pipeline; the tokens of its responses, end tokens included."""
    torch.manual_seed(seed)
    generator = pipeline("text-generation", model=policy.model, tokenizer=policy.tokenizer)
    texts = [prompt_text(policy.tokenizer, request.messages) for request in requests]
    rows = generator(
        texts,
        batch_size=batch_size,
        num_return_sequences=requests[0].samples,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_tokens,
        add_special_tokens=False,
        return_tensors=True,
    )
    prompt_lengths = [len(ids) for ids in policy.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    pad_id, end_id = policy.tokenizer.pad_token_id, policy.end_ids[0]
    total = 0
    for length, samples in zip(prompt_lengths, rows, strict=True):
        for sample in samples:
            ids = [each for each in sample["generated_token_ids"] if each != pad_id][length:]
            total += ids.index(end_id) + 1 if end_id in ids else len(ids)
    return total


def engine_tokens(
    policy: Policy, requests: list[GenerationRequest], sampling: Sampling, *, batch_tokens: int, seed: int
) -> int:
    """Runs our engine; the tokens of its responses, end tokens included."""
    engine = build(policy, None, batch_tokens=batch_tokens)
    return sum(each.tokens for row in engine.generate(requests, sampling, seed=seed) for each in row)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of tokens a second of each contestant."""
    policy = load_policy(arguments.model, device="cpu")
    requests = [
        GenerationRequest((Message("user", prompt.text),), samples=arguments.samples)
        for prompt in pocket_prompts("train")[: arguments.prompts]
    ]
    sampling = Sampling(arguments.temperature, 1.0, arguments.max_tokens)
    engine_tokens(policy, requests[:4], sampling, batch_tokens=arguments.batch_tokens, seed=0)
    names = ["rheostat", *(f"pipeline, batch {size}" for size in arguments.batch_sizes)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[int]] = {name: [] for name in names}

    def run(name: str, seed: int) -> int:
        if name == "rheostat":
            return engine_tokens(policy, requests, sampling, batch_tokens=arguments.batch_tokens, seed=seed)
        return pipeline_tokens(policy, requests, sampling, batch_size=int(name.split()[-1]), seed=seed)

    for seed in range(arguments.repetitions):
        for name in names:
            seconds = machine.timed(lambda name=name, seed=seed: tokens[name].append(run(name, seed)))
            rates[name].append(tokens[name][-1] / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rivals = {name: value for name, value in medians.items() if name != "rheostat"}
    about = machine.describe()
    parameters = sum(each.numel() for each in policy.model.parameters())
    return {
        "model": arguments.model,
        "prompts": len(requests),
        "samples": arguments.samples,
        "temperature": arguments.temperature,
        "max_tokens": arguments.max_tokens,
        "batch_tokens": arguments.batch_tokens,
        "repetitions": arguments.repetitions,
        "tokens_per_second": medians,
        "tokens": {name: statistics.median(values) for name, values in tokens.items()},
        "ratio_to_best": medians["rheostat"] / max(rivals.values()),
        "ratio_to_default": medians["rheostat"] / medians["pipeline, batch 1"],
        "achieved_flops": 2 * parameters * medians["rheostat"],
        "machine": about,
    }


def main() -> None:
    """Measures, prints a table, and writes JSON where asked."""
    parser = machine.contest(
        __doc__, model="pocket:chat", prompts=256, batch_tokens=65536
    )
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=96)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with quiet():
        figures = measure(arguments)
    ours = figures["tokens_per_second"]["rheostat"]
    print(f"{'':24}{'tokens/s':>10}{'rheostat is':>14}")
    for name, rate in figures["tokens_per_second"].items():
        print(f"{name:24}{rate:10.0f}{ours / rate:13.2f}x")
    print(
        f"weights' products: {figures['achieved_flops'] / 1e9:.1f} GFLOP/s; "
        f"the machine's matrix product: {figures['machine']['matmul_flops'] / 1e9:.1f} GFLOP/s"
    )
    machine.write(arguments.json, figures)


if __name__ == "__main__":
    main()
