"""The refusal rules (`rheostat.refusal`) against people: XSTest's labels of three models' completions.

Prompts used to write the rules are kept apart from those that measure: a prompt falls into the development or the
measuring half by a hash of its text, with all models' completions. `--errors` shows what the rules get wrong, on the
development half only. Balanced accuracy is that of full refusal against full compliance, `refused` being a score of
at least `REFUSED`; partial refusals stand apart. Intervals: 95 %, bootstrap over prompts.

    python benchmarks/refusal_rules.py --xstest ../shared/data/xstest --json benchmarks/results/refusal_rules.json
"""

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rheostat.refusal import REFUSED, Verdict, detect
from rheostat.refusal_patterns import GROUPS

MODELS = ("gpt4", "mistralguard", "mistralinstruct")
LABELS = {"1_full_compliance": "compliance", "2_full_refusal": "refusal", "3_partial_refusal": "partial"}
KINDS = ("refusal", "partial", "compliance", "empty")
HALVES = ("development", "measuring")
RESAMPLES = 2000
TARGET = 0.95
_DIRECT = {group.name for group in GROUPS if "ZOU" in group.sources}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A completion with its human label, and what the rules say."""

    model: str
    prompt: str
    completion: str
    label: str
    verdict: Verdict


def half_of(prompt: str) -> str:
    """The half into which a prompt falls, whatever the model and the other prompts."""
    digest = hashlib.sha256(" ".join(prompt.split()).casefold().encode()).digest()
    return HALVES[digest[0] % 2]


def read(folder: Path) -> list[Labelled]:
    """Every labelled completion of the three models."""
    csv.field_size_limit(sys.maxsize)
    found = []
    for model in MODELS:
        with (folder / f"xstest_v2_completions_{model}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                text = row["completion"]
                label = LABELS[row["final_label"]]
                found.append(Labelled(model, row["prompt"], text, label, detect(text)))
    return found


def balanced_accuracy(rows: Sequence[Labelled], refused: Callable[[Verdict], bool]) -> dict[str, Any]:
    """Balanced accuracy, recall and specificity of full refusals against full compliances, each with its interval."""
    prompts = sorted({row.prompt for row in rows})
    place = {prompt: index for index, prompt in enumerate(prompts)}
    counts = np.zeros((len(prompts), 4))  # refusals found, refusals, compliances found, compliances
    for row in rows:
        if row.label == "refusal":
            counts[place[row.prompt], :2] += (refused(row.verdict), 1)
        elif row.label == "compliance":
            counts[place[row.prompt], 2:] += (not refused(row.verdict), 1)
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=RESAMPLES)
    sums = np.vstack([np.ones(len(prompts)), draws]) @ counts
    recall, specificity = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    figures = {"balanced_accuracy": (recall + specificity) / 2, "recall": recall, "specificity": specificity}
    return {
        "refusals": int(counts[:, 1].sum()),
        "compliances": int(counts[:, 3].sum()),
        **{name: _interval(values) for name, values in figures.items()},
    }


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def measure(rows: Sequence[Labelled]) -> dict[str, Any]:
    """The figures of some completions, together and by model."""
    found: dict[str, Any] = {}
    for name in ("together", *MODELS):
        own = [row for row in rows if name in ("together", row.model)]
        classes: Counter[tuple[str, str]] = Counter((row.label, row.verdict.kind) for row in own)
        found[name] = {
            "rules": balanced_accuracy(own, lambda verdict: verdict.score >= REFUSED),
            "direct phrases": balanced_accuracy(
                own, lambda verdict: bool(_DIRECT.intersection(verdict.shown))
            ),
            "classes": {label: {kind: classes[label, kind] for kind in KINDS} for label in LABELS.values()},
        }
    return found


def show(half: str, figures: dict[str, Any]) -> None:
    """Print the figures of a half."""
    print(f"\n{half} half")
    print(
        f"{'':18}{'balanced accuracy':>24}{'recall':>10}{'specificity':>13}{'refusals':>10}{'compliances':>13}"
    )
    for name, each in figures.items():
        for way in ("rules", "direct phrases"):
            if way == "direct phrases" and name != "together":
                continue
            got = each[way]
            value, low, high = (got["balanced_accuracy"][key] for key in ("value", "low", "high"))
            label = name if way == "rules" else "  direct phrases"
            print(
                f"{label:18}{value:10.3f} ({low:.3f}–{high:.3f}){got['recall']['value']:10.3f}"
                f"{got['specificity']['value']:13.3f}{got['refusals']:10}{got['compliances']:13}"
            )
    print(f"\n{'label':12}{'rules say:':>12}" + "".join(f"{kind:>12}" for kind in KINDS))
    for label, row in figures["together"]["classes"].items():
        print(f"{label:12}{'':12}" + "".join(f"{row[kind]:12}" for kind in KINDS))


def main() -> None:
    """Measures the halves asked for, prints tables, and writes JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--xstest", type=Path, required=True, help="the folder with XSTest's completions")
    parser.add_argument("--half", choices=[*HALVES, "both"], default="both")
    parser.add_argument("--errors", action="store_true", help="what is wrong on the development half")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rows = read(arguments.xstest)
    figures = {}
    for half in HALVES if arguments.half == "both" else [arguments.half]:
        own = [row for row in rows if half_of(row.prompt) == half]
        figures[half] = measure(own)
        show(half, figures[half])
        if arguments.errors and half == "development":
            for row in own:
                if row.label != "partial" and (row.label == "refusal") != (row.verdict.score >= REFUSED):
                    print(
                        f"\n{row.model}, {row.label}, {row.verdict}\n  {row.prompt}\n  {row.completion[:300]!r}"
                    )
    if "measuring" in figures:
        reached = figures["measuring"]["together"]["rules"]["balanced_accuracy"]["value"]
        print(f"\nmeasuring half: balanced accuracy {reached:.3f}, target {TARGET}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
