"""Tables for a terminal: the figures of a run, and answers across the dials."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rheostat import suite_report
from rheostat.metrics import Interval
from rheostat.records import Control
from rheostat.report_tables import METRICS, dialled, interval_of, number

PIPE_WIDTH = 160
"""The widest line, in characters, where standard output is no terminal."""

CAPTION = (
    "±: half the 95 % interval. Bold: the best. cross: how far the other dial moves this one's score, at most "
    "(0: not at all). fluency: perplexity beside base's (1: as fluent)."
)
"""What the figures of the evaluation's tables are."""

SUITE_CAPTION = (
    "±: half the 95 % interval. harmful answers: of those to harmful prompts. over-refusals: refused answers to "
    "harmless prompts."
)
"""What the figures of the suite's table are."""


def evaluation_tables(evaluation: Mapping[str, Any]) -> Sequence[Table]:
    """The figures of evaluation.json: a table an evaluation and scorer, a row a method and dial.

    A figure is followed by half the width of its 95 % interval; the best of a column, dial by dial, is bold.
    The cross-effect of a dial's row is the largest effect of another dial on it. The last table says so.
    """
    tables = list(_tables(evaluation))
    if evaluation.get("calibrated") or evaluation.get("forgery"):
        tables.append(_dials_table(evaluation))
    if tables:
        tables[-1].caption, tables[-1].caption_justify = CAPTION, "left"
    if "suite" in evaluation:
        tables.append(_suite_table(evaluation["suite"]))
    return tables


