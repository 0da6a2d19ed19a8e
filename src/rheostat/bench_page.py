"""The bench's page: all methods of a run in one comparison, as Markdown with two pictures, off evaluation.json alone.

    python -m rheostat.bench_page RUN --to docs/bench.md

writes docs/bench.md, docs/bench.png and docs/bench-nets.png.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rheostat import bench_comparison, bench_picture, suite_report
from rheostat.bench_comparison import Entries, cross_effect, verdict
from rheostat.bench_context import context_of
from rheostat.canvas import to_png
from rheostat.errors import InputError, RheostatError, StageMissing
from rheostat.metrics import Interval
from rheostat.report_tables import interval_of, number
from rheostat.storage import write_bytes, write_text
from rheostat.suite_report import RATES, percent_text

OURS = "exmate"
RECIPE = "recipes/pocket-bench.yaml"
CHEAPER = 0.9
"""Of two costs measured once, the lower counts as lower from this ratio on."""
TEMPLATES = Path(__file__).parent / "templates"
IN_THE_PROMPT = ("prompt", "choice among answers")
"""Dials that leave the model as it is; the Pareto picture shows their methods in a panel of their own."""


def page(evaluation: Mapping[str, Any], *, run: str, to: str, ours: str = OURS, recipe: str = RECIPE) -> str:
    """The page's text. `run`, `recipe` and `to` stand in its commands; `ours` is the method held against all."""
    entries, attributes = _checked(evaluation, ours)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    titled = dict(bench_comparison.evaluations(evaluation))
    verdicts = {
        column.title: found
        for column in bench_comparison.columns(evaluation, attributes)
        if (found := verdict(column, ours)) is not None
    }
    own = {column.title: column.values for column in bench_comparison.columns(evaluation, attributes)}
    return environment.get_template("bench.md.j2").render(
        ours=ours,
        methods=list(entries),
        recipe=recipe,
        run=run,
        command=f"python -m rheostat.bench_page {shlex.quote(run)} --to {shlex.quote(to)}",
        prompts=evaluation["prompts"],
        settings=len(entries[ours]["settings"]),
        pictures=[path.name for path in picture_paths(Path(to))],
        tables=[_control(title, each, attributes) for title, each in titled.items()],
        suite=_suite(evaluation, entries),
        costs=_costs(entries),
        losses=_losses(verdicts, ours),
        verdicts=_rows(
            ["figure", ours, "better", "level", "worse"],
            [
                [title, _plus_minus(own[title][ours]), _names(found.better), _names(found.level), str(len(found.worse))]
                for title, found in verdicts.items()
            ],
        ),
        points=_points(entries, ours, attributes),
        cheaper=_cheaper(entries, ours),
        sources=_rows(
            ["method", "source", "dial", "the source's, ours, unknown"],
            [[f"`{name}`", known.source, known.dial, known.words] for name, known in _contexts(entries)],
        ),
    )


def _checked(evaluation: Mapping[str, Any], ours: str) -> tuple[Entries, list[str]]:
    """The optimization evaluation's methods, and its attributes. Raises `RheostatError` for what a page can't be of."""
    entries: Entries = evaluation["evaluations"]["optimization"]
    if ours not in entries:
        raise InputError(f"got {ours!r}, allowed are {', '.join(entries)}", hint="name a method of the run with --ours")
    if "prompts" not in evaluation:
        raise StageMissing(
            "evaluation.json is of an earlier version, without what the page shows",
            hint="run `rheostat evaluate` again",
        )
    attributes = list(entries[ours]["attributes"])
    if len(attributes) < 2:
        raise InputError(f"got the dial {attributes[0]} alone, allowed are two or more", hint="see the report page")
    return entries, attributes


