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
import math
import statistics
import tempfile
import time
from pathlib import Path

import yaml

from rheostat import metrics, plugins
from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.grid import Grid
from rheostat.logprobs import TokenRow, sum_logprobs
from rheostat.models import load_policy
from rheostat.plugins import GenerationRequest, Judged, Sampling
from rheostat.recipe import load_config, validate
from rheostat.records import EvaluationRow, Example, Prompt
from rheostat.rundir import RunDirectory
from rheostat.score import load_scorers
from rheostat.train import fine_tune


def override(config: RunConfig, changes: dict, seed: int) -> RunConfig:
    values = config.model_dump(mode="json")
    values["seed"] = seed

    def merge(into: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(values, {key: value for key, value in changes.items() if key not in ("objective", "data")})
    return validate(values)


def measure(policy, base, prompts, scorer, config: RunConfig, seed: int) -> dict:
    form = config.control_format
    engine = plugins.load("engines", "transformers").build(policy, form, batch_tokens=config.batch_tokens)
    options = config.evaluate
    cells = [(prompt, control) for prompt in prompts for control in form.grid()]
    requests = [GenerationRequest(prompt.messages, control) for prompt, control in cells]
    answers = engine.generate(
        requests, Sampling(options.temperature, options.top_p, options.max_tokens), seed=seed
    )
    completions = [each[0] for each in answers]
    scores = scorer.score([Judged(p.messages, c.text) for (p, _), c in zip(cells, completions, strict=True)])
    rows = [
        TokenRow(
            encode_prompt(base.tokenizer, prompt.messages, neutralise=form.neutralise),
            encode_response(base.tokenizer, completion.text),
        )
        for (prompt, _), completion in zip(cells, completions, strict=True)
    ]
    sums = sum_logprobs(
        base.model, rows, pad_id=base.tokenizer.pad_token_id, batch_tokens=config.batch_tokens
    )
    found = [
        EvaluationRow(
            p.id,
            dict(control),
            c.text,
            c.tokens,
            c.finish,
            c.tokens,
            logprob,
            {f"reward/{name}": value for name, value in score.items()},
        )
        for (p, control), c, score, logprob in zip(cells, completions, scores, sums, strict=True)
    ]
    figures = metrics.evaluate(Grid.of(found, "reward", config.control_format), resamples=200, seed=0)
    result = {"nll_base": -sum(sums) / sum(c.tokens for c in completions)}
    for name, each in figures.attributes.items():
        short = name[:1]
        result |= {
            f"MP_{short}": each.macro_pearson.value,
            f"mP_{short}": each.micro_pearson.value,
            f"Err_{short}": each.mean_absolute_error.value,
            f"BT_{short}": each.binary_test.value,
        }
    for (moved, by), effect in figures.cross_effects.items():
        result[f"X_{moved[:1]}_by_{by[:1]}"] = effect.value
    truncated = sum(completion.finish == "length" for completion in completions) / len(completions)
    return {**result, "truncated": truncated}, found


COLUMNS = (
    "MP_h", "MP_s", "BT_h", "BT_s", "fluency", "T_MP_h", "T_MP_s", "T_BT_h", "T_BT_s", "T_fluency", "train_seconds",
)  # fmt: skip


def table(rows: list[dict]) -> str:
    """Means over seeds, and from three seeds on their standard deviations, a variant a line."""
    lines = ["| variant | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == name]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in found if column in row]
            spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 2 and column != "train_seconds" else ""
            digits = 0 if column == "train_seconds" else 2
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finished(path: Path) -> set[tuple[str, int]]:
    """The trainings, variant and seed, whose results are there."""
    if not path.exists():
        return set()
    return {(row["variant"], row["seed"]) for row in map(json.loads, path.read_text().splitlines())}


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
        print(table([json.loads(line) for line in arguments.json.read_text().splitlines()]))
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
        scorers = load_scorers(run, config, ["reward", *(["truth"] if other else [])])
        scorer, truth = scorers["reward"], scorers.get("truth")
        base = load_policy(config.model)
        own, elsewhere = (
            sum(row.logprob for row in rows) / sum(row.tokens for row in rows)
            for rows in (
                run.finished(f"evaluate/{evaluation}/base").read(EvaluationRow)
                for evaluation in ("optimization", "generalization")
            )
        )
        for seed in arguments.seeds:
            for name, changes in variants.items():
                if (name, seed) in finished(arguments.json):  # another sweep may write there too
                    continue
                chosen = override(config, changes, seed)
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
                result, found = measure(policy, base, prompts, scorer, chosen, seed)
                if other:
                    judged, _ = measure(policy, base, other, truth, chosen, seed)
                    result |= {f"T_{key}": value for key, value in judged.items()}
                    result["T_fluency"] = math.exp(result["T_nll_base"] + elsewhere)
                row = {
                    "variant": name,
                    "seed": seed,
                    "train_seconds": round(seconds, 1),
                    "fluency": math.exp(result["nll_base"] + own),
                    **result,
                    "last": trained["log"][-1] if trained["log"] else {},
                }
                for each in found[:: max(1, len(found) // arguments.show)] if arguments.show else []:
                    print(each.requested, repr(each.text))
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    name, seed, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True
                )


if __name__ == "__main__":
    main()
