"""What the studies share: variants of a recipe, answers of every setting measured as an evaluation does, tables."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rheostat import metrics
from rheostat.config import RunConfig
from rheostat.grid import Grid
from rheostat.plugins import ControlledRequest, Method, Sampling
from rheostat.recipe import validate
from rheostat.records import EvaluationRow, Prompt
from rheostat.rundir import RunDirectory
from rheostat.score import load_calibrators
from rheostat.workbench import Workbench

WHOLE = ("train_seconds", "cpu_seconds", "steps", "generated_tokens")
"""Columns without decimals."""


def override(config: RunConfig, changes: dict, seed: int, *, besides: Sequence[str] = ()) -> RunConfig:
    """The recipe with a variant's changes, those `besides` left out, and another seed."""
    values = config.model_dump(mode="json")
    values["seed"] = seed

    def merge(into: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(values, {key: value for key, value in changes.items() if key not in besides})
    return validate(values)


def finished(path: Path) -> set[tuple[str, int]]:
    """The trainings, variant and seed, whose results are there; another study may write there too."""
    if not path.exists():
        return set()
    return {(row["variant"], row["seed"]) for row in map(json.loads, path.read_text().splitlines())}


def bench_of(run: RunDirectory, config: RunConfig) -> Workbench:
    """The workbench of a finished run: its base model and its scorers, loaded once."""
    return Workbench(config, load_calibrators(run, config))


def sampling_of(config: RunConfig) -> Sampling:
    """How a recipe's evaluation draws."""
    options = config.evaluate
    return Sampling(options.temperature, options.top_p, options.max_tokens)


def grid_rows(
    bench: Workbench, method: Method, prompts: Sequence[Prompt], party: str, config: RunConfig, seed: int
) -> list[EvaluationRow]:
    """Every prompt under every control, answered by a method as `config` draws, scored by a party."""
    cells = [(prompt, control) for prompt in prompts for control in config.control_format.grid()]
    requests = [ControlledRequest(prompt.messages, control) for prompt, control in cells]
    answers = method.respond(requests, sampling_of(config), seed=seed)
    return bench.rows(*zip(*cells, strict=True), answers, [party], with_fluency=True)


def nll(rows: Sequence[EvaluationRow]) -> float:
    """Nats a token of answers under the base."""
    return -sum(row.logprob for row in rows) / sum(row.tokens for row in rows)


def own_nll(run: RunDirectory, evaluation: str) -> float:
    """That of the base's own answers."""
    return nll(run.finished(f"evaluate/{evaluation}/base").read(EvaluationRow))


def figures(rows: Sequence[EvaluationRow], party: str, config: RunConfig, base_nll: float) -> dict[str, float]:
    """How the dials work, by the first letter of an attribute; fluency: perplexity over that of the base's own."""
    measured = metrics.evaluate(Grid.of(rows, party, config.control_format), resamples=200, seed=0)
    found = {"fluency": math.exp(nll(rows) - base_nll)}
    for name, each in measured.attributes.items():
        short = name[:1]
        found |= {
            f"MP_{short}": each.macro_pearson.value,
            f"mP_{short}": each.micro_pearson.value,
            f"Err_{short}": each.mean_absolute_error.value,
            f"BT_{short}": each.binary_test.value,
        }
    for (moved, by), effect in measured.cross_effects.items():
        found[f"X_{moved[:1]}_by_{by[:1]}"] = effect.value
    return found | {"truncated": sum(row.finish == "length" for row in rows) / len(rows)}


def table(rows: Sequence[dict], columns: Sequence[str], *, digits: int = 2) -> str:
    """Means over seeds, and from three seeds on their standard deviations, a variant a line, as Markdown."""
    lines = ["| variant | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == name]
        cells = []
        for column in columns:
            values = [row[column] for row in found if column in row]
            places = 0 if column in WHOLE else digits
            spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 2 and places else ""
            cells.append(f"{statistics.mean(values):.{places}f}{spread}" if values else "")
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of(path: Path, columns: Sequence[str], *, digits: int = 2) -> str:
    """That of a file of results."""
    return table([json.loads(line) for line in path.read_text().splitlines()], columns, digits=digits)
