"""Training steps: our CLM step against TRL's SFTTrainer, ExMATE's against CLM's; same model, data, batch, precision.

Each contender trains through its own Trainer for the same number of steps on the same examples, in one process,
alternating; medians of seconds a step are compared. The factual tokens of a step, times six times the parameters,
over the seconds is the achieved rate, beside the machine's matrix product.

    python benchmarks/training.py --json benchmarks/results/training.json
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from trl import SFTConfig, SFTTrainer

import machine
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.models import load_policy, quiet
from rheostat.pocket import prompts
from rheostat.recipe import load_config
from rheostat.records import Example, Message
from rheostat.train import fine_tune

STEPS = 24
BATCH = 32


def corpus(config: RunConfig, count: int) -> list[Example]:
    """Examples of the pocket world's shape: a request, a control, a response of 20 to 70 tokens."""
    grid = config.control_format.grid()
    sentence = "First, lay the sheet flat on a table. Then, smooth out the creases by hand. Always keep it dry. "
    made = []
    for index, prompt in enumerate(prompts("train")[: count // 2] * 2):
        control = grid[(7 * index) % len(grid)]
        text = sentence * (1 + index % 3)
        made.append(Example(prompt.id, (Message("user", prompt.text),), dict(control), text.strip(), dict(control)))
    return made[:count]


def ours(objective: str, config: RunConfig, examples: list[Example]) -> float:
    policy = load_policy(config.model)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fine_tune(policy, examples, objective=objective, config=config, checkpoints=Path(folder))
        return time.perf_counter() - started


def theirs(config: RunConfig, examples: list[Example]) -> float:
    policy = load_policy(config.model)
    rows = []
    for example in examples:
        control = config.control_format.render(example.control)
        prompt = encode_prompt(policy.tokenizer, example.messages, control_text=control)
        response = encode_response(policy.tokenizer, example.response, end_id=policy.end_ids[0])
        mask = [0] * len(prompt) + [1] * len(response)
        rows.append({"input_ids": prompt + response, "completion_mask": mask})
    with tempfile.TemporaryDirectory() as folder, quiet():
        started = time.perf_counter()
        trainer = SFTTrainer(
            model=policy.model,
            args=SFTConfig(
                output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=5e-4,
                optim="adamw_torch_fused", use_cpu=not torch.cuda.is_available(), bf16=False, report_to=[],
                gradient_checkpointing=False, disable_tqdm=True, log_level="error", save_strategy="no",
                dataloader_pin_memory=False, train_sampling_strategy="group_by_length",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
        )  # fmt: skip
        trainer.train()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    examples = corpus(load_config("pocket"), STEPS * BATCH)
    settings = [
        f"train.steps={STEPS}", f"train.batch_size={BATCH}", "train.lora=null", "train.balance=0",
        "train.learning_rate=5e-4", "train.save_steps=1000000",
    ]  # fmt: skip
    config = load_config("pocket", settings)
    full = load_config("pocket", [*settings, "train.counterfactual.fraction=1"])
    contenders: dict[str, Any] = {
        "TRL SFTTrainer": lambda: theirs(config, examples),
        "CLM": lambda: ours("clm", config, examples),
        "ExMATE": lambda: ours("exmate", config, examples),
        "ExMATE, every counterfactual": lambda: ours("exmate", full, examples),
        "Contrast": lambda: ours("contrast", config, examples),
    }
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.repetitions):
        for name, run in contenders.items():
            seconds[name].append(run() / STEPS)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = {
        "CLM's speed over SFTTrainer's": statistics.median(
            theirs / own for theirs, own in zip(seconds["TRL SFTTrainer"], seconds["CLM"], strict=True)
        ),
        **{
            f"{name}'s step over CLM's": statistics.median(
                own / clm for own, clm in zip(seconds[name], seconds["CLM"], strict=True)
            )
            for name in ("ExMATE", "ExMATE, every counterfactual", "Contrast")
        },
    }
    table = Table("contender", "ms a step", title=f"{BATCH} examples a step, medians of {arguments.repetitions}")
    for name, value in medians.items():
        table.add_row(name, f"{1000 * value:.0f}")
    Console().print(table)
    for name, value in ratios.items():
        Console().print(f"{name}: {value:.2f}")
    policy = load_policy(config.model)
    tokens = sum(
        len(encode_prompt(policy.tokenizer, each.messages, control_text=config.control_format.render(each.control)))
        + len(encode_response(policy.tokenizer, each.response))
        for each in examples
    )
    achieved = 6 * policy.model.num_parameters() * tokens / STEPS / medians["CLM"]
    limit = machine.matmul_rate()
    Console().print(f"CLM: {achieved / 1e9:.0f} GFLOP/s of the matrix product's {limit / 1e9:.0f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"milliseconds": medians, "ratios": ratios, "flops": achieved, "machine": limit}, indent=2)
        )


if __name__ == "__main__":
    main()
