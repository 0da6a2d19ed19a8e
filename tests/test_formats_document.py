"""docs/formats.md and docs/metrics.md say what the code does."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from rheostat import calibration, fine_tuning, metrics, online_trainer, records
from rheostat.config import SuiteConfig
from rheostat.grid import Grid
from rheostat.method_suffixes import SUFFIXES
from rheostat.mixing import ClassCounts
from rheostat.pairing import PairCounts
from rheostat.records import (
    EvaluationRow,
    Example,
    ForgeryRow,
    Pair,
    Prompt,
    Record,
    Response,
    ScoredResponse,
    SuiteRow,
)
from rheostat.suite_figures import method_rates

DOCS = Path(__file__).resolve().parents[1] / "docs"
FORMATS = (DOCS / "formats.md").read_text(encoding="utf-8")
ROW_TYPES: list[type[Record]] = [Prompt, Response, ScoredResponse, Example, Pair, EvaluationRow, SuiteRow, ForgeryRow]


def table_under(heading: str) -> dict[str, str]:
    """The first two columns of the table under a heading, first by its back-quoted name."""
    rows = [line.strip("|").split(" | ") for line in section(heading).splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[1].strip() for row in rows}


def section(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", FORMATS, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def test_no_row_type_is_forgotten() -> None:
    found = {name for name, each in inspect.getmembers(records, inspect.isclass) if "columns" in vars(each)}
    assert found == {each.__name__ for each in ROW_TYPES}


@pytest.mark.parametrize("row_type", ROW_TYPES, ids=lambda each: str(each.__name__))
def test_every_row_type_is_documented_column_by_column(row_type: type[Record]) -> None:
    names = {
        "string": "string",
        "int64": "int64",
        "double": "double",
        "map<string, double>": "map<string, double>",
        "list<element: struct<role: string, content: string>>": "list<struct<role: string, content: string>>",
        "list<item: struct<role: string, content: string>>": "list<struct<role: string, content: string>>",
    }
    expected = {field.name: names[str(field.type)] for field in records.schema(row_type)}
    documented = table_under(row_type.__name__)
    assert list(documented.items()) == list(expected.items())


def test_every_key_of_a_method_is_documented() -> None:
    requested = np.array([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])
    grid = Grid(("helpfulness", "safety"), (0.0, 1.0), requested, requested * 0.9)
    found = metrics.evaluate(grid, resamples=1, seed=0).to_json()
    documented = table_under("evaluation.json")
    for key in found["attributes"]["safety"]:
        assert f"attributes.ATTRIBUTE.{key}" in documented
        assert f'"{key}"' in FORMATS
    assert set(found) == {"attributes", "cross_effect"}
    assert "safety_by_helpfulness" in found["cross_effect"] and "`safety_by_helpfulness`" in FORMATS


def test_every_key_of_the_suite_is_documented() -> None:
    rows = [
        SuiteRow(kind, kind, {"safety": level}, "", 1, "stop", 1, 0.0, 1.0)
        for kind in ("harmful", "harmless")
        for level in (0.0, 1.0)
    ]
    points = method_rates(rows, SuiteConfig(prompts="x.csv"), resamples=1, seed=0)
    documented = {name for name in table_under("evaluation.json") if name.startswith("suite.methods.METHOD.")}
    assert documented == {f"suite.methods.METHOD.{key}" for key in points[0]}


def test_a_method_row_names_every_suffix() -> None:
    row = next(line for line in FORMATS.splitlines() if line.startswith("| METHOD |"))
    for suffix in SUFFIXES:
        assert ("a dial's name" if suffix.form == "+DIAL" else f"`{suffix.form}`") in row, suffix.form


def test_no_table_is_cut_in_two() -> None:
    """A table begins with its head: no row stands after a blank line without one."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", FORMATS)]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert tables and all(set(table[1]) <= set("|-") for table in tables), "a table without its head"


def test_every_count_of_a_training_is_documented() -> None:
    """What the two trainers give as their figures, read off their source: a training takes too long for that."""
    documented = set(re.findall(r"`(\w+)`", section("What a stage's summary counts")))
    for module in (fine_tuning, online_trainer):
        source = inspect.getsource(module)
        returned = re.search(r"    return \{\n(        \"steps\".*?)\n    \}", source, re.DOTALL)
        assert returned is not None, module
        assert set(re.findall(r"^        \"(\w+)\":", returned[1], re.MULTILINE)) <= documented
    assert {field.name for field in fields(PairCounts)} <= documented
    assert {field.name for field in fields(ClassCounts)} <= documented


def test_every_key_of_a_calibrator_is_documented() -> None:
    keys = json.loads(json.dumps(calibration.fit("quantile", [1.0, 2.0]).to_json()))
    documented = {name.strip(" `") for names in table_under("calibration.json") for name in names.split(",")}
    assert documented == set(keys)


def test_a_constant_answer_in_the_middle_has_the_err_that_metrics_md_says() -> None:
    """Levels 0, ¼, ½, ¾, 1 are ½, ¼, 0, ¼, ½ away from ½: 1.5 / 5 = 0.3."""
    levels = (0.0, 0.25, 0.5, 0.75, 1.0)
    requested = np.array([[[level] for level in levels]])
    grid = Grid(("safety",), levels, requested, np.full_like(requested, 0.5))
    assert metrics.mean_absolute_error(grid, "safety") == pytest.approx(0.3)
    assert "0.3 for a constant answer at 0.5" in (DOCS / "metrics.md").read_text(encoding="utf-8")
