"""What the report says of rounds in words and numbers, off evaluation.json. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from rheostat.report_tables import Cell, interval_of, number

COLUMNS = (("lowest", "↓"), ("highest", "↑"), ("reach", "→\u00a01"), ("MP", "↑"), ("BT", "↑"), ("Err", "↓"))
"""Of a dial after each round, and which way is better."""


class RoundsTable(NamedTuple):
    """A method after each of its rounds, as one scorer sees it: a row a round, of each dial the `COLUMNS`, fluency."""

    title: str
    dials: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


class CellCounts(NamedTuple):
    """The cells of the control grid: their control text and of each round what `headings` say."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


class RoundsSection(NamedTuple):
    """All that the report says of a method of several rounds."""

    sentence: str
    tables: tuple[RoundsTable, ...]
    cells: CellCounts


def sections(evaluation: Mapping[str, Any]) -> dict[str, RoundsSection]:
    """By method of several rounds what there is to say; empty where there is none."""
    return {
        method: RoundsSection(
            sentence(evaluation, method), tuple(tables(evaluation, method)), cell_counts(evaluation, method)
        )
        for method in evaluation.get("rounds", {})
    }


def tables(evaluation: Mapping[str, Any], method: str) -> Iterator[RoundsTable]:
    """The rounds of a method in each evaluation, a table a scorer; rounds that were not evaluated have dashes."""
    rounds: Sequence[Mapping[str, Any]] = evaluation["rounds"][method]
    for name, scorers in rounds[-1]["ends"].items():
        for scorer, dials in scorers.items():
            rows = tuple(
                (f"round {each['round']}", tuple(_cells(evaluation, each, name, scorer, tuple(dials))))
                for each in rounds
            )
            title = f"{name.capitalize()} evaluation" + (f", scored by {scorer}" if len(scorers) > 1 else "")
            yield RoundsTable(title, tuple(dials), rows)


def _cells(
    evaluation: Mapping[str, Any], each: Mapping[str, Any], name: str, scorer: str, dials: Sequence[str]
) -> Iterator[Cell]:
    if each["method"] is None:
        yield from [Cell("–")] * (len(COLUMNS) * len(dials) + 1)
        return
    entry = evaluation["evaluations"][name][each["method"]]
    own = entry.get("scorers", {}).get(scorer, entry)["attributes"]
    for dial in dials:
        ends = each["ends"][name][scorer][dial]
        for figure in (ends["low"], ends["high"], *(own[dial].get(key) for key in ("reach", "MP", "BT", "Err"))):
            yield _cell(figure)
    yield _cell(entry["fluency"])


def _cell(figure: Any) -> Cell:
    found = interval_of(figure)
    if found is None:
        return Cell("–")
    around = "" if found.low == found.high else f"{number(found.low)} to {number(found.high)}"
    return Cell(number(found.value), around)


def cell_counts(evaluation: Mapping[str, Any], method: str) -> CellCounts:
    """How many examples each control had in each round; of a further round also what was asked for and came out."""
    rounds: Sequence[Mapping[str, Any]] = evaluation["rounds"][method]
    headings: list[str] = []
    columns: list[Mapping[str, int]] = []
    for each in rounds:
        if each["round"] > 1:
            headings += [f"round {each['round']} asked", "of these came out so", "came out so in all"]
            columns += [each[key] for key in ("cells_asked", "cells_hit", "cells_landed")]
        headings.append(f"round {each['round']} examples")
        columns.append(each["cells"])
    controls = rounds[-1]["cells_asked"]
    rows = tuple((control, tuple(f"{column.get(control, 0):,}" for column in columns)) for control in controls)
    return CellCounts(tuple(headings), rows)


def sentence(evaluation: Mapping[str, Any], method: str) -> str:
    """How full the thinnest controls were before and after, and what it cost.

    A control is thin where it holds less than half of the mean of the first round's.
    """
    rounds: Sequence[Mapping[str, Any]] = evaluation["rounds"][method]
    controls = list(rounds[-1]["cells_asked"])
    first, last = ([each["cells"].get(control, 0) for control in controls] for each in (rounds[0], rounds[-1]))
    half = mean(first) / 2
    thin = [sum(count < half for count in counts) for counts in (first, last)]
    seconds = sum(sum(each["seconds"].values()) for each in rounds[1:])
    hits, asked = (
        sum(sum(each[key].values()) for each in rounds[1:]) for key in ("cells_hit", "cells_asked")
    )
    return (
        f"Thin controls, which hold under half of the mean, {half:.3g} examples: {thin[0]} of {len(controls)} before, "
        f"{thin[1]} after; the thinnest held {min(first):,} and then {min(last):,}. Of {asked:,} answers "
        f"{100 * hits / asked:.0f} % came out under the control that they were asked for. The further rounds took "
        f"{seconds:.0f} seconds in all."
    )
