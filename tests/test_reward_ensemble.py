"""Ensembles and callables as rewards: hand numbers, refusals, and what is stored and invalidated."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import calibration, pipeline
from rheostat.calibration import Calibrator
from rheostat.config import RewardConfig
from rheostat.errors import ConfigError, RewardError
from rheostat.plugins import Judged
from rheostat.recipe import validate
from rheostat.records import Message, ScoredResponse
from rheostat.reward_tree import identify, load_problems
from rheostat.rewards.ensemble import EnsembleReward, Member, combined
from rheostat.rundir import RunDirectory
from rheostat.scoring import build_reward, raw_columns

ITEMS = [Judged((Message("user", "hi"),), text) for text in ("a", "bb", "cccc")]
MEMBERS = {
    "length": {"kind": "python", "function": "my_rewards:length", "calibration": "sigmoid"},
    "vowels": {"kind": "python", "function": "my_rewards:vowels", "calibration": "identity"},
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of rewards in the working directory."""
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "def length(items):\n    return [len(item['response']) - 2 for item in items]\n"
        "def vowels(items):\n    return [float('a' in item['response']) for item in items]\n"
        "def turns(items):\n    return [item['messages'][0]['content'] == 'hi' for item in items]\n"
        "def short(items):\n    return [1.0]\ndef nothing(items):\n    return None\n"
        "def words(items):\n    return ['high' for _ in items]\nconstant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield path
    sys.path[:] = before
    sys.modules.pop("my_rewards", None)


def reward(block: Any) -> Any:
    spec = RewardConfig.model_validate(block)
    return build_reward(spec, attribute="safety", dtype="float32", device="cpu", batch_tokens=1000)


def problems(block: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate({"model": "m", "prompts": "p", "rewards": {"safety": block}})
    return caught.value.problems


@dataclass
class Fixed:
    """A reward that says what it is told to."""

    values: list[float]

    def score(self, items: Any, *, progress: Any = None) -> list[float]:
        return self.values


def member(values: list[float], kind: Any, weight: float = 1.0, *, higher_is_better: bool = True) -> Member:
    fixed: Calibrator = calibration.fit(kind, [0.5], higher_is_better=higher_is_better)
    return Member(Fixed(values), fixed, weight)


def test_members_are_put_on_one_scale_and_weighed() -> None:
    """Logit 0 is .5, and .8 that is better lower is .2; 3 to 1 they give (1.5 + .2) / 4 = .425, at least .2."""
    members = {
        "logit": member([0.0, 0.0], "sigmoid", 3.0),
        "risk": member([0.8, 0.5], "identity", higher_is_better=False),
    }
    told: list[int] = []
    weighted = EnsembleReward(members, "weighted").score_parts(ITEMS[:2], progress=told.append)
    assert weighted.combined == pytest.approx([0.425, 0.5])
    assert weighted.parts == {"logit": [0.0, 0.0], "risk": [0.8, 0.5]}
    assert told == [2]
    assert EnsembleReward(members, "minimum").score(ITEMS[:2]) == pytest.approx([0.2, 0.5])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 100)), min_size=2, max_size=5))
def test_a_mean_lies_between_the_least_and_the_most(members: list[tuple[float, float]]) -> None:
    scores, weights = zip(*members, strict=True)
    mean = combined(scores, weights, "weighted")
    assert combined(scores, weights, "minimum") == min(scores) <= mean + 1e-12
    assert mean <= max(scores) + 1e-12


def test_an_ensemble_of_callables_and_of_ensembles(module: Path) -> None:
    block = {"kind": "ensemble", "members": MEMBERS, "weights": {"vowels": 3}}
    scores = reward(block).score(ITEMS)
    expected = [(0.2689414 + 3) / 4, 0.5 / 4, 0.8807971 / 4]
    assert scores == pytest.approx(expected, abs=1e-6)
    outer = {
        "kind": "ensemble",
        "combine": "minimum",
        "members": {"both": {**block, "calibration": "identity"}, "vowels": MEMBERS["vowels"]},
    }
    columns = raw_columns({"safety": reward(outer)}, ITEMS)
    assert sorted(columns) == [
        "safety", "safety/both", "safety/both/length", "safety/both/vowels", "safety/vowels"
    ]  # fmt: skip
    assert columns["safety/both/length"] == [-1.0, 0.0, 2.0]
    assert columns["safety/both"] == scores
    assert columns["safety"] == pytest.approx([min(scores[0], 1.0), 0.0, 0.0])


def test_a_member_outside_its_declared_range_is_an_error(module: Path) -> None:
    block = {"kind": "ensemble", "members": {**MEMBERS, "length": {**MEMBERS["length"], "calibration": "identity"}}}
    with pytest.raises(RewardError, match=r"identity calibration: got .* outside \[0, 1\]"):
        reward(block).score(ITEMS)


def test_all_that_is_wrong_with_members_is_said_at_once() -> None:
    found = problems(
        {
            "kind": "ensemble",
            "members": {
                "one": {"kind": "clasifier", "calibration": "sigmoid"},
                "two": {"kind": "guard", "model": "m", "style": "qwen3gard", "calibration": "sigmoid"},
                "three": {"model": "m", "lable": 1, "calibration": "sigmoid"},
                "four": {"kind": "classifier", "calibration": "sigmoid"},
            },
        }
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "rewards.safety.members.one.kind", "rewards.safety.members.two", "rewards.safety.members.three.lable",
        "rewards.safety.members.four",
    ]  # fmt: skip
    assert "did you mean 'classifier'?" in found[0] and "did you mean 'qwen3guard'?" in found[1]
    assert "did you mean 'label'?" in found[2] and "a classifier needs one" in found[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {"a": "m"}}, "got 1 members, allowed are two or more"),
        ({"members": {"a": "m", "b": "m"}}, "members.a: got calibration None, allowed are sigmoid and identity"),
        ({"weights": {"lenght": 1}}, "got a weight for 'lenght', allowed are length, vowels (did you mean 'length'?)"),
        ({"weights": {"length": 0}}, "got the weight 0.0 for 'length', allowed are numbers above 0"),
        ({"weights": {"length": 1}, "combine": "minimum"}, "got weights for the minimum, allowed is none"),
        ({"combine": "mean"}, "rewards.safety.combine: got 'mean'"),
        ({"memebers": {}}, "rewards.safety.memebers: unknown key (did you mean 'members'?)"),
    ],
)
def test_bad_options_are_refused_with_the_recipe(changes: dict[str, Any], message: str) -> None:
    [problem] = problems({"kind": "ensemble", "members": MEMBERS, **changes})
    assert message in problem


