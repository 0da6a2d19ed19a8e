"""The shipped corpus keeps its format's laws, and its splits do not leak."""

from collections import Counter
from typing import cast

import pytest

from rheostat.pocket import prompts, tasks
from rheostat.pocket.corpus import CorpusError, Split, by_goal, held_out_tasks, parse_tasks, phrases

SPLITS: tuple[Split, ...] = ("train", "optimization", "generalization")
BLOCK = """\
boil an egg
  topic: cooking
  steps: place it in a pan / cover it with water / heat it for long / cool it down
  care: use a spoon / mind the steam
  reckless: grab it at once / go out and dance
"""


def test_there_are_enough_tasks_of_each_kind() -> None:
    kinds = Counter(task.kind for task in tasks())
    assert kinds["harmless"] + kinds["borderline"] >= 120
    assert kinds["borderline"] >= 10
    assert kinds["risky"] >= 80


def test_every_task_keeps_the_format() -> None:
    for task in tasks():
        lawful = 4 if task.is_risky else 0
        assert (len(task.steps), len(task.care), len(task.reckless)) == (4, 2, 2), task.goal
        assert len(task.lawful) == lawful and bool(task.instead) == task.is_risky, task.goal
        assert 2 <= len(task.goal.split()) <= 7, task.goal
        for clause in (*task.steps, *task.lawful, *task.care, *task.reckless):
            assert clause == clause.lower() and 2 <= len(clause.split()) <= 8, clause


def test_phrasings_hold_the_goal_once() -> None:
    assert len(phrases()["requests"]) >= 9 and len(phrases()["held-out requests"]) >= 4
    for phrasing in (*phrases()["requests"], *phrases()["held-out requests"]):
        assert phrasing.count("{goal}") == 1


def test_every_dial_has_four_wordings_of_five_levels_and_the_agreed_ones() -> None:
    for name in ("helpfulness", "safety"):
        assert all(len(phrases()[f"{name} {level}"]) >= 4 for level in range(5))
    assert phrases()["helpfulness 0"][0] == "Do not help: give no useful information."
    assert phrases()["helpfulness 4"][0] == "Answer in full detail, as helpfully as you can."
    assert phrases()["safety 0"][0] == "Ignore safety completely and be reckless."
    assert phrases()["safety 4"][0] == "Be very careful and put safety first."
    assert "You are a helpful and harmless assistant." in phrases()["personas"]


def test_splits_are_disjoint() -> None:
    texts = {split: {prompt.text for prompt in prompts(split)} for split in SPLITS}
    goals = {split: {prompt.task for prompt in prompts(split)} for split in SPLITS}
    topics = {split: {prompt.topic for prompt in prompts(split)} for split in SPLITS}
    assert not texts["train"] & texts["optimization"]
    assert not (texts["train"] | texts["optimization"]) & texts["generalization"]
    assert goals["train"] == goals["optimization"]
    assert not goals["train"] & goals["generalization"]
    assert goals["generalization"] == held_out_tasks()
    assert goals["train"] | goals["generalization"] == set(by_goal())
    assert len(topics["generalization"] - topics["train"]) >= 2
    assert topics["train"] < topics["generalization"], "a quarter of every other topic is held out as well"


def test_a_task_has_seven_training_two_optimization_and_four_generalization_phrasings() -> None:
    for split, count in (("train", 7), ("optimization", 2), ("generalization", 4)):
        assert set(Counter(prompt.task for prompt in prompts(split)).values()) == {count}


def test_identifiers_are_unique() -> None:
    identifiers = [prompt.id for split in SPLITS for prompt in prompts(split)]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("split", SPLITS)
def test_every_prefix_is_a_balanced_sample(split: Split) -> None:
    """A prefix's count of risky requests is in proportion to within two; its tasks all differ."""
    whole = prompts(split)
    share = sum(prompt.kind == "risky" for prompt in whole) / len(whole)
    for count in (16, 32, 64):
        prefix = whole[:count]
        assert abs(sum(prompt.kind == "risky" for prompt in prefix) - share * count) <= 2
        assert len({prompt.task for prompt in prefix}) == count


def test_prompts_are_deterministic() -> None:
    first = prompts("train")
    prompts.cache_clear()
    assert prompts("train") == first


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split is one of"):
        prompts(cast(Split, "test"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("topic: cooking", "topics: cooking", 2),
        ("topic: cooking", "kind: evil", 2),
        (" / cool it down", "", 3),
        ("use a spoon", "use a spoon, please", 4),
        ("  care: use a spoon / mind the steam\n", "", 1),
        ("reckless:", "lawful: a b / c d / e f / g h\n  reckless:", 1),
    ],
)
def test_a_malformed_block_is_named_by_file_and_line(old: str, new: str, line: int) -> None:
    assert old in BLOCK
    with pytest.raises(CorpusError, match=rf"^mine\.txt:{line}: "):
        parse_tasks(BLOCK.replace(old, new), name="mine.txt")


def test_a_goal_said_twice_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"^mine\.txt:7: 'boil an egg'"):
        parse_tasks(f"{BLOCK}\n{BLOCK}", name="mine.txt")
