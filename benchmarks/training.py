"""Training steps: our CLM step against TRL's SFTTrainer, ExMATE's against DPOTrainer's.

The model, the data, the batch and the precision are the same. Each contender trains in a process of its own, through
its own Trainer, and they take turns. A step's time is the median of the times between steps after the first few, its
tokens are those of its real rows (padding does not count), its memory is the peak of the process over what it held
before the Trainer was made. DPO is the nearest rival to ExMATE's two passes: chosen and rejected responses against a
reference whose log-probabilities are computed beforehand, so that its step, like ExMATE's with every counterfactual,
is one pass over two rows an example.

    python benchmarks/training.py --json benchmarks/results/training.json
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

import machine
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.fine_tuning import fine_tune
from rheostat.model_files import quiet
from rheostat.models import load_policy
from rheostat.pocket import prompts
from rheostat.recipe import load_config
from rheostat.records import Example, Message

SENTENCE = "First, lay the sheet flat on a table. Then, smooth out the creases by hand. Always keep it dry. "


def recipe(steps: int, batch: int, more: Sequence[str]) -> RunConfig:
    return load_config("pocket", [
        f"train.steps={steps}", f"train.batch_size={batch}", "train.balance=0", "train.learning_rate=5e-4",
        "train.save_steps=1000000", *more,
    ])  # fmt: skip


def corpus(config: RunConfig, count: int) -> list[Example]:
    """Examples of the pocket world's shape: a request, a control, a response of 20 to 70 tokens."""
    grid = config.control_format.grid()
    known = prompts("train")
    made = []
    for index in range(count):
        prompt = known[index % len(known)]
        control = dict(grid[(7 * index) % len(grid)])
        text = (SENTENCE * (1 + index % 3)).strip()
        made.append(Example(prompt.id, (Message("user", prompt.text),), control, text, control))
    return made