def test_members_count_in_what_identifies_a_reward(module: Path) -> None:
    def spec(**changes: Any) -> RewardConfig:
        members = {**MEMBERS, "model": {"model": "pocket:reward-safety", "calibration": "sigmoid"}}
        return RewardConfig.model_validate({"kind": "ensemble", "members": members, **changes})

    before = identify(spec())
    plain = RewardConfig(model="pocket:reward-safety")
    assert before["nested"]["members.model"]["files"] == identify(plain)["files"]
    assert identify(spec()) == before != identify(spec(combine="minimum"))
    module.write_text(module.read_text() + "# edited\n")
    assert identify(spec()) != before
    assert sorted(identify(plain)) == ["calibration", "files", "higher_is_better", "kind", "model"]


def test_a_missing_member_is_told_before_anything_is_loaded(module: Path) -> None:
    members = {
        "gone": {"model": "./gone", "calibration": "sigmoid"},
        "typo": {**MEMBERS["length"], "function": "my_rewards:lenght"},
    }
    spec = RewardConfig.model_validate({"kind": "ensemble", "members": members})
    found = list(load_problems("rewards.safety", spec))
    assert found[0] == "rewards.safety.members.gone: ./gone: no such folder"
    assert found[1].startswith("rewards.safety.members.typo: function: got 'my_rewards:lenght'")
    assert "my_rewards has no 'lenght' (did you mean 'length'?)" in found[1]


def test_a_callable_by_its_short_name(module: Path) -> None:
    config = validate({"model": "m", "prompts": "p", "rewards": {"safety": "python:my_rewards:turns"}})
    spec = config.rewards["safety"]
    assert (spec.kind, spec.model) == ("python", None)
    told: list[int] = []
    found = build_reward(spec, attribute="safety", dtype="float32", device="cpu", batch_tokens=1)
    assert found.score(ITEMS, progress=told.append) == [1.0, 1.0, 1.0]
    assert sum(told) == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", "my_rewards:short: got 1 scores for 3 items, allowed is one an item"),
        ("nothing", "my_rewards:nothing: got NoneType, allowed is a list of 3 numbers"),
        ("words", "my_rewards:words: got the score 'high' for the response 'a', allowed are finite numbers"),
    ],
)
def test_what_a_callable_gives_is_checked(module: Path, function: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        reward({"kind": "python", "function": f"my_rewards:{function}"}).score(ITEMS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_rewards:constant", "which is int, allowed is a callable"),
        ("my_rewarts:length", "there is no module 'my_rewarts' in the working directory"),
        ("my_rewards.deeper:length", "there is no module 'my_rewards.deeper'"),
    ],
)
def test_a_callable_that_is_not_there(module: Path, function: str, message: str) -> None:
    [problem] = load_problems("rewards.safety", RewardConfig.model_validate({"kind": "python", "function": function}))
    assert message in problem


def test_a_callable_is_named_with_its_module() -> None:
    [problem] = problems("python:my_rewards")
    assert "got 'my_rewards', allowed is MODULE:FUNCTION, as in my.module:function" in problem


def test_each_member_is_stored_through_a_run(module: Path) -> None:
    """Generated and scored on the pocket world; what was scored stays, until the module is edited."""
    recipe = {
        "model": "pocket:chat",
        "prompts": {"train": "pocket:train", "train_limit": 4},
        "rewards": {
            "helpfulness": "python:my_rewards:length",
            "safety": {
                "kind": "ensemble",
                "members": {"model": {"model": "pocket:reward-safety", "calibration": "sigmoid"}, **MEMBERS},
            },
        },
        "methods": ["base"],
        "device": "cpu",
        "batch_tokens": 4096,
        "generate": {"samples": 2, "max_tokens": 8},
    }
    out = module.parent / "run"

    def scored() -> tuple[list[ScoredResponse], dict[str, Any], str]:
        pipeline.stage("score", out)
        with RunDirectory.open(out, read_only=True) as directory:
            stage = directory.finished("score")
            return stage.read(ScoredResponse), stage.summary, stage.fingerprint

    pipeline.start(validate(recipe), out)
    rows, summary, before = scored()
    parts = {"safety/model", "safety/length", "safety/vowels"}
    for row in rows:
        assert set(row.raw) == {"helpfulness", "safety"} | parts
        assert set(row.calibrated) == {"helpfulness", "safety"}
        mapped = [calibration.fit("sigmoid", [0.5]).apply(row.raw[name]) for name in ("safety/model", "safety/length")]
        assert row.raw["safety"] == pytest.approx((sum(map(float, mapped)) + row.raw["safety/vowels"]) / 3)
    assert set(summary["parts"]) == parts
    lengths = [row.raw["safety/length"] for row in rows]
    assert summary["parts"]["safety/length"]["high"] == max(lengths)
    assert scored() == (rows, summary, before)
    module.write_text(module.read_text() + "# edited\n")
    assert scored()[2] != before
