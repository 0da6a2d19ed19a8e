"""The study of what is tuned on preferences: many trainings on one run's pool, each measured as a point.

    python benchmarks/points.py RUN --variants variants.yaml --seeds 0 --json results.jsonl
    python benchmarks/points.py RUN --json results.jsonl --table

RUN has scored its pool and is written to (its `distil/` and `train/` stages): take a copy. A variant is a method's name
(`method: dpo+safety`) and overrides of the recipe; `method: base` measures the untuned model. What is measured is the
mean achieved score over held-out prompts, `--samples` answers to each, without a control: by the run's own rewards on
the optimization prompts, by truth on the generalization prompts (`T_`), with the standard error over prompts, and
fluency (perplexity under the base over that of the base's own answers).
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import yaml

from rheostat import plugins
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.distil import distil
from rheostat.logprobs import TokenRow, sum_logprobs
from rheostat.method_name import MethodName
from rheostat.models import load_policy
from rheostat.plugins import GenerationRequest, Judged, Sampling
from rheostat.recipe import load_config, validate
from rheostat.records import EvaluationRow, Example, Pair, Prompt
from rheostat.rundir import RunDirectory
from rheostat.score import load_scorers
from rheostat.train import fine_tune, train
from rheostat.trainings import Training, requirements, training

COLUMNS = ("h", "h_error", "s", "s_error", "fluency", "T_h", "T_s", "T_fluency", "truncated", "train_seconds")


def override(config: RunConfig, changes: dict, seed: int) -> RunConfig:
    values = config.model_dump(mode="json")
    values["seed"] = seed

    def merge(into: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(values, {key: value for key, value in changes.items() if key != "method"})
    return validate(values)


def measure(policy, base, prompts, scorer, config: RunConfig, samples: int, seed: int, base_nll: float) -> dict:
    engine = plugins.load("engines", "transformers").build(
        policy, config.control_format, batch_tokens=config.batch_tokens
    )
    options = config.evaluate
    answers = engine.generate(
        [GenerationRequest(prompt.messages, samples=samples) for prompt in prompts],
        Sampling(options.temperature, options.top_p, options.max_tokens),
        seed=seed,
    )
    flat = [(prompt, each) for prompt, found in zip(prompts, answers, strict=True) for each in found]
    scores = scorer.score([Judged(prompt.messages, each.text) for prompt, each in flat])
    rows = [
        TokenRow(encode_prompt(base.tokenizer, prompt.messages), encode_response(base.tokenizer, each.text))
        for prompt, each in flat
    ]
    sums = sum_logprobs(
        base.model, rows, pad_id=base.tokenizer.pad_token_id, batch_tokens=config.batch_tokens
    )
    result = {}
    for name in config.rewards:
        by_prompt = [
            statistics.mean(each[name] for each in scores[start : start + samples])
            for start in range(0, len(scores), samples)
        ]
        result[name[:1]] = statistics.mean(by_prompt)
        result[f"{name[:1]}_error"] = statistics.stdev(by_prompt) / math.sqrt(len(by_prompt))
    result["fluency"] = math.exp(-sum(sums) / sum(each.tokens for _, each in flat) - base_nll)
    result["truncated"] = sum(each.finish == "length" for _, each in flat) / len(flat)
    return result


def tuned(run: RunDirectory, chosen: RunConfig, wanted: Training):
    """The model of a training, what it logged last, and its seconds; what it needs is trained as stages."""
    for each in requirements(wanted, chosen):
        distil(run, chosen, each.data)
        train(run, chosen, each)
    rows = distil(run, chosen, wanted.data).read(Pair if wanted.data.variant == "pairs" else Example)
    needs = plugins.needs(wanted.objective)
    rewarder = None
    if needs.token_rewards_of is not None:
        stage = run.finished(training(needs.token_rewards_of, chosen).stage)
        rewarder = load_policy(str(stage.path / "model"))
    policy = load_policy(chosen.model)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fine_tune(
            policy, rows, objective=wanted.objective, config=chosen, checkpoints=Path(folder), rewarder=rewarder
        )
    last = found["log"][-1] if found["log"] else {}
    return policy, {"last": last, "rows": len(rows), "train_seconds": round(time.perf_counter() - started, 1)}


def table(rows: list[dict]) -> str:
    """Means over seeds, a variant a line."""
    lines = ["| variant | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == name]
        cells = [
            f"{statistics.mean(values):.{0 if column == 'train_seconds' else 3}f}" if values else ""
            for column in COLUMNS
            for values in [[row[column] for row in found if column in row]]
        ]
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def own_nll(run: RunDirectory, evaluation: str) -> float:
    """Nats a token of the base's own answers under the base."""
    rows = run.finished(f"evaluate/{evaluation}/base").read(EvaluationRow)
    return -sum(row.logprob for row in rows) / sum(row.tokens for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--variants", type=Path)
    parser.add_argument("--only", nargs="+", help="of the variants, these")
    parser.add_argument("--table", action="store_true", help="only print the means of the results that are there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--generalization", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.json.read_text().splitlines()]))
        return
    variants = yaml.safe_load(arguments.variants.read_text())
    done = {
        (row["variant"], row["seed"])
        for row in map(json.loads, arguments.json.read_text().splitlines() if arguments.json.exists() else ())
    }
    with RunDirectory.open(arguments.run) as run:
        config = load_config(run.config_path)
        prompts = {
            "": run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.prompts],
            "T_": run.finished("prompts").read(Prompt, prefix="generalization")[: arguments.generalization],
        }
        scorers = load_scorers(run, config, ["reward", "truth"])
        base = load_policy(config.model)
        nll = {"": own_nll(run, "optimization"), "T_": own_nll(run, "generalization")}
        for seed in arguments.seeds:
            for name in arguments.only or variants:
                if (name, seed) in done:
                    continue
                chosen = override(config, variants[name], seed)
                policy, row = base, {"train_seconds": 0.0}
                if variants[name]["method"] != "base":
                    wanted = Training.of(MethodName.parse(variants[name]["method"]), chosen)
                    policy, row = tuned(run, chosen, wanted)
                for mark, party in (("", "reward"), ("T_", "truth")):
                    found = measure(
                        policy, base, prompts[mark], scorers[party], chosen, arguments.samples, seed, nll[mark]
                    )
                    row |= {f"{mark}{key}": value for key, value in found.items()}
                with arguments.json.open("a") as file:
                    file.write(json.dumps({"variant": name, "seed": seed, **row}) + "\n")
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                print(name, seed, shown, {k: round(v, 3) for k, v in row.get("last", {}).items()}, flush=True)


if __name__ == "__main__":
    main()
