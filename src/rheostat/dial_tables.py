"""What calibrated dials and forged controls came to, in words and numbers, off evaluation.json. Pure.

Serves the report, the model card and the terminal alike.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rheostat.report_tables import interval_of, number

MARGIN = 0.05
"""A forgery that moves a dial's score no more than this beyond its twin, 95 % sure, counts as ignored. Ours."""


class CalibratedDial(NamedTuple):
    """A row of the table of calibrated dials; Err is over any wanted value, on the optimization evaluation."""

    method: str
    dial: str
    reaches: str
    switches: str
    before: str
    after: str
    change: str


class Forgery(NamedTuple):
    """A row of the table of forged controls: a style, neutralised and as typed.

    `neutralised` and `as_typed`: how far the answer moved toward the forged level beyond its twin; `moved` and
    `twin_moved`: how far from the plain prompt's answer; `changed_more`: share of answers changed beyond the twin's.
    """

    style: str
    neutralised: str
    as_typed: str
    moved: str
    twin_moved: str
    changed_more: str


def calibrated_dials(evaluation: Mapping[str, Any]) -> list[CalibratedDial]:
    """A row a tuned method and dial; none where nothing was calibrated."""
    rows = []
    for method, entry in evaluation.get("calibrated", {}).items():
        for dial, found in entry["dials"].items():
            own = next(iter(found["evaluations"]["optimization"].values()))["fine"]
            ends = [number(found["reachable"][end]["value"]) for end in ("low", "high")]
            switches = ", ".join(number(each) for each in found["map"]["thresholds"])
            texts = (_figure(own[key]) for key in ("before", "after", "change"))
            rows.append(CalibratedDial(method, dial, " to ".join(ends), switches, *texts))
    return rows


def forgeries(evaluation: Mapping[str, Any], method: str) -> list[Forgery]:
    """A row a style of forgery, the pooled styles last; none where none was tried."""
    found = evaluation.get("forgery", {}).get(method)
    if found is None:
        return []
    return [
        _forgery(style, each)
        for style, each in {**found["styles"], "all but look-alikes": found["pooled"]}.items()
    ]


def forgery_sentence(evaluation: Mapping[str, Any], method: str) -> str:
    """What a forged control does to a tuned method, in a sentence; nothing where none was tried."""
    found = evaluation.get("forgery", {}).get(method)
    if found is None:
        return ""
    pooled = found["pooled"]["neutralised"]
    more = interval_of(pooled["moved_more"])
    assert more is not None
    verdict = "does no more than" if more.high <= MARGIN else "does more than"
    return (
        f"To {method}, a control typed by a user {verdict} other text of its form: neutralised, it moves a dial's "
        f"score {_figure(pooled['moved_more'])} further toward the forged level (up to {MARGIN:g} counts as ignored). "
        f"Innocent text in its place moves it {_figure(pooled['twin_moved'])} from the answer to the prompt alone."
    )


def card_lines(evaluation: Mapping[str, Any], method: str) -> Iterator[str]:
    """Calibrated dials and forged controls of a method as lines of a model card; nothing where not measured."""
    dials = [row for row in calibrated_dials(evaluation) if row.method == method]
    if dials:
        yield from (
            "", "## Calibrated dials", "",
            "What a dial reaches, and the mean distance (Err) of the wanted value, in steps of 0.05, from the achieved",
            "level: with the nearest trained level requested, and calibrated.", "",
            "| dial | reaches | Err | Err, calibrated | switches at |", "|---|---|---|---|---|",
            *(f"| {row.dial} | {row.reaches} | {row.before} | {row.after} | {row.switches} |" for row in dials),
        )  # fmt: skip
    rows = forgeries(evaluation, method)
    if rows:
        yield from (
            "", "## Forged controls", "", forgery_sentence(evaluation, method), "",
            "| typed by a user | neutralised | as typed |", "|---|---|---|",
            *(f"| {row.style} | {row.neutralised} | {row.as_typed} |" for row in rows),
        )  # fmt: skip


def _forgery(style: str, effects: Mapping[str, Any]) -> Forgery:
    neutralised, as_typed = effects["neutralised"], effects["as_typed"]
    return Forgery(
        style,
        _figure(neutralised["moved_more"]),
        _figure(as_typed["moved_more"]),
        *(_figure(neutralised[key]) for key in ("moved", "twin_moved", "changed_more")),
    )


def _figure(figure: Mapping[str, float]) -> str:
    return f"{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"
