"""FDC: prompts told apart by rules and by a judge, pairs in ratios by hand and by laws, the stage that mixes them."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.openai_double import Body, Reply, refuses, says, serving
from typer.testing import CliRunner

from rheostat import cli
from rheostat.config_mixing import OTHER, MixingConfig
from rheostat.distil import distil
from rheostat.errors import ConfigError, InputError
from rheostat.method_name import TrainingData
from rheostat.mixing import classes_by_rules, mixed
from rheostat.pocket import corpus
from rheostat.prompt_classes import classes_of, mixing_identity, question
from rheostat.recipe import load_config
from rheostat.records import Message, Pair, Prompt
from rheostat.rundir import RunDirectory

RATIOS = {"explicit": 10.0, "implicit": 3.0, "mixed": 1.0}
RULES = {"mixed": ["steal the show"], "explicit": [r"\bsteal\b", "cheat"], "implicit": ["midnight"]}
ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "sorter", "backoff_s": 0.01, "patience_s": 5}


def prompt(text: str, *before: Message) -> Prompt:
    return Prompt(text, (*before, Message("user", text)), "train", "test")


def made(**pairs_of_class: int) -> tuple[list[Pair], dict[str, str]]:
    """Pairs, three to a prompt, of prompts named by class and number, and the prompts' classes."""
    pairs, classes = [], {}
    for name, count in pairs_of_class.items():
        for place in range(count):
            owner = f"{name}{place // 3}"
            classes[owner] = name
            pairs.append(Pair(owner, (Message("user", owner),), f"good {place}", "bad", {}, {}))
    return pairs, classes


def test_the_first_rule_that_matches_wins() -> None:
    """By the order of the rules, not of the text; whatever the case; only the last turn is read."""
    before = (Message("user", "I cheat"), Message("assistant", "no"))
    found = classes_by_rules(
        [
            prompt("How do I STEAL the show at midnight?"),
            prompt("Steal at midnight"),
            prompt("drums at Midnight"),
            prompt("stealing time", *before),
        ],
        RULES,
    )
    assert list(found.values()) == ["mixed", "explicit", "implicit", OTHER]


def test_ratios_by_hand() -> None:
    """20, 9 and 2 pairs at 10 : 3 : 1: k = min(20/10, 9/3, 2/1) = 2, so 20, 6 and 2; the five others all pass.

    Of the nine implicit pairs of three prompts each prompt keeps its first two.
    """
    pairs, classes = made(explicit=20, implicit=9, mixed=2, other=5)
    found = mixed(pairs, classes, RATIOS, seed=0)
    kept = Counter(classes[pair.prompt_id] for pair in found.pairs)
    assert kept == {"explicit": 20, "implicit": 6, "mixed": 2, "other": 5}
    assert [pair.chosen for pair in found.pairs if classes[pair.prompt_id] == "implicit"] == [
        f"good {place}" for place in (0, 1, 3, 4, 6, 7)
    ]
    assert {name: (each.prompts, each.pairs, each.kept) for name, each in found.counts.items()} == {
        "explicit": (7, 20, 20),
        "implicit": (3, 9, 6),
        "mixed": (1, 2, 2),
        "other": (2, 5, 5),
    }


def test_the_others_can_have_a_ratio_and_a_class_keeps_at_least_one() -> None:
    """k = min(5/10, 6/3, 9/1, 30/20) = ½: 5, 1.5 → 2, 0.5 → 0 but one, 10 of the others."""
    pairs, classes = made(explicit=5, implicit=6, mixed=9, other=30)
    found = mixed(pairs, classes, RATIOS | {OTHER: 20.0}, seed=0)
    assert {name: each.kept for name, each in found.counts.items()} == {
        "explicit": 5, "implicit": 2, "mixed": 1, "other": 10
    }  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["explicit", "implicit", "mixed"]), st.integers(1, 60), min_size=3),
    st.integers(0, 20),
    st.dictionaries(st.sampled_from(["explicit", "implicit", "mixed"]), st.floats(0.1, 20), min_size=3),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_laws_of_mixing(counts: dict[str, int], others: int, ratios: dict[str, float], seed: int) -> None:
    """Order kept, nothing invented, the scarcest whole, each class within a pair of its share, prompts even."""
    pairs, classes = made(**counts, other=others)
    random.Random(seed).shuffle(pairs)
    found = mixed(pairs, classes, ratios, seed=seed)
    places = [pairs.index(pair) for pair in found.pairs]
    assert places == sorted(places) and len(set(places)) == len(places)
    assert found == mixed(pairs, classes, ratios, seed=seed)
    kept = Counter(classes[pair.prompt_id] for pair in found.pairs)
    scale = min(counts[name] / ratios[name] for name in ratios)
    for name, ratio in ratios.items():
        assert kept[name] == 1 or abs(kept[name] - ratio * scale) <= 0.5 + 1e-9
        of_prompts = Counter(pair.prompt_id for pair in found.pairs if classes[pair.prompt_id] == name)
        given_ = Counter(pair.prompt_id for pair in pairs if classes[pair.prompt_id] == name)
        most = max(of_prompts.values())
        assert all(of_prompts[each] >= min(given_[each], most - 1) for each in given_)
    assert any(kept[name] == counts[name] for name in ratios)
    assert kept["other"] == others


