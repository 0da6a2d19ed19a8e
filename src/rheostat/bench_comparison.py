"""One method against all others, figure by figure, beyond the intervals or within them. Pure.

A figure is better *beyond the intervals* where its 95 % interval lies wholly on the better side of the other's. That is
stricter than a test at 5 %: what is called level may still differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rheostat.metrics import Interval
from rheostat.report_tables import METRICS, generalization_title, interval_of
from rheostat.suite_report import RATES

Entries = Mapping[str, Mapping[str, Any]]

DIALLED = ("MP", "BT", "Err")
"""The metrics that say how well a dial works; a method without one has none of them."""


class Column(NamedTuple):
    """A figure of all methods that have it, and which way is better."""

    title: str
    better: Literal["higher", "lower"]
    values: Mapping[str, Interval]


class Verdict(NamedTuple):
    """Who is better and who is worse than one method beyond the intervals, and who is level with it."""

    better: tuple[str, ...]
    level: tuple[str, ...]
    worse: tuple[str, ...]


def columns(evaluation: Mapping[str, Any], attributes: Sequence[str]) -> Iterator[Column]:
    """The figures that methods are compared by.

    In each evaluation the metrics of each dial, cross-effect and fluency; of the suite both rates, its dial fully up.
    """
    for title, entries in evaluations(evaluation):
        place = "" if title == "optimization" else f", {title}"
        dialled = {name: entry for name, entry in entries.items() if entry["has_dial"]}
        for metric, better in METRICS:
            if metric not in DIALLED:
                continue
            for attribute in attributes:
                found = {name: interval_of(entry["attributes"][attribute][metric]) for name, entry in dialled.items()}
                side: Literal["higher", "lower"] = "higher" if better == "higher" else "lower"
                yield Column(f"{metric} {attribute}{place}", side, _known(found))
        yield Column(
            f"cross-effect{place}", "lower", _known({name: cross_effect(each) for name, each in dialled.items()})
        )
        fluency = {name: distance(interval_of(entry.get("fluency")), 1.0) for name, entry in entries.items()}
        yield Column(f"fluency, distance from 1{place}", "lower", _known(fluency))


    if suite := evaluation.get("suite"):
        for rate, words in RATES:
            top = {name: interval_of(points[-1][rate]) for name, points in suite["methods"].items()}
            yield Column(f"{words}, {suite['dial']} fully up", "lower", _known(top))


def evaluations(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Entries]]:
    """The optimization evaluation, then generalization by its first scorer; each a short title and its methods."""
    yield "optimization", evaluation["evaluations"]["optimization"]
    others: Entries = evaluation["evaluations"].get("generalization", {})
    for scorer in list(next(iter(others.values()), {}).get("scorers", {}))[:1]:
        words = generalization_title(evaluation, scorer).partition(", ")[2]
        title = f"other prompts, {words}" if words else "other prompts"
        yield title, {name: {**entry, **entry["scorers"][scorer]} for name, entry in others.items()}


def verdict(column: Column, ours: str) -> Verdict | None:
    """How `ours` stands in a column; None where it has no such figure."""
    own = column.values.get(ours)
    if own is None:
        return None
    groups: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for name, other in column.values.items():
        if name != ours:
            above, below = other.low > own.high, other.high < own.low
            good, bad = (above, below) if column.better == "higher" else (below, above)
            groups["better" if good else "worse" if bad else "level"].append(name)
    return Verdict(**{key: tuple(names) for key, names in groups.items()})


def cross_effect(entry: Mapping[str, Any]) -> Interval | None:
    """The largest of a method's cross-effects by size, as a size, at least 0; None with one dial."""
    sizes = [
        size for figure in entry["cross_effect"].values() if (size := distance(interval_of(figure), 0.0)) is not None
    ]
    return max(sizes, default=None)


def distance(figure: Interval | None, target: float) -> Interval | None:
    """How far a figure is from its ideal, at least 0.

    Worked: 1.1 (0.9 to 1.3) is 0.1 (0 to 0.3) from 1, as 1 lies within; 0.7 (0.6 to 0.8) is 0.3 (0.2 to 0.4) from it.
    """
    if figure is None:
        return None
    ends = sorted((abs(figure.low - target), abs(figure.high - target)))
    return Interval(
        abs(figure.value - target), 0.0 if figure.low <= target <= figure.high else ends[0], ends[1]
    )


def unmatched(entries: Entries, ours: str, attributes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the methods without a dial those that some setting of `ours` matches in all mean scores, and the others."""
    settings = [each["achieved"] for each in entries[ours]["settings"]]
    matched: list[str] = []
    others: list[str] = []
    for name, entry in entries.items():
        if entry["has_dial"] or name == ours:
            continue
        point = {each: entry["attributes"][each]["achieved"]["value"] for each in attributes}
        is_matched = any(all(landing[each] >= point[each] for each in attributes) for landing in settings)
        (matched if is_matched else others).append(name)
    return matched, others


def _known(values: Mapping[str, Interval | None]) -> dict[str, Interval]:
    return {name: value for name, value in values.items() if value is not None}
