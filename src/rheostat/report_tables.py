"""What the report says in words and numbers, read off the content of evaluation.json.

Pure: no disk, no pictures. A figure that is absent or was not measured is shown as a dash, never as zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

from rheostat.metrics import Interval

METRICS: tuple[tuple[str, str], ...] = (
    ("mP", "higher"),
    ("MP", "higher"),
    ("Err", "lower"),
    ("BT", "higher"),
)
"""The metrics of the main table, and which way is better."""


class Cell(NamedTuple):
    """A number as text, its interval as text (or nothing), and whether it is the best of its column."""

    text: str
    interval: str = ""
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Columns under one heading: each a name and an arrow to where better is (or nothing)."""

    heading: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of methods."""

    title: str
    groups: tuple[Group, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""


class Tile(NamedTuple):
    """One large number of the headline, with what it is."""

    text: str
    interval: str
    label: str


Methods = Mapping[str, Mapping[str, Any]]


def number(value: float | None, *, digits: int = 2) -> str:
    """A number with a proper minus sign; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def interval_of(figure: Any) -> Interval | None:
    """A figure of evaluation.json, `{"value", "low", "high"}` or a bare number, as an interval."""
    if figure is None:
        return None
    if isinstance(figure, Mapping):
        return Interval(figure["value"], figure["low"], figure["high"])
    return Interval(float(figure), float(figure), float(figure))


def best_method(
    evaluation: Mapping[str, Any], attributes: Sequence[str], *, among: Sequence[str] | None = None
) -> str:
    """The method with the highest MP, averaged over the dials, in the optimization evaluation."""
    methods: Methods = evaluation["evaluations"]["optimization"]
    names = list(methods) if among is None else among
    return max(names, key=lambda name: sum(_value(methods[name], a, "MP") for a in attributes))