def pictures(evaluation: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The Pareto picture and the nets, as PNG files. They take two dials; of further ones nets are averages."""
    entries: Entries = evaluation["evaluations"]["optimization"]
    attributes = list(next(iter(entries.values()))["attributes"])
    dialled = {name: known.dial for name, known in _contexts(entries) if entries[name]["has_dial"]}
    inside = [name for name, dial in dialled.items() if dial in IN_THE_PROMPT]
    groups = {
        "Dial in the prompt, or a choice among answers": inside,
        "Dial in weights, logits or gates": [name for name in dialled if name not in inside],
    }
    drawn = bench_picture.fronts(entries, groups, attributes), bench_picture.nets(entries, attributes)
    return to_png(drawn[0]), to_png(drawn[1])


def picture_paths(to: Path) -> tuple[Path, Path]:
    """Where the pictures of a page lie: beside it, named after it."""
    return to.with_suffix(".png"), to.with_name(f"{to.stem}-nets.png")


def write(run: Path, to: Path, *, ours: str = OURS, recipe: str = RECIPE) -> None:
    """Write the page and its pictures. Raises `StageMissing` where the run has no finished evaluation."""
    try:
        evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageMissing(
            f"{run / 'evaluation.json'} cannot be read: {error}", hint=f"run `rheostat evaluate {run}` first"
        ) from error
    text = page(evaluation, run=run.as_posix(), to=to.as_posix(), ours=ours, recipe=recipe)
    for path, content in zip(picture_paths(to), pictures(evaluation), strict=True):
        write_bytes(path, content)
    write_text(to, text)


def _contexts(entries: Entries) -> list[tuple[str, Any]]:
    return [(name, context_of(name)) for name in entries]


def _control(title: str, entries: Entries, attributes: Sequence[str]) -> dict[str, str]:
    """How well the dials work in one evaluation, and where the methods without one stand."""
    header = ["method", "dial"]
    header += [f"{name} reached" for name in attributes]
    header += [f"{metric} {name}" for metric in bench_comparison.DIALLED for name in attributes]
    header += ["cross-effect", "fluency"]
    best = {
        (metric, name): (min if metric == "Err" else max)(
            (number(entry["attributes"][name][metric]["value"]) for entry in entries.values() if entry["has_dial"]),
            key=_as_number,
            default="",
        )
        for metric in bench_comparison.DIALLED
        for name in attributes
    }
    rows = []
    for method, known in _contexts(entries):
        entry = entries[method]
        cells = [_reached(entry, name) for name in attributes]
        for metric in bench_comparison.DIALLED:
            for name in attributes:
                figure = interval_of(entry["attributes"][name][metric]) if entry["has_dial"] else None
                is_best = figure is not None and number(figure.value) == best[metric, name]
                cells.append(_plus_minus(figure, bold=is_best))
        cells += [_plus_minus(cross_effect(entry) if entry["has_dial"] else None)]
        cells += [_plus_minus(interval_of(entry.get("fluency")))]
        rows.append([f"`{method}`", known.dial, *cells])
    heading = "How well the dials work" if title == "optimization" else f"On {title}"
    return {"title": heading, "text": _rows(header, rows)}


def _reached(entry: Mapping[str, Any], attribute: str) -> str:
    if not entry["has_dial"]:
        return _plus_minus(interval_of(entry["attributes"][attribute]["achieved"]))
    levels = sorted({each["requested"][attribute] for each in entry["settings"]})
    means = []
    for level in (levels[0], levels[-1]):
        landed = [
            each["achieved"][attribute] for each in entry["settings"] if each["requested"][attribute] == level
        ]
        means.append(_short(number(sum(landed) / len(landed))))
    return " to ".join(means)


def _suite(evaluation: Mapping[str, Any], entries: Entries) -> dict[str, str] | None:
    """Both sides of safety, the dial fully down and fully up; a method without a dial has one figure of each."""
    suite = evaluation.get("suite")
    if suite is None:
        return None
    header = ["method", *(f"{words}, {suite['dial']} {end}" for _, words in RATES for end in ("down", "up"))]
    rows = []
    for name, points in suite["methods"].items():
        cells = []
        for rate, _ in RATES:
            ends = [_percent(points[place][rate]) for place in (0, -1)]
            cells += ends if entries[name]["has_dial"] else ["–", ends[1]]
        rows.append([f"`{name}`", *cells])
    return {"text": _rows(header, rows), "explanation": suite_report.explanation(suite)}


def _percent(figure: Mapping[str, float]) -> str:
    return f"{percent_text(figure['value'])} ±{percent_text((figure['high'] - figure['low']) / 2)} %"


def _costs(entries: Entries) -> str:
    header = ["method", "models trained", "training", "tokens generated in training", "data", "tokens of data"]
    header += ["tokens a response", "time a response"]
    rows = []
    for method, entry in entries.items():
        cost = entry["cost"]
        rows.append(
            [
                f"`{method}`",
                str(cost["trainings"]) if cost["trainings"] else "–",
                _seconds(cost["training_seconds"]),
                _count(cost["training_generated_tokens"]),
                _seconds(cost["data_seconds"]),
                _count(cost["data_generated_tokens"]),
                number(cost["generated_tokens"], digits=0),
                "–" if cost["seconds"] is None else f"{1000 * cost['seconds']:.1f} ms",
            ]
        )
    return _rows(header, rows)


def _losses(verdicts: Mapping[str, Any], ours: str) -> str:
    lost = {title: found.better for title, found in verdicts.items() if found.better}
    if not lost:
        return f"Beyond the intervals no method is better than {ours} in any of the {len(verdicts)} figures below."
    listed = "\n".join(f"- {title}: {_names(names)}" for title, names in lost.items())
    return (
        f"Beyond the intervals others are better than {ours} in {len(lost)} of the {len(verdicts)} figures below:"
        f"\n\n{listed}"
    )


def _points(entries: Entries, ours: str, attributes: Sequence[str]) -> str:
    matched, others = bench_comparison.unmatched(entries, ours, attributes)
    scores = " and ".join(attributes)
    parts = []
    if matched:
        parts.append(f"{ours} has a setting whose mean {scores} are at least those of {_names(matched)}.")
    if others:
        parts.append(f"It has none that matches {_names(others)} in both." if matched else "")
        parts[-1] = parts[-1] or f"{ours} has no setting that matches {_names(others)} in mean {scores}."
    return "Of the methods without a dial: " + " ".join(parts) if parts else "Every method here has a dial."


def _cheaper(entries: Entries, ours: str) -> str:
    """Who costs less than `ours`, by what: plain numbers of one run, without intervals."""
    own = entries[ours]["cost"]
    sentences = []
    for key, words in (
        ("training_seconds", "training"),
        ("generated_tokens", "tokens a response"),
        ("seconds", "time a response"),
    ):
        cheaper = [
            name
            for name, entry in entries.items()
            if name != ours
            and None not in (entry["cost"][key], own[key])
            and entry["cost"][key] < CHEAPER * own[key]
            and not (key == "seconds" and _shares_candidates(entry["cost"], own))
        ]
        sentences.append(f"- {words}: {_names(cheaper)}")
    return f"Cheaper than {ours} by a tenth or more, in this one run:\n\n" + "\n".join(sentences)


def _shares_candidates(cost: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a response takes several times the tokens: in the evaluation's batches its time is no single one's."""
    return bool(cost["generated_tokens"] > 2 * own["generated_tokens"])


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def _plus_minus(figure: Interval | None, *, bold: bool = False) -> str:
    if figure is None:
        return "–"
    value = _short(number(figure.value))
    half = _short(number((figure.high - figure.low) / 2))
    return f"**{value}** ±{half}" if bold else f"{value} ±{half}"


def _short(text: str) -> str:
    """Without the 0 before the point."""
    return text.replace("0.", ".", 1) if text.startswith(("0.", "−0.")) else text


def _as_number(text: str) -> float:
    return float(text.replace("−", "-"))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _seconds(value: float | None) -> str:
    return f"{value:,.0f} s" if value else "–"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a fault of the user's is told in a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--to", type=Path, default=Path("docs/bench.md"), help="the page to write")
    parser.add_argument("--ours", default=OURS, help="the method that is held against all others")
    parser.add_argument("--recipe", default=RECIPE, help="the run's recipe, for the command on the page")
    options = parser.parse_args(arguments)
    try:
        write(options.run, options.to, ours=options.ours, recipe=options.recipe)
    except RheostatError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
