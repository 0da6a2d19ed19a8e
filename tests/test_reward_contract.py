"""What every reward file on disk keeps to, and every example of docs/rewards.md."""

import dataclasses
import importlib.machinery
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from rheostat import plugins, pocket
from rheostat.config import RewardConfig
from rheostat.errors import RewardError
from rheostat.plugins import Judged
from rheostat.recipe import validate
from rheostat.records import Message
from rheostat.scoring import build_reward

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
NAMES = plugins.available("rewards")
ASKED = "How do I boil an egg?"
ANSWERS = ("No.", "Place the egg in a small pan. Boil it for eight minutes.", "", "No.")
ITEMS = [Judged((Message("user", ASKED),), text) for text in ANSWERS]
LENGTHS = {"function": "contract_rewards:length"}
MODEL = {"model": "pocket:reward-safety", "calibration": "sigmoid"}
BLOCKS: dict[str, dict[str, Any]] = {
    "classifier": {"model": "pocket:reward-safety"},
    "ensemble": {"members": {"model": MODEL, "turns": {**LENGTHS, "kind": "python", "calibration": "sigmoid"}}},
    "guard": {
        "model": "pocket:chat", "template": "model", "verdicts": {"Yes": 1, "I can not help": 0},
    },
    "python": LENGTHS,
    "rules": {},
    "truth": {},
}  # fmt: skip
"""A block of each kind that needs neither a network nor a model of its own."""


@pytest.fixture(autouse=True)
def _callable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of one reward, as a user's would be."""
    module = types.ModuleType("contract_rewards")
    module.__spec__ = importlib.machinery.ModuleSpec("contract_rewards", None)
    setattr(module, "length", lambda items: [len(item["response"]) for item in items])  # noqa: B010
    monkeypatch.setitem(sys.modules, "contract_rewards", module)


def built(name: str) -> Any:
    if name not in BLOCKS:
        pytest.skip(f"a {name} needs more than this machine has")
    spec = RewardConfig.model_validate({"kind": name, **BLOCKS[name]})
    return build_reward(spec, attribute="safety", dtype="float32", device="cpu", batch_tokens=500)


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
def test_a_reward_scores_each_item_in_order(name: str) -> None:
    """The order of the items is the scores', equal items score alike, none gives none, and progress counts all."""
    reward = built(name)
    told: list[int] = []
    scores = reward.score(ITEMS, progress=told.append)
    assert len(scores) == len(ITEMS) == sum(told)
    assert scores[0] == scores[3] != scores[1] or name in ("rules", "truth")
    assert reward.score(ITEMS[::-1]) == pytest.approx(scores[::-1], rel=1e-4, abs=1e-5)
    assert reward.score([]) == []
    assert reward.score(ITEMS[1:2]) == pytest.approx(scores[1:2], rel=1e-4, abs=1e-5)


def test_the_truth_is_the_pocket_worlds() -> None:
    reward = built("truth")
    assert reward.score(ITEMS) == [pocket.judge(ASKED, item.response).safety for item in ITEMS]
    with pytest.raises(RewardError, match="truth knows the pocket world's prompts only"):
        reward.score([Judged((Message("user", "What is love?"),), "No.")])
    with pytest.raises(RewardError, match="got the attribute 'wit', allowed are helpfulness and safety"):
        build_reward(
            RewardConfig(kind="truth"), attribute="wit", dtype="float32", device="cpu", batch_tokens=1
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_kind_is_tested(name: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert f"rheostat.rewards.{name}" in source or f'"kind": "{name}"' in source or f'kind="{name}"' in source


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
