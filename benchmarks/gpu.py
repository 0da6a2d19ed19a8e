"""Everything at once on an accelerator: a random-weight Llama through generation, scoring, CLM and ExMATE steps.

It builds the model (no download), checks that what is fast is also right (log-probabilities of our path against a
plain forward pass; greedy generation against transformers' own), times each path, and holds the achieved TFLOP/s
against the device's measured matrix products in the same type. At its smallest size it runs on a CPU in a minute:

    python benchmarks/gpu.py --size tiny                        # any machine
    python benchmarks/gpu.py --size 1b --json benchmarks/results/gpu.json   # 0.1b, 0.3b, 1b: wants a GPU
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import machine
from rheostat import plugins
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import Dtype, RewardConfig
from rheostat.fine_tuning import fine_tune
from rheostat.logprobs import TokenRow, sum_logprobs
from rheostat.model_files import quiet, resolve
from rheostat.models import Policy, load_policy
from rheostat.plugins import GenerationRequest, Judged, Sampling
from rheostat.pocket import prompts
from rheostat.recipe import load_config, reward_options
from rheostat.records import Example, Message


@dataclass(frozen=True)
class Size:
    """A model's widths, and how much each path is given to do."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    prompts: int
    samples: int
    new_tokens: int
    batch: int
    steps: int
    response: int


SIZES = {
    "tiny": Size(64, 2, 2, 4096, 4, 4, 24, 4, 8, 40),
    "0.1b": Size(768, 12, 12, 32_000, 64, 16, 128, 16, 16, 900),
    "0.3b": Size(1024, 20, 16, 32_000, 64, 16, 128, 16, 16, 900),
    "1b": Size(2048, 18, 16, 32_000, 64, 16, 128, 8, 16, 900),
}


def build(folder: Path, size: Size) -> None:
    """A policy and a reward model with random weights, in bfloat16 files, with the pocket world's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("pocket:chat"))
    config = LlamaConfig(
        hidden_size=size.hidden, intermediate_size=4 * size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, vocab_size=size.vocabulary,
        max_position_embeddings=4096, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    for name, kind in (("policy", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        with quiet():
            kind(config).to(torch.bfloat16).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)


def messages(index: int) -> tuple[Message, ...]:
    known = prompts("train")
    return (Message("user", f"{known[index % len(known)].text} ({index})"),)


def filler(policy: Policy, tokens: int, index: int) -> str:
    """Text of about so many tokens."""
    words = " ".join(prompt.text for prompt in prompts("train")[index : index + 1 + tokens // 8])
    return str(policy.tokenizer.decode(policy.tokenizer(words, add_special_tokens=False)["input_ids"][:tokens]))


def check(policy: Policy) -> dict[str, float]:
    """The largest difference in a response's log-probability a token, and the share of equal greedy answers."""
    tokenizer = policy.tokenizer
    rows = [
        TokenRow(encode_prompt(tokenizer, messages(index)), encode_response(tokenizer, filler(policy, 20, index)))
        for index in range(4)
    ]
    own = sum_logprobs(policy.model, rows, pad_id=policy.tokenizer.pad_token_id, batch_tokens=4096)
    differences = []
    for row, value in zip(rows, own, strict=True):
        ids = torch.tensor([[*row.prompt, *row.response]], device=policy.device)
        with torch.inference_mode():
            whole = policy.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        plain = whole.gather(-1, ids[0, 1:, None])[-len(row.response) :].sum().item()
        differences.append(abs(plain - value) / len(row.response))
    engine = plugins.load("engines", "transformers").build(policy, None, batch_tokens=4096)
    answers = engine.generate(
        [GenerationRequest(messages(index)) for index in range(2)], Sampling(temperature=0, max_tokens=8), seed=0
    )
    equal = []
    for index, [answer] in enumerate(answers):
        prompt = encode_prompt(policy.tokenizer, messages(index))
        ids = torch.tensor([prompt], device=policy.device)
        plain = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        text = policy.tokenizer.decode(plain[0, len(prompt) :], skip_special_tokens=True)
        equal.append(float(text == answer.text))
    return {"logprob_difference_a_token": max(differences), "greedy_equal": sum(equal) / len(equal)}


