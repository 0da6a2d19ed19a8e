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
import time
from pathlib import Path

import yaml

import study
from rheostat.config import RunConfig
from rheostat.distil import distil
from rheostat.generation import tuned_engine
from rheostat.method_name import MethodName
from rheostat.models import load_policy
from rheostat.plugins import ControlledCompletion, GenerationRequest
from rheostat.recipe import load_config
from rheostat.records import Prompt
from rheostat.rundir import RunDirectory
from rheostat.train import train
from rheostat.trainings import behind
from rheostat.workbench import Workbench

COLUMNS = ("h", "h_error", "s", "s_error", "fluency", "T_h", "T_s", "T_fluency", "truncated", "train_seconds")


def measure(
    bench: Workbench, policy, prompts, party: str, config: RunConfig, samples: int, seed: int, base_nll: float
) -> dict:
    requests = [GenerationRequest(prompt.messages, samples=samples) for prompt in prompts]
    answers = tuned_engine(config, policy).generate(requests, study.sampling_of(config), seed=seed)
    flat = [ControlledCompletion(each, each.tokens) for found in answers for each in found]
    asked = [prompt for prompt in prompts for _ in range(samples)]
    rows = bench.rows(asked, [{}] * len(asked), flat, [party], with_fluency=True)
    result = {}
    for name in config.rewards:
        by_prompt = [
            statistics.mean(row.scores[f"{party}/{name}"] for row in rows[start : start + samples])
            for start in range(0, len(rows), samples)
        ]
        result[name[:1]] = statistics.mean(by_prompt)
        result[f"{name[:1]}_error"] = statistics.stdev(by_prompt) / math.sqrt(len(by_prompt))
    result["fluency"] = math.exp(study.nll(rows) - base_nll)
    result["truncated"] = sum(row.finish == "length" for row in rows) / len(rows)
    return result


def tuned(run: RunDirectory, chosen: RunConfig, name: str):
    """The model of a method, what it logged last, and its seconds: trained as a stage, with all that it needs."""
    wanted = behind(MethodName.parse(name), chosen)
    for each in wanted:
        distil(run, chosen, each.data)
        started = time.perf_counter()
        stage = train(run, chosen, each)
    log = stage.summary["log"]
    found = {"last": log[-1] if log else {}, "rows": stage.summary["examples"]}
    return load_policy(str(stage.path / "model")), found | {"train_seconds": round(time.perf_counter() - started, 1)}


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
        print(study.table_of(arguments.json, COLUMNS, digits=3))
        return
    variants = yaml.safe_load(arguments.variants.read_text())
    with RunDirectory.open(arguments.run) as run:
        config = load_config(run.config_path)
        prompts = {
            "": run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.prompts],
            "T_": run.finished("prompts").read(Prompt, prefix="generalization")[: arguments.generalization],
        }
        bench = study.bench_of(run, config)
        nll = {"": study.own_nll(run, "optimization"), "T_": study.own_nll(run, "generalization")}
        for seed in arguments.seeds:
            for name in arguments.only or variants:
                if (name, seed) in study.finished(arguments.json):
                    continue
                chosen = study.override(config, variants[name], seed, besides=("method",))
                policy, row = bench.base, {"train_seconds": 0.0}
                if variants[name]["method"] != "base":
                    policy, row = tuned(run, chosen, variants[name]["method"])
                for mark, party in (("", "reward"), ("T_", "truth")):
                    found = measure(
                        bench, policy, prompts[mark], party, chosen, arguments.samples, seed, nll[mark]
                    )
                    row |= {f"{mark}{key}": value for key, value in found.items()}
                with arguments.json.open("a") as file:
                    file.write(json.dumps({"variant": name, "seed": seed, **row}) + "\n")
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                print(name, seed, shown, {k: round(v, 3) for k, v in row.get("last", {}).items()}, flush=True)


if __name__ == "__main__":
    main()
