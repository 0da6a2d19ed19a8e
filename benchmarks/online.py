"""The study of online training: RLHF from the base and from tuned models, each measured as `sweep.py` measures.

    python benchmarks/online.py RUN --variants benchmarks/online.yaml --seeds 0 --json results.jsonl
    python benchmarks/online.py RUN --json results.jsonl --table

RUN has finished; nothing is written to it. A variant is `objective` (rlhf where it has none), `start` (a training of
RUN, such as `exmate-moec`; the base where it has none) and overrides of the recipe. `objective: none` measures the
start itself.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml

import study
from rheostat.generation import tuned_engine
from rheostat.methods.tuned import Tuned
from rheostat.models import load_policy
from rheostat.online_trainer import train_online
from rheostat.recipe import load_config
from rheostat.records import Prompt
from rheostat.rundir import RunDirectory

COLUMNS = (
    "MP_h", "MP_s", "BT_h", "BT_s", "Err_h", "Err_s", "fluency", "kl", "steps", "generated_tokens", "train_seconds",
    "cpu_seconds",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--variants", type=Path)
    parser.add_argument("--only", nargs="+", help="of the variants, these")
    parser.add_argument("--table", action="store_true", help="only print the means of the results that are there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.table:
        print(study.table_of(arguments.json, COLUMNS))
        return
    variants = yaml.safe_load(arguments.variants.read_text())
    with RunDirectory.open(arguments.run, read_only=True) as run:
        config = load_config(run.config_path)
        held_out = run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.prompts]
        prompts = run.finished("prompts").read(Prompt, prefix="train")
        bench = study.bench_of(run, config)
        own = study.own_nll(run, "optimization")
        for seed in arguments.seeds:
            for name in arguments.only or variants:
                if (name, seed) in study.finished(arguments.json):
                    continue
                changes = dict(variants[name])
                start, objective = changes.pop("start", None), changes.pop("objective", "rlhf")
                chosen = study.override(config, changes, seed)
                policy = load_policy(
                    chosen.model if start is None else str(run.finished(f"train/{start}").path / "model")
                )
                row = {"variant": name, "seed": seed}
                if objective != "none":
                    started, worked = time.perf_counter(), time.process_time()
                    with tempfile.TemporaryDirectory() as folder:
                        found = train_online(
                            policy, prompts, objective=objective, config=chosen, scorer=bench.scorer("reward"),
                            checkpoints=Path(folder), label=name,
                        )  # fmt: skip
                    row |= {
                        "train_seconds": round(time.perf_counter() - started, 1),
                        "cpu_seconds": round(time.process_time() - worked, 1),
                        "steps": found["steps"],
                        "generated_tokens": found["generated_tokens"],
                        "kl": found["log"][-1]["kl"],
                        "log": [{key: round(value, 4) for key, value in each.items()} for each in found["log"]],
                    }
                answered = study.grid_rows(bench, Tuned(tuned_engine(chosen, policy)), held_out, "reward", chosen, seed)
                row |= study.figures(answered, "reward", chosen, own)
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(study.table([row], COLUMNS), flush=True)


if __name__ == "__main__":
    main()
