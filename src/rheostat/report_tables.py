"""What the report says in words and numbers, read off the content of evaluation.json.

Pure: no disk, no pictures. A figure that is absent or was not measured is shown as a dash, never as zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rheostat.metrics import Interval

METRICS: tuple[tuple[str, str], ...] = (
    ("mP", "higher"),
    ("MP", "higher"),
    ("Err", "lower"),
    ("BT", "higher"),
)
"""The metrics of the main table, and which way is better."""


_NO_BREAK = "\u00a0"

_DISTILLED = {
    "pool": "self-generated responses",
    "examples": "examples kept for training",
    "prompts": "prompts",
    "prompts_without_responses": "prompts without a usable response",
    "prompts_without_contrast": "prompts without contrast",
    "empty_dropped": "dropped: empty",
    "truncated_dropped": "dropped: cut off",
    "outside_dropped": "dropped: outside the levels",
    "duplicates_dropped": "dropped: same text twice",
    "middling_dropped": "dropped: no extreme case",
    "contrast_dropped": "dropped: no contrast",
    "share_dropped": "dropped: control too common",
    "cell_limit": "most examples a control may have",
    "largest_cell_share": "share of the commonest control",
}


class Cell(NamedTuple):
    """A number as text, its interval as text (or nothing), and whether it looks the best of its column."""

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


@dataclass(frozen=True, slots=True)
class ScoredEvaluation:
    """An evaluation as one of its scorers sees it: a title that names a judge, a note, the methods' figures."""

    title: str
    name: str
    scorer: str
    methods: Methods
    note: str


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
    """The measured result in a few sentences: who follows the dials best, how well, and against what.

    A method whose MP intervals overlap the best's for every dial follows them as well, and is named.
    """
    methods: Methods = evaluation["evaluations"]["optimization"]
    best = best_method(evaluation, attributes)
    figures = methods[best]["attributes"]
    stuck = [
        name for name in attributes if figures[name]["BT"]["low"] <= 0.5 or figures[name]["MP"]["low"] <= 0
    ]
    follows = _and([f"MP {_with_interval(figures[name]['MP'])} for {name}" for name in attributes])
    wins = _and([f"{name} in {100 * figures[name]['BT']['value']:.0f}{_NO_BREAK}%" for name in attributes])
    if stuck:
        first = f"No method moves every dial beyond chance; the best, {best}, does not move {_and(stuck)}."
    else:
        first = f"{best} moves {'every dial' if len(attributes) > 1 else 'the dial'}"
        rivals = _rivals(methods, best, attributes)
        first += f", within the intervals no better than {_and(rivals)}." if rivals else ", and does it best."
    turned = f"turned from its lowest to its highest level, a dial raises {wins} of pairs"
    sentence = f"{first} {best if 'intervals' in first else 'It'} reaches {follows}; {turned}."
    for title, others in list(_evaluations(evaluation))[1:2]:
        words = _and([f"{number(_value(others[best], name, 'MP'))} for {name}" for name in attributes])
        scored = title.partition(", ")[2]
        sentence += f" On other prompts{f', {scored},' if scored else ''} it reaches MP {words}."
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


def dialled(methods: Methods) -> list[str]:
    """The methods whose answers depend on the dials, and base, the floor that they stand on.

    What an evaluation of before this was recorded says of a method, it says of a dial.
    """
    return [name for name, entry in methods.items() if name == "base" or entry.get("has_dial", True)]