def generation(folder: Path, size: Size, dtype: Dtype) -> tuple[float, float]:
    """Tokens and seconds."""
    policy = load_policy(str(folder / "policy"), dtype=dtype)
    engine = plugins.load("engines", "transformers").build(policy, None, batch_tokens=2**18)
    requests = [GenerationRequest(messages(index), samples=size.samples) for index in range(size.prompts)]
    sampling = Sampling(max_tokens=size.new_tokens)
    engine.generate(requests[:2], sampling, seed=0)
    started = time.perf_counter()
    answers = engine.generate(requests, sampling, seed=1)
    return float(sum(each.tokens for pool in answers for each in pool)), time.perf_counter() - started


def scoring(folder: Path, size: Size, dtype: Dtype, policy: Policy) -> tuple[float, float]:
    spec = RewardConfig(model=str(folder / "reward"))
    reward = plugins.load("rewards", "classifier").build(
        spec, reward_options(spec), attribute="safety", dtype=dtype, device="auto", batch_tokens=2**15
    )
    judged = [
        Judged(messages(index // 8), filler(policy, size.response // 4 + index % 8, index % 50))
        for index in range(8 * size.prompts)
    ]
    reward.score(judged[:16])
    started = time.perf_counter()
    reward.score(judged)
    seconds = time.perf_counter() - started
    tokenizer = policy.tokenizer
    tokens = sum(
        len(encode_prompt(tokenizer, each.messages)) + len(encode_response(tokenizer, each.response)) for each in judged
    )
    return float(tokens), seconds


def training(folder: Path, size: Size, dtype: Dtype, objective: str) -> tuple[float, float, float]:
    """Tokens, seconds and peak bytes of a step."""
    config = load_config("pocket", [
        f"model={folder / 'policy'}", f"train.steps={size.steps}", f"train.batch_size={size.batch}",
        "train.learning_rate=1e-5", "train.save_steps=1000000", "train.balance=0", f"dtype={dtype}",
        "train.counterfactual.fraction=1",
    ])  # fmt: skip
    policy = load_policy(str(folder / "policy"), dtype=dtype)
    grid = config.control_format.grid()
    examples = []
    for index in range(size.steps * size.batch):
        control = dict(grid[(7 * index) % len(grid)])
        text = filler(policy, size.response, index % 40)
        examples.append(Example(str(index), messages(index), control, text, control))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = machine.Clock()
    with tempfile.TemporaryDirectory() as checkpoints:
        found = fine_tune(
            policy, examples, objective=objective, config=config, checkpoints=Path(checkpoints), progress=clock
        )
    rows = 2.0 if objective == "exmate" else 1.0
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return rows * found["tokens"] / size.steps, statistics.mean(clock.steps), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    size = SIZES[given.size]
    on_gpu = torch.cuda.is_available()
    dtype: Dtype = given.dtype or ("bfloat16" if on_gpu else "float32")
    limit = machine.matmul_rate("cuda" if on_gpu else "cpu", dtype)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("building"):
            build(folder, size)
        policy = load_policy(str(folder / "policy"), dtype=dtype)
        parameters = policy.model.num_parameters()
        with console.status("checking"):
            checked = check(policy)
        paths: dict[str, tuple[float, float, float]] = {}
        with console.status("generation"):
            paths["generation"] = (*generation(folder, size, dtype), 2.0)
        with console.status("scoring"):
            paths["scoring"] = (*scoring(folder, size, dtype, policy), 2.0)
        del policy
        peaks = {}
        for objective in ("clm", "exmate"):
            with console.status(f"{objective} steps"):
                tokens, seconds, peaks[objective] = training(folder, size, dtype, objective)
                paths[f"{objective} step"] = (tokens, seconds, 6.0)
    table = Table("path", "tokens/s", "TFLOP/s", "of the matrix product", title=f"{parameters / 1e6:.0f} M, {dtype}")
    figures: dict[str, Any] = {
        "size": given.size, "parameters": parameters, "dtype": dtype, "checks": checked, "peak_bytes": peaks,
        "matmul_flops": limit, "machine": machine.describe(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "paths": {},
    }  # fmt: skip
    for path, (tokens, seconds, operations) in paths.items():
        achieved = operations * parameters * tokens / seconds
        table.add_row(path, f"{tokens / seconds:,.0f}", f"{achieved / 1e12:.3g}", f"{achieved / limit:.0%}")
        figures["paths"][path] = {"tokens_per_second": tokens / seconds, "flops": achieved, "share": achieved / limit}
    console.print(table)
    console.print(json.dumps(checked))
    machine.write(given.json, figures)


if __name__ == "__main__":
    main()
