"""The study of weight-space methods: experts trained in several ways, mixed in several ways, measured on one run.

    python benchmarks/weight_sweep.py RUN --variants variants.yaml --json results.jsonl

RUN has finished. Each variant has `overrides` (as `train.overrides`) and `methods`, a list of a method's file and its
options: `{soups: {}}`. Its experts are trained once for all of them. Each line of results is one method of one variant:
mean achieved scores by the run's own rewards on held-out prompts, all over and at the corners of the dials; MP, BT, Err
and cross-effects, which of a method without a dial say what chance gives; fluency under the base (its perplexity over
theirs); merges, seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import study
from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.distil import distil
from rheostat.fine_tuning import fine_tune
from rheostat.generation import tuned_engine
from rheostat.models import Policy, recipe_policy
from rheostat.plugins import MethodContext
from rheostat.recipe import load_config, method_options, objective_options, validate
from rheostat.records import EvaluationRow, Example, Pair, Prompt
from rheostat.rundir import RunDirectory
from rheostat.trainings import Training, training
from rheostat.weight_importance import weight_importance, write_importance


@dataclass
class Experts:
    """The models of a variant's trainings, in memory: `plugins.Models` of each method in turn."""

    config: RunConfig
    policy: Policy
    data: dict[str, list]
    scratch: Path
    trained: dict[str, Policy] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    roles: dict[str, Training] = field(default_factory=dict)

    def base(self) -> Policy:
        return self.policy

    def tuned(self, role: str) -> Policy:
        return self.trained[str(self.roles[role])]

    def folder(self, role: str) -> Path:
        return self.scratch / str(self.roles[role])

    def engine(self, policy: Policy) -> plugins.Engine:
        return tuned_engine(self.config, policy)

    def train(self, each: Training) -> None:
        name, objective = str(each), plugins.load("objectives", each.objective)
        if name in self.trained:
            return
        started = time.perf_counter()
        self.trained[name] = policy = recipe_policy(self.config)
        rows = self.data[str(each.data)]
        with tempfile.TemporaryDirectory() as checkpoints:
            fine_tune(
                policy, rows, objective=each.objective, config=self.config, checkpoints=Path(checkpoints)
            )
        if objective.NEEDS.importance:
            options = objective_options(self.config.train, each.objective)
            kept = [row for row in rows if objective.NEEDS.keeps(row.scores)]
            (self.scratch / name).mkdir()
            found = weight_importance(policy, kept, self.config, objective=objective, options=options)
            write_importance(self.scratch / name, found)
        self.seconds[name] = time.perf_counter() - started


def achieved(rows: list[EvaluationRow], form: ControlFormat) -> dict:
    """Mean scores, all over and at the corners of the dials."""

    def means(chosen: list[EvaluationRow]) -> list[float]:
        return [round(statistics.mean(row.scores[f"reward/{name}"] for row in chosen), 3) for name in form.names]

    corners = [control for control in form.grid() if set(control.values()) <= {0.0, 1.0}]
    return {
        **{f"mean_{name[:1]}": mean for name, mean in zip(form.names, means(rows), strict=True)},
        "corners": {form.render(each): means([row for row in rows if row.requested == dict(each)]) for each in corners},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--variants", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="of the variants, these")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rows", type=int, help="of each training's data, so many, evenly spaced")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="print so many responses of each method")
    arguments = parser.parse_args()
    variants = yaml.safe_load(arguments.variants.read_text())
    with RunDirectory.open(arguments.run) as run:
        config = load_config(run.config_path)
        form = config.control_format
        prompts = run.finished("prompts").read(Prompt, prefix="optimization")[: arguments.prompts]
        bench = study.bench_of(run, config)
        base_nll = study.own_nll(run, "optimization")
        data: dict[str, list] = {}
        for variant in arguments.only or variants:
            given = variants[variant]
            changes = {"train": config.model_dump(mode="json")["train"] | {"overrides": given["overrides"]}}
            with tempfile.TemporaryDirectory() as scratch:
                experts = Experts(config, bench.base, data, Path(scratch))
                for place, listed in enumerate(given["methods"]):
                    ((file, options),) = listed.items()
                    values = config.model_dump(mode="json") | changes | {"method_options": {file: options}}
                    experts.config = chosen = validate(values)
                    kind = plugins.load("methods", file)
                    experts.roles = {
                        role: training(each, chosen) for role, each in kind.models(form.names).items()
                    }
                    for each in experts.roles.values():
                        if str(each.data) not in data:
                            stage = distil(run, chosen, each.data)
                            rows = stage.read(Pair if each.data.variant == "pairs" else Example)
                            data[str(each.data)] = rows[:: max(1, len(rows) // (arguments.rows or len(rows)))]
                        experts.train(each)
                    started = time.perf_counter()
                    method = kind.build(
                        MethodContext(
                            experts.engine(bench.base),
                            False,
                            bench.scorer("reward"),
                            form.attributes,
                            1,
                            experts,
                            method_options(chosen, file),
                        )
                    )
                    rows = study.grid_rows(bench, method, prompts, "reward", chosen, 0)
                    result = {
                        "variant": variant,
                        "method": file,
                        "options": options,
                        **study.figures(rows, "reward", chosen, base_nll),
                        **achieved(rows, form),
                        "merges": method.mixer.merges,
                        "train_seconds": {k: round(v, 1) for k, v in experts.seconds.items()} if not place else None,
                        "answer_seconds": round(time.perf_counter() - started, 1),
                    }
                    for each in rows[:: max(1, len(rows) // arguments.show)] if arguments.show else []:
                        print(each.requested, repr(each.text))
                    with arguments.json.open("a") as file_:
                        file_.write(json.dumps(result) + "\n")
                    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
                    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