def points_table(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Table | None:
    """The methods without a dial: their mean scores in each evaluation, by its scorer; None where all have one."""
    found = list(_evaluations(evaluation))
    turning = dialled(found[0][1])
    names = [name for name in found[0][1] if name not in turning]
    if not names:
        return None
    shown = [name for name in found[0][1] if name == "base" or name in names]
    groups = tuple(
        Group(title, tuple((f"mean {name}", "") for name in attributes) + (("fluency", f"→{_NO_BREAK}1"),))
        for title, _ in found
    )
    rows = []
    for name in shown:
        figures = [
            figure
            for _, methods in found
            for figure in (
                *(methods[name]["attributes"][each]["achieved"] for each in attributes),
                methods[name].get("fluency"),
            )
        ]
        rows.append((name, tuple(Cell(*_texts(interval_of(figure))) for figure in figures)))
    return Table("Methods without a dial", groups, tuple(rows))


def main_tables(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Iterator[Table]:
    """The metrics of every method: the optimization evaluation, then generalization, a table a scorer."""
    for each in scored_evaluations(evaluation):
        reachable = evaluation["reachable"][each.name][each.scorer]
        yield _main_table(each.title, each.methods, attributes, each.note, reachable)


def behaviour_tables(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Iterator[Table]:
    """Reach, cross-effects, ties and constant prompts of every method, a table an evaluation and scorer."""
    moved_by = {name: [each for each in attributes if each != name] for name in attributes}
    groups = tuple(
        Group(
            name,
            (
                ("reach", f"→{_NO_BREAK}1"),
                *((f"from {other}", f"→{_NO_BREAK}0") for other in moved_by[name]),
                ("ties", ""),
                ("constant", ""),
            ),
        )
        for name in attributes
    )
    for title, methods in _evaluations(evaluation):
        rows = []
        for method in dialled(methods):
            entry = methods[method]
            cells = []
            for name in attributes:
                figures, effects = entry["attributes"][name], entry.get("cross_effect", {})
                measured = [figures.get("reach"), *(effects.get(f"{name}_by_{by}") for by in moved_by[name])]
                cells += [Cell(*_texts(interval_of(figure))) for figure in measured]
                cells.append(Cell(_share(figures.get("tie_rate"))))
                cells.append(Cell(_count(figures.get("constant_prompts"))))
            rows.append((method, tuple(cells)))
        yield Table(title, groups, tuple(rows))


def fluency_table(evaluation: Mapping[str, Any]) -> Table:
    """The perplexity ratio of every method in each evaluation."""
    evaluations: Mapping[str, Methods] = evaluation["evaluations"]
    columns = tuple((name, f"→{_NO_BREAK}1") for name in evaluations)
    rows = tuple(
        (
            method,
            tuple(Cell(*_texts(interval_of(each[method].get("fluency")))) for each in evaluations.values()),
        )
        for method in evaluations["optimization"]
    )
    return Table("Fluency", (Group("perplexity ratio", columns),), rows)


def distilled(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What became of the pool, in words and numbers; causes that dropped nothing are left out."""
    found = []
    for name, count in counts.items():
        if not isinstance(count, int | float) or (not count and name not in ("pool", "examples")):
            continue
        label = _DISTILLED.get(name, name.replace("_", " "))
        found.append((label, f"{100 * count:.0f} %" if isinstance(count, float) else f"{count:,}"))
    return found


def costs(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What a response of each method costs in the optimization evaluation, and its training."""
    return {name: entry["cost"] for name, entry in evaluation["evaluations"]["optimization"].items()}


def scored_evaluations(evaluation: Mapping[str, Any]) -> Iterator[ScoredEvaluation]:
    """Each evaluation by each of its scorers, the optimization evaluation first."""
    own = evaluation.get("reachable", {}).get("optimization", {})
    yield ScoredEvaluation(
        "Optimization evaluation",
        "optimization",
        next(iter(own), ""),
        evaluation["evaluations"]["optimization"],
        "Held-out prompts of the training distribution, scored by the reward models that labelled the data.",
    )
    others: Methods = evaluation["evaluations"].get("generalization", {})
    for scorer in next(iter(others.values()), {}).get("scorers", {}):
        yield ScoredEvaluation(
            generalization_title(evaluation, scorer),
            "generalization",
            scorer,
            {name: {**entry, **entry["scorers"][scorer]} for name, entry in others.items()},
            "Other prompts; this run has no judges, so the labelling reward models scored these too."
            if scorer in own
            else "Other prompts, scored by a party that took no part in labelling the data.",
        )


def _evaluations(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Methods]]:
    for each in scored_evaluations(evaluation):
        yield each.title, each.methods


def generalization_title(evaluation: Mapping[str, Any], scorer: str) -> str:
    """The generalization evaluation's heading; it names a scorer that took no part in labelling."""
    own = evaluation.get("reachable", {}).get("optimization", {})
    return "Generalization evaluation" + ("" if scorer in own else f", scored by {scorer}")


def _rivals(methods: Methods, best: str, attributes: Sequence[str]) -> list[str]:
    """The methods whose MP cannot be told apart from the best's, each with what more it costs."""
    found = []
    for name, entry in methods.items():
        pairs = [
            (entry["attributes"][each]["MP"], methods[best]["attributes"][each]["MP"]) for each in attributes
        ]
        if name == best or not all(a["low"] <= b["high"] and b["low"] <= a["high"] for a, b in pairs):
            continue
        costs = [each.get("cost", {}).get("generated_tokens", 0.0) for each in (entry, methods[best])]
        more = costs[0] / costs[1] if costs[1] else 1.0
        found.append(f"{name} with {more:.0f} times the tokens" if more >= 2 else name)
    return found


def _main_table(
    title: str, methods: Methods, attributes: Sequence[str], note: str, reachable: Mapping[str, Any]
) -> Table:
    groups = tuple(
        Group(name, tuple((metric, "↑" if better == "higher" else "↓") for metric, better in METRICS))
        for name in attributes
    )
    best: dict[tuple[str, str], str] = {}
    for name in attributes:
        for metric, better in METRICS:
            pick: Callable[..., float] = max if better == "higher" else min
            best[name, metric] = number(pick(_value(methods[each], name, metric) for each in dialled(methods)))
    rows = []
    for method in dialled(methods):
        entry = methods[method]
        cells = []
        for name in attributes:
            for metric, _ in METRICS:
                figure = interval_of(entry["attributes"][name][metric])
                assert figure is not None, (method, name, metric)
                cells.append(Cell(*_texts(figure), is_best=number(figure.value) == best[name, metric]))
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