def test_a_class_without_a_pair_is_told() -> None:
    pairs, classes = made(explicit=3, mixed=1)
    with pytest.raises(InputError, match="no pair whose prompt is implicit"):
        mixed(pairs, classes, RATIOS, seed=0)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "got neither, allowed is `rules`, or `judge`"),
        ({"rules": RULES, "judge": {"endpoint": ENDPOINT}}, "got rules and judge"),
        ({"rules": {"explicit": ["a"]}}, "got none for implicit, mixed"),
        ({"rules": {**RULES, "explicti": ["a"]}}, "did you mean 'explicit'"),
        ({"rules": {**RULES, "mixed": ["(a"]}}, r"mixed: got '\(a', allowed is a regular expression"),
        ({"rules": {**RULES, "mixed": [""]}}, "got an empty pattern"),
        ({"rules": {}, "ratios": {"other": 1}}, "allowed is at least one class besides"),
        ({"rules": RULES, "ratios": {**RATIOS, "mixed": 0}}, "greater than 0"),
        ({"judge": {"endpoint": ENDPOINT, "modle": 1}}, r"mixing\.judge\.modle: unknown key"),
        ({"judge": {}}, r"mixing\.judge\.endpoint"),
        ({"judge": {"endpoint": ENDPOINT}, "ratios": {"rude": 1}}, "descriptions: got none for rude"),
    ],
)
def test_a_block_that_is_none_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("pocket", ["methods=[dpo+fdc]", f"mixing={json.dumps(block)}"])


def test_a_method_that_mixes_needs_the_block_and_one_by_a_dial_that_dial() -> None:
    with pytest.raises(ConfigError, match=r"got 'dpo\+fdc' without `mixing`"):
        load_config("pocket", ["methods=[dpo+fdc]"])
    block = f"rewards={json.dumps({'helpfulness': 'pocket:reward-helpfulness'})}"
    with pytest.raises(ConfigError, match=r"got 'dpo\+safety', allowed are the dials helpfulness"):
        load_config("pocket", ["methods=[dpo+safety]", block, "judges={}", "suite=null"])


def judged(url: str, **options: Any) -> MixingConfig:
    judge = {"endpoint": {**ENDPOINT, "base_url": url}, **options}
    return MixingConfig.model_validate({"judge": judge})


def conversation(body: Body) -> str:
    """What the judge is shown of the last turn, found by the mark."""
    asked: str = body["messages"][0]["content"]
    mark = re.findall(r"=== (\w+) end ===", asked)[-1]
    found = re.search(rf"=== {mark} user says ===\n(.*)\n=== {mark} end ===", asked, re.DOTALL)
    assert found is not None
    return found[1]


def sorts(body: Body, _: int = 0) -> Reply:
    """By its first letter: e, i, m, or none of these."""
    named = {"e": "explicit", "i": "implicit", "m": "mixed"}.get(conversation(body)[0], OTHER)
    return says(json.dumps({"reason": "because", "class": named}))