class _Ends(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: machine.Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.tick()


def ours(objective: str, config: RunConfig, examples: list[Example], clock: machine.Clock) -> Any:
    policy = load_policy(config.model, dtype=config.dtype)
    yield policy
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(policy, examples, objective=objective, config=config, checkpoints=Path(folder), progress=clock)


def theirs(kind: str, config: RunConfig, examples: list[Example], clock: machine.Clock) -> Any:
    from datasets import Dataset

    policy = load_policy(config.model, dtype=config.dtype)
    yield policy
    shared: dict[str, Any] = {
        "max_steps": config.train.steps, "per_device_train_batch_size": config.train.batch_size,
        "learning_rate": 5e-4, "optim": "adamw_torch_fused", "use_cpu": not torch.cuda.is_available(),
        "bf16": config.dtype == "bfloat16", "report_to": [], "gradient_checkpointing": False, "disable_tqdm": True,
        "log_level": "error", "save_strategy": "no", "dataloader_pin_memory": False,
        "train_sampling_strategy": "group_by_length",
    }  # fmt: skip
    rows = [encoded(policy, config, each) for each in examples]
    with tempfile.TemporaryDirectory() as folder, quiet():
        if kind == "sft":
            from trl import SFTConfig, SFTTrainer

            data = [
                {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}
                for prompt, response in rows
            ]
            trainer = SFTTrainer(
                model=policy.model, args=SFTConfig(output_dir=folder, **shared),
                train_dataset=Dataset.from_list(data), processing_class=policy.tokenizer, callbacks=[_Ends(clock)],
            )  # fmt: skip
        else:
            from trl import DPOConfig, DPOTrainer

            shared.pop("train_sampling_strategy")  # pairs have no one length
            pairs = []
            for index, (prompt, chosen) in enumerate(rows):
                _, rejected = rows[(index + 3) % len(rows)]  # another response of the same length
                text = policy.tokenizer.decode
                pairs.append({"prompt": text(prompt), "chosen": text(chosen[:-1]), "rejected": text(rejected[:-1])})
            trainer = DPOTrainer(
                model=policy.model,
                args=DPOConfig(output_dir=folder, precompute_ref_log_probs=True, max_length=None, **shared),
                train_dataset=Dataset.from_list(pairs), processing_class=policy.tokenizer, callbacks=[_Ends(clock)],
            )  # fmt: skip
        trainer.train()


def encoded(policy: Any, config: RunConfig, example: Example) -> tuple[list[int], list[int]]:
    control = config.control_format.render(example.control)
    prompt = encode_prompt(policy.tokenizer, example.messages, control_text=control)
    return prompt, encode_response(policy.tokenizer, example.response, end_id=policy.end_ids[0])


CONTENDERS = {
    "TRL SFTTrainer": ("sft", 1.0),
    "CLM": ("clm", 1.0),
    "TRL DPOTrainer": ("dpo", 2.0),
    "ExMATE, every counterfactual": ("exmate-every", 2.0),
    "ExMATE": ("exmate", 1.25),
    "Contrast": ("contrast", 1.25),
}
"""Each with what it is called here, and rows a step over examples a step."""


def contend(name: str, steps: int, batch: int, more: Sequence[str]) -> dict[str, float]:
    """One contender in this process: seconds and tokens a step, peak bytes above those before its Trainer."""
    kind, rows = CONTENDERS[name]
    every = ["train.counterfactual.fraction=1"] if kind.endswith("every") else []
    config = recipe(steps, batch, [*more, *every])
    examples = corpus(config, steps * batch)
    clock = machine.Clock()
    if kind in ("sft", "dpo"):
        work = theirs(kind, config, examples, clock)
    else:
        work = ours(kind.removesuffix("-every"), config, examples, clock)
    policy = next(work)
    tokens = sum(sum(map(len, encoded(policy, config, each))) for each in examples) / steps * rows
    parameters = policy.model.num_parameters()
    before = _held()
    next(work, None)
    return {
        "seconds": statistics.median(clock.steps),
        "tokens": tokens,
        "bytes": _peak() - before,
        "parameters": parameters,
    }


def _held() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    import os

    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe")
    parser.add_argument("--contender", choices=list(CONTENDERS), help="only this one, in this process")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(contend(given.contender, given.steps, given.batch, given.set)))
        return
    console = Console()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    command = [sys.executable, __file__, "--steps", str(given.steps), "--batch", str(given.batch)]
    command += [part for each in given.set for part in ("--set", each)]
    for _ in range(given.repetitions):
        for name in CONTENDERS:
            with console.status(name):
                printed = subprocess.run(
                    [*command, "--contender", name], check=True, stdout=subprocess.PIPE, text=True
                ).stdout
            found[name].append(json.loads(printed.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]} for name, runs in found.items()
    }
    table = Table("contender", "ms a step", "tokens/s", "peak MiB", title=f"{given.batch} examples a step")
    for name, each in medians.items():
        rate = each["tokens"] / each["seconds"]
        table.add_row(name, f"{1000 * each['seconds']:.0f}", f"{rate:,.0f}", f"{each['bytes'] / 2**20:.0f}")
    console.print(table)
    ratios = {}
    for own, other in (("CLM", "TRL SFTTrainer"), ("ExMATE, every counterfactual", "TRL DPOTrainer")):
        pairs = list(zip(found[own], found[other], strict=True))
        ratios[f"{own}: tokens a second over {other}'s"] = statistics.median(
            (mine["tokens"] / mine["seconds"]) / (its["tokens"] / its["seconds"]) for mine, its in pairs
        )
        ratios[f"{own}: peak memory over {other}'s"] = statistics.median(
            mine["bytes"] / its["bytes"] for mine, its in pairs
        )
    for name in ("ExMATE", "ExMATE, every counterfactual", "Contrast"):
        pairs = list(zip(found[name], found["CLM"], strict=True))
        ratios[f"{name}: a step over CLM's"] = statistics.median(
            mine["seconds"] / clm["seconds"] for mine, clm in pairs
        )
    for name, value in ratios.items():
        console.print(f"{name}: {value:.2f}")
    clm = medians["CLM"]
    achieved = 6 * clm["parameters"] * clm["tokens"] / clm["seconds"]
    limit = machine.matmul_rate()
    console.print(f"CLM: {achieved / 1e9:.0f} GFLOP/s of the matrix product's {limit / 1e9:.0f}")
    figures = {"medians": medians, "ratios": ratios, "flops": achieved, "machine": machine.describe()}
    machine.write(given.json, figures)


if __name__ == "__main__":
    main()
