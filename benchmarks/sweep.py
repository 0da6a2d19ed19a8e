"""The study of objectives: many trainings on one run's data, each measured on held-out prompts.

    python benchmarks/sweep.py RUN --variants variants.yaml --seeds 0 1 2 --json results.jsonl

RUN has finished. Each variant is a name and overrides of the recipe (`objective:` chooses the objective, `data:`
the variant of the distillation), each line of results one training: control by the run's own rewards, control by truth
on the generalization prompts (`T_`), fluency under the base, seconds. `--table` only prints the means over seeds, as
Markdown. On two cores two sweeps with OMP_NUM_THREADS=1 into the same file, one with the seeds in reverse order, are
faster than one on both.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml

import study
from rheostat.fine_tuning import fine_tune
from rheostat.generation import tuned_engine
from rheostat.methods.tuned import Tuned
from rheostat.models import load_policy
from rheostat.recipe import load_config
from rheostat.records import Example, Prompt
from rheostat.rundir import RunDirectory

COLUMNS = (
    "MP_h", "MP_s", "BT_h", "BT_s", "fluency", "T_MP_h", "T_MP_s", "T_BT_h", "T_BT_s", "T_fluency", "train_seconds",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--variants", type=Path)
    parser.add_argument("--only", nargs="+", help="of the variants, these")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--generalization", type=int, default=24, help="prompts judged by truth; 0 for none")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="print so many responses")
    arguments = parser.parse_args()
    if arguments.table:
        print(study.table_of(arguments.json, COLUMNS))
        return
    variants = yaml.safe_load(arguments.variants.read_text())
    if arguments.only:
        variants = {name: variants[name] for name in arguments.only}
    with RunDirectory.open(arguments.run, read_only=True) as run:
        config = load_config(run.config_path)
        prompts = run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.prompts]
        wanted = {changes.get("data", "moec") for changes in variants.values()}
        data = {name: run.finished(f"distil/{name}").read(Example) for name in wanted}
        other = run.finished("prompts").read(Prompt, prefix="generalization")[: arguments.generalization]
        bench = study.bench_of(run, config)
        own, elsewhere = (study.own_nll(run, evaluation) for evaluation in ("optimization", "generalization"))
        for seed in arguments.seeds:
            for name, changes in variants.items():
                if (name, seed) in study.finished(arguments.json):
                    continue
                chosen = study.override(config, changes, seed, besides=("objective", "data"))
                policy = load_policy(chosen.model)
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    trained = fine_tune(
                        policy,
                        data[changes.get("data", "moec")],
                        objective=changes.get("objective", "exmate"),
                        config=chosen,
                        checkpoints=Path(folder),
                    )
                seconds = time.perf_counter() - started
                method = Tuned(tuned_engine(chosen, policy))
                found = study.grid_rows(bench, method, prompts, "reward", chosen, seed)
                row = {
                    "variant": name,
                    "seed": seed,
                    "train_seconds": round(seconds, 1),
                    **study.figures(found, "reward", chosen, own),
                    "last": trained["log"][-1] if trained["log"] else {},
                }
                if other:
                    judged = study.grid_rows(bench, method, other, "truth", chosen, seed)
                    measured = study.figures(judged, "truth", chosen, elsewhere)
                    row |= {f"T_{key}": value for key, value in measured.items()}
                for each in found[:: max(1, len(found) // arguments.show)] if arguments.show else []:
                    print(each.requested, repr(each.text))
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    name, seed, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True
                )


if __name__ == "__main__":
    main()