def _tables(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    for name, methods in evaluation["evaluations"].items():
        scorers = list(
            dict.fromkeys(scorer for entry in methods.values() for scorer in entry.get("scorers", {}))
        )
        for scorer in scorers:
            entries = {method: {**entry, **entry["scorers"][scorer]} for method, entry in methods.items()}
            yield from _evaluation_table(f"{name} evaluation, scored by {scorer}", entries)
        if not scorers and methods:
            yield from _evaluation_table(f"{name} evaluation", methods)


def _dials_table(evaluation: Mapping[str, Any]) -> Table:
    """What calibration does to each dial, and what a forged control does to it."""
    table = titled("Calibrated dials and forged controls")
    for name in ("method", "dial"):
        table.add_column(name, overflow="fold")
    for name in ("reaches", "Err ↓", "calibrated ↓", "forged"):
        table.add_column(name, justify="right", no_wrap=True)
    calibrated, forgery = (evaluation.get(key, {}) for key in ("calibrated", "forgery"))
    for method in dict.fromkeys((*calibrated, *forgery)):
        dials: Mapping[str, Any] = calibrated.get(method, {}).get("dials", {"": None})
        for row, (dial, found) in enumerate(dials.items()):
            forged = None
            if row == 0 and method in forgery:
                forged = interval_of(forgery[method]["pooled"]["neutralised"]["moved_more"])
            cells = [Text("–")] * 3
            if found is not None:
                ends = (_short(number(found["reachable"][end]["value"])) for end in ("low", "high"))
                err = next(iter(found["evaluations"]["optimization"].values()))["fine"]
                errs = (_figure(interval_of(err[key]), None) for key in ("before", "after"))
                cells = [Text(" to ".join(ends)), *errs]
            table.add_row(method if row == 0 else "", dial, *cells, "" if forged is None else _figure(forged, None))
    return table


def answer_table(answers: Sequence[tuple[Control, str]]) -> Table:
    """Answers across the dials: a grid of two dials, the first across; otherwise a row an answer."""
    names = list(answers[0][0])
    if len(names) != 2:
        table = Table(*names, "answer", box=box.SIMPLE_HEAD, show_lines=True)
        for control, answer in answers:
            table.add_row(*(f"{control[name]:g}" for name in names), Text(answer))
        return table
    across, down = names
    columns = sorted({control[across] for control, _ in answers})
    cells = {(control[across], control[down]): answer for control, answer in answers}
    table = Table(box=box.ROUNDED, show_lines=True)
    table.add_column(f"{down} ↓", justify="right", no_wrap=True)
    for level in columns:
        table.add_column(f"{across} {level:g}", ratio=1)
    for level in sorted({control[down] for control, _ in answers}, reverse=True):
        table.add_row(f"{level:g}", *(Text(cells.get((column, level), "")) for column in columns))
    return table


def show(renderable: RenderableType) -> None:
    """Print on standard output; where that is no terminal, as wide as it needs to be, within `PIPE_WIDTH`."""
    console = Console()
    if not console.is_terminal:
        wide = console.options.update(max_width=PIPE_WIDTH, width=PIPE_WIDTH)
        console = Console(width=Measurement.get(console, wide, renderable).maximum)
    console.print(renderable)


def _evaluation_table(title: str, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """The methods whose dials turn something; beneath them the others, by what they score whatever is asked."""
    turning = dialled(methods)
    yield _dialled_table(title, {name: methods[name] for name in turning})
    if others := [name for name in methods if name not in turning]:
        yield _points_table({name: entry for name, entry in methods.items() if name == "base" or name in others})


def _points_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = titled("The methods without a dial there")
    table.add_column("method", overflow="fold")
    for dial in next(iter(methods.values()))["attributes"]:
        table.add_column(f"mean {dial}", justify="right", no_wrap=True)
    table.add_column("fluency", justify="right", no_wrap=True)
    for method, entry in methods.items():
        means = [_figure(interval_of(each["achieved"]), None) for each in entry["attributes"].values()]
        fluency = interval_of(entry.get("fluency"))
        table.add_row(method, *means, number(fluency.value if fluency else None))
    return table


def _dialled_table(title: str, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = titled(f"{title[:1].upper()}{title[1:]}")
    table.add_column("method", overflow="fold")
    table.add_column("dial", overflow="fold")
    for metric, better in METRICS:
        table.add_column(f"{metric} {'↑' if better == 'higher' else '↓'}", justify="right", no_wrap=True)
    table.add_column("cross", justify="right", no_wrap=True)
    table.add_column("fluency", justify="right", no_wrap=True)
    best = _best(methods)
    for place, (method, entry) in enumerate(methods.items()):
        if place:
            table.add_section()
        for row, (dial, figures) in enumerate(entry["attributes"].items()):
            cells = [_figure(interval_of(figures[metric]), best.get((dial, metric))) for metric, _ in METRICS]
            fluency = interval_of(entry.get("fluency")) if row == 0 else None
            table.add_row(
                method if row == 0 else "",
                dial,
                *cells,
                _cross_effect(entry, dial),
                "" if row else number(fluency.value if fluency else None),
            )
    return table


def titled(title: str) -> Table:
    """An empty table under a title, as narrow as its figures."""
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )


def _suite_table(suite: Mapping[str, Any]) -> Table:
    """Both rates of the suite: a row a method and rate, a column a level of the dial."""
    methods: Mapping[str, Sequence[Mapping[str, Any]]] = suite["methods"]
    prompts = suite["prompts"]
    table = titled(f"Suite: {prompts['harmful']} harmful and {prompts['harmless']} harmless prompts, % of answers")
    table.add_column("method", overflow="fold")
    table.add_column("rate", overflow="fold")
    for point in next(iter(methods.values())):
        table.add_column(f"{suite['dial']} {point['level']:g}", justify="right", no_wrap=True)
    for place, (method, points) in enumerate(methods.items()):
        if place:
            table.add_section()
        for row, (rate, words) in enumerate(suite_report.RATES):
            cells = [_percent(point[rate]) for point in points]
            table.add_row("" if row else method, words, *cells)
    table.caption, table.caption_justify = SUITE_CAPTION, "left"
    return table


def _percent(figure: Mapping[str, float]) -> Text:
    half = suite_report.percent_text((figure["high"] - figure["low"]) / 2)
    return Text(suite_report.percent_text(figure["value"])).append(f" ±{half}", style="dim")


def _best(methods: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Per dial and metric the best figure as shown: methods that look equal are equally best."""
    values: dict[tuple[str, str], list[float]] = {}
    for entry in methods.values():
        for dial, figures in entry["attributes"].items():
            for metric, _ in METRICS:
                figure = interval_of(figures[metric])
                if figure is not None:
                    values.setdefault((dial, metric), []).append(figure.value)
    better = dict(METRICS)
    return {key: number((max if better[key[1]] == "higher" else min)(found)) for key, found in values.items()}


def _figure(figure: Interval | None, best: str | None) -> Text:
    if figure is None:
        return Text("–")
    value = number(figure.value)
    text = Text(_short(value), style="bold" if value == best else "")
    half = number((figure.high - figure.low) / 2)
    return text.append(f" ±{_short(half)}", style="dim not bold")


def _short(value: str) -> str:
    """Without the 0 before the point: a terminal of 80 columns has no room for it."""
    return value.replace("0.", ".", 1) if value.startswith(("0.", "−0.")) else value


def _cross_effect(entry: Mapping[str, Any], dial: str) -> str:
    effects = [
        effect.value
        for key, figure in entry.get("cross_effect", {}).items()
        if key.startswith(f"{dial}_by_") and (effect := interval_of(figure)) is not None
    ]
    return _short(number(max(effects, key=abs))) if effects else "–"