def headline(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> str:
    """The measured result in a sentence or two: who follows the dials best, how well, and against what."""
    methods: Methods = evaluation["evaluations"]["optimization"]
    best = best_method(evaluation, attributes)
    figures = methods[best]["attributes"]
    stuck = [
        name for name in attributes if figures[name]["BT"]["low"] <= 0.5 or figures[name]["MP"]["low"] <= 0
    ]
    follows = _and([f"MP {_with_interval(figures[name]['MP'])} for {name}" for name in attributes])
    wins = _and([f"{name} in {100 * figures[name]['BT']['value']:.0f} %" for name in attributes])
    if stuck:
        first = f"No method moves every dial beyond chance; the best, {best}, does not move {_and(stuck)}."
    else:
        first = f"{best} moves {'every dial' if len(attributes) > 1 else 'the dial'}, and does it best."
    turned = f"turned from its lowest to its highest level, a dial raises {wins} of pairs"
    sentence = f"{first} It reaches {follows}; {turned}."
    if best != "prompting" and "prompting" in methods:
        words = _and([number(_value(methods["prompting"], name, "MP")) for name in attributes])
        sentence += f" Asking for the level in words reaches MP {words}."
    return sentence


def tiles(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> tuple[Tile, ...]:
    """The best method's MP and BT of each dial, its largest cross-effect and its fluency."""
    best: Mapping[str, Any] = evaluation["evaluations"]["optimization"][best_method(evaluation, attributes)]
    shown = [
        Tile(*_texts(interval_of(best["attributes"][name][metric])), f"{metric}, {name}")
        for metric in ("MP", "BT")
        for name in attributes
    ]
    effects = {key: interval_of(figure) for key, figure in best.get("cross_effect", {}).items()}
    known = {key: effect for key, effect in effects.items() if effect is not None}
    if known:
        key = max(known, key=lambda name: abs(known[name].value))
        shown.append(Tile(*_texts(known[key]), f"largest cross-effect, {_effect_name(key)}"))
    fluency = interval_of(best.get("fluency"))
    if fluency is not None:
        shown.append(Tile(*_texts(fluency, unit=" ×"), "perplexity against base"))
    return tuple(shown)


def main_tables(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Iterator[Table]:
    """The metrics of every method: the optimization evaluation, then generalization, a table a scorer."""
    methods: Methods = evaluation["evaluations"]["optimization"]
    own = evaluation["reachable"]["optimization"]
    yield _main_table(
        "Optimization evaluation",
        methods,
        attributes,
        "Held-out prompts of the training distribution, scored by the reward models that labelled the data.",
        next(iter(own.values())),
    )
    others: Methods = evaluation["evaluations"].get("generalization", {})
    for scorer in next(iter(others.values()), {}).get("scorers", {}):
        if scorer in own:
            title = "Generalization evaluation"
            note = "Other prompts; this run has no judges, so the labelling reward models scored these too."
        else:
            title = f"Generalization evaluation, scored by {scorer}"
            note = "Other prompts, scored by a party that took no part in labelling the data."
        yield _main_table(
            title,
            {name: entry["scorers"][scorer] for name, entry in others.items()},
            attributes,
            note,
            evaluation["reachable"]["generalization"][scorer],
        )


def behaviour_tables(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Iterator[Table]:
    """Reach, cross-effects, fluency, ties and constant prompts of every method, a table an evaluation."""
    for title, methods in evaluation["evaluations"].items():
        pairs = [f"{moved}_by_{by}" for moved, by in permutations(attributes, 2)]
        groups = [Group("reach", tuple((name, "→ 1") for name in attributes))]
        if pairs:
            groups.append(Group("cross-effect", tuple((_effect_name(pair), "→ 0") for pair in pairs)))
        groups.append(Group("fluency", (("perplexity ratio", "→ 1"),)))
        groups.append(Group("ties in BT", tuple((name, "") for name in attributes)))
        groups.append(Group("constant prompts", tuple((name, "") for name in attributes)))
        rows = []
        for method, entry in methods.items():
            figures = entry["attributes"]
            measured = [
                *(figures[name].get("reach") for name in attributes),
                *(entry.get("cross_effect", {}).get(pair) for pair in pairs),
                entry.get("fluency"),
            ]
            cells = [Cell(*_texts(interval_of(figure))) for figure in measured]
            cells += [Cell(_share(figures[name].get("tie_rate"))) for name in attributes]
            cells += [Cell(_count(figures[name].get("constant_prompts"))) for name in attributes]
            rows.append((method, tuple(cells)))
        yield Table(f"{title.capitalize()} evaluation", tuple(groups), tuple(rows))


def costs(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What a response of each method costs in the optimization evaluation, and its training."""
    return {name: entry["cost"] for name, entry in evaluation["evaluations"]["optimization"].items()}


def _main_table(
    title: str, methods: Methods, attributes: Sequence[str], note: str, reachable: Mapping[str, Any]
) -> Table:
    groups = tuple(
        Group(name, tuple((metric, "↑" if better == "higher" else "↓") for metric, better in METRICS))
        for name in attributes
    )
    best: dict[tuple[str, str], float] = {}
    for name in attributes:
        for metric, better in METRICS:
            pick: Callable[..., float] = max if better == "higher" else min
            best[name, metric] = pick(_value(entry, name, metric) for entry in methods.values())
    rows = []
    for method, entry in methods.items():
        cells = []
        for name in attributes:
            for metric, _ in METRICS:
                figure = interval_of(entry["attributes"][name][metric])
                assert figure is not None, (method, name, metric)
                cells.append(Cell(*_texts(figure), is_best=figure.value == best[name, metric]))
        rows.append((method, tuple(cells)))
    cells = [
        Cell(number(reachable[name]["Err"]) if metric == "Err" else "")
        for name in attributes
        for metric, _ in METRICS
    ]
    rows.append(("reachable", tuple(cells)))
    note += " The row reachable: the Err of the nearest of many samples of the untuned model."
    return Table(title, groups, tuple(rows), note)


def _value(entry: Mapping[str, Any], attribute: str, metric: str) -> float:
    return float(entry["attributes"][attribute][metric]["value"])


def _texts(figure: Interval | None, *, unit: str = "") -> tuple[str, str]:
    if figure is None:
        return "–", ""
    around = "" if figure.low == figure.high else f"{number(figure.low)} to {number(figure.high)}"
    return number(figure.value) + unit, around


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def _effect_name(key: str) -> str:
    moved, _, by = key.partition("_by_")
    return f"{moved} by {by}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
