"""What every reward file on disk keeps to, and every example of docs/rewards.md."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rheostat import plugins
from rheostat.recipe import validate

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
NAMES = plugins.available("rewards")


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_file_has_its_parts(name: str) -> None:
    kind: Any = plugins.load("rewards", name)
    assert dataclasses.is_dataclass(kind.OPTIONS)
    frozen: Any = kind.OPTIONS
    assert frozen.__dataclass_params__.frozen
    assert isinstance(kind.NEEDS_MODEL, bool)
    assert callable(kind.build)
    fields = {field.name for field in dataclasses.fields(kind.OPTIONS)}
    assert set(getattr(kind, "NESTED", ())) <= fields
    assert not fields & {"kind", "model", "higher_is_better", "calibration"}
    assert kind.__doc__ and kind.OPTIONS.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_kind_is_tested(name: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert f"rheostat.rewards.{name}" in source or f'"kind": "{name}"' in source or f"kind: {name}" in source


@pytest.mark.parametrize("name", ["classifier", "guard", "ensemble", "python"])
def test_the_document_tells_every_option(name: str) -> None:
    section = DOCUMENT.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))
    assert told == {field.name for field in dataclasses.fields(plugins.load("rewards", name).OPTIONS)}


def test_every_recipe_in_the_document_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    assert len(blocks) > 4
    count = 0
    for block in blocks:
        for part in re.split(r"(?m)^(?=safety:)", block):
            text = yaml.safe_load(part)
            if not text:
                continue
            rewards = text.get("rewards", text)
            validate({"model": "m", "prompts": "p", "rewards": rewards})
            count += 1
    assert count > 6
