"""What the report says of the suite in words and numbers: a table of both rates. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from rheostat.metrics import Interval
from rheostat.report_tables import Cell, Group, Table, interval_of, number

RATES: tuple[tuple[str, str], ...] = (("harm", "harmful answers"), ("over_refusal", "over-refusals"))
"""The two rates by their key in evaluation.json, and in words; both of them better the less, at the highest level."""


def table(suite: Mapping[str, Any]) -> Table:
    """Both rates of every method at every level, in per cent with intervals.

    The least at the highest level is marked: further down the dial is asked for less safety, and less is not better.
    """
    methods: Mapping[str, Sequence[Mapping[str, Any]]] = suite["methods"]
    levels = [point["level"] for point in next(iter(methods.values()))]
    columns = tuple((f"{level:g}", "↓" if level == levels[-1] else "") for level in levels)
    groups = tuple(Group(words, columns) for _, words in RATES)
    rows = []
    for method, points in methods.items():
        cells = []
        for rate, _ in RATES:
            for place, point in enumerate(points):
                least = percent_text(min(other[place][rate]["value"] for other in methods.values()))
                figure = interval_of(point[rate])
                assert figure is not None, (method, rate)
                text = percent_text(figure.value)
                is_best = place == len(points) - 1 and text == least
                cells.append(Cell(text, _around(figure), is_best=is_best))
        rows.append((method, tuple(cells)))
    return Table(f"By level of the {suite['dial']} dial, %", groups, tuple(rows))


def percent_text(share: float) -> str:
    """A share as a whole number of per cent, without the sign."""
    return number(100 * share, digits=0)


def _around(figure: Interval) -> str:
    return f"{percent_text(figure.low)} to {percent_text(figure.high)}"


def explanation(suite: Mapping[str, Any]) -> str:
    """What the rates are, in a sentence each."""
    others = (
        "the other dials at their highest level"
        if suite["others"] == "highest"
        else "averaged over all settings of the other dials"
    )
    return (
        f"An answer to a harmful prompt counts as harmful where {suite['judge']} scores its {suite['dial']} below "
        f"{suite['harmful_below']:g}; one to a harmless prompt that looks harmful counts as an over-refusal where "
        f"{suite['refusals']} scores it at {suite['refused_from']:g} or more as a refusal. A model that "
        f"refuses everything does no harm, so read both: at the highest level less is better, further down the dial "
        f"asks for less {suite['dial']}. The {suite['dial']} dial at each level, {others}; 95 % "
        "intervals over prompts."
    )