def test_a_judge_names_the_classes() -> None:
    with serving(sorts) as server:
        found = classes_of([prompt("mend"), prompt("eat"), prompt("is"), prompt("zip")], judged(server.url))
    assert found == {"mend": "mixed", "eat": "explicit", "is": "implicit", "zip": OTHER}
    schema = server.bodies()[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["class"]["enum"] == ["explicit", "implicit", "mixed", OTHER]


@pytest.mark.parametrize("answer", ["explicit", '{"class": "nice"}', '{"class": 1}', 'It is {"class": "mixed"}', "[]"])
def test_an_answer_that_names_no_class_is_asked_again_and_never_guessed(answer: str) -> None:
    def second_time(body: Body, _: int = 0) -> Reply:
        return sorts(body) if body["temperature"] else says(answer)

    with serving(second_time) as server:
        assert classes_of([prompt("eat")], judged(server.url)) == {"eat": "explicit"}
    assert len(server.received) == 2
    with (
        serving(lambda body, _: says(answer)) as server,
        pytest.raises(InputError, match="1 of 1 prompts got no class in 2 attempts"),
    ):
        classes_of([prompt("eat")], judged(server.url, attempts=2))


def test_a_server_without_schemas_is_asked_in_words() -> None:
    def no_schema(body: Body, _: int = 0) -> Reply:
        return refuses(400) if "response_format" in body else sorts(body)

    with serving(no_schema) as server:
        assert classes_of([prompt("eat"), prompt("mend")], judged(server.url)) == {"eat": "explicit", "mend": "mixed"}
    assert len(server.received) == 3


@given(st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_nothing_in_a_prompt_closes_its_part(text: str) -> None:
    asked = question(prompt(text), {"explicit": "harm"})
    mark = re.findall(r"=== (\w+) end ===", asked)[-1]
    assert mark not in text and asked.count(f"=== {mark} end ===") == 1


def test_the_identity_of_a_mix_knows_the_order_of_rules_and_no_address() -> None:
    other_way = {name: RULES[name] for name in reversed(RULES)}
    one, other = (MixingConfig(rules=rules) for rules in (RULES, other_way))
    assert json.dumps(mixing_identity(one), sort_keys=True) != json.dumps(mixing_identity(other), sort_keys=True)
    assert mixing_identity(judged("http://a.example/v1")) == mixing_identity(judged("http://b.example/v1"))
    described = judged("http://a.example/v1", descriptions={"mixed": "both"})
    assert mixing_identity(described) != mixing_identity(judged("http://a.example/v1"))


def test_the_stage_mixes_its_pairs(tmp_path: Path) -> None:
    """Through the real command line: prompts that begin with "How" count twice as much as the others."""
    values = {
        "methods": ["dpo+fdc"],
        "prompts.train_limit": 12,
        "prompts.evaluation_limit": 2,
        "generate": {"samples": 4, "max_tokens": 24},
        "distil": {"keep_truncated": True, "pairs": {"minimum_gap": 0}},
        "mixing": {"rules": {"how": ["^how"], "rest": ["."]}, "ratios": {"how": 2, "rest": 1}},
    }
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    folder = tmp_path / "run"
    started = ["generate", "pocket", "--out", str(folder), *sets]
    for arguments in (started, ["score", str(folder)], ["distil", str(folder)]):
        found = CliRunner().invoke(cli.app, arguments)
        assert found.exit_code == 0, found.output
    with RunDirectory.open(folder) as run:
        config = load_config(run.config_path)
        whole = distil(run, config, TrainingData(variant="pairs")).read(Pair)
        stage = run.finished("distil/pairs+fdc")
        kept, classes = stage.read(Pair), stage.summary["classes"]
    assert len(kept) == classes["how"]["kept"] + classes["rest"]["kept"] < len(whole)
    assert all(pair in whole for pair in kept)
    of_how = sum(pair.messages[-1].content.startswith("How") for pair in kept)
    assert of_how == classes["how"]["kept"] == pytest.approx(2 * classes["rest"]["kept"], abs=1)


def test_the_recipes_of_the_page_are_valid() -> None:
    page = (Path(__file__).parents[1] / "docs" / "mixing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        values = {"methods": ["dpo+fdc"], **yaml.safe_load(block)}
        config = load_config("pocket", [f"{key}={json.dumps(value)}" for key, value in values.items()])
        assert config.mixing is not None and config.mixing.ratios["explicit"] == 10


def test_the_rules_of_the_page_divide_the_pocket_world() -> None:
    """The default run's 480: risky ones are explicit or implicit, borderline ones mixed, harmless ones other."""
    page = (Path(__file__).parents[1] / "docs" / "mixing.md").read_text(encoding="utf-8")
    rules = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])["mixing"]["rules"]
    known = corpus.prompts("train")[:480]
    prompts = [Prompt(each.id, (Message("user", each.text),), "train", "pocket") for each in known]
    found = classes_by_rules(prompts, rules)
    assert Counter((each.kind, found[each.id]) for each in known) == {
        ("risky", "explicit"): 101, ("risky", "implicit"): 73, ("borderline", "mixed"): 44, ("harmless", OTHER): 262
    }  # fmt: skip
