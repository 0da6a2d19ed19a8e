"""The recipe: every problem at once with what is allowed, overrides, shorthand, and the round trip."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat.config import LoraConfig, RunConfig
from rheostat.config_fields import describe_fields
from rheostat.errors import ConfigError, InputError, RheostatError
from rheostat.method_name import MethodName
from rheostat.recipe import load_config, objective_options, packaged_recipes, to_yaml, validate
from rheostat.trainings import Training

MINIMAL: dict[str, Any] = {
    "model": "some/model",
    "prompts": "prompts.jsonl",
    "rewards": {"safety": "some/reward", "helpfulness": "other/reward"},
}


def test_a_rate_without_a_point_is_a_number() -> None:
    """YAML 1.1 reads 5e-4 as a text, 5.0e-4 as a number."""
    for written in ("5e-4", "5.0e-4", ".0005"):
        assert load_config("pocket", [f"train.learning_rate={written}"]).train.learning_rate == 5e-4
    with pytest.raises(ConfigError, match="train.learning_rate: got 'fast'"):
        load_config("pocket", ["train.learning_rate=fast"])


def problems(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate({**MINIMAL, **changes})
    return caught.value.problems


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_minimal_recipe_and_its_shorthand() -> None:
    config = validate(MINIMAL)
    assert config.prompts.train == "prompts.jsonl"
    assert config.rewards["safety"].model == "some/reward"
    assert config.rewards["safety"].kind == "classifier"
    assert config.control_format.names == ("helpfulness", "safety")


def test_judges_shorthand() -> None:
    config = validate({**MINIMAL, "judges": {"other": {"safety": "a", "helpfulness": {"model": "b"}}}})
    assert config.judges["other"]["safety"].model == "a"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sed": 1}, "sed: unknown key (did you mean 'seed'?)"),
        ({"generate": {"sample": 4}}, "generate.sample: unknown key (did you mean 'samples'?)"),
        (
            {"rewards": {"safety": {"modle": "x"}}},
            "rewards.safety.modle: unknown key (did you mean 'model'?)",
        ),
        ({"train": {"lora": {"ranks": 2}}}, "train.lora.ranks: unknown key (did you mean 'rank'?)"),
        (
            {"rewards": {"safty": "x"}},
            "rewards: got 'safty', allowed are helpfulness, safety (did you mean 'safety'?)",
        ),
        ({"rewards": {}}, "rewards: got no reward"),
        ({"rewards": {"safety": {"kind": "clasifier"}}}, "(did you mean 'classifier'?)"),
        ({"levels": [0, math.nan, 1]}, "levels.1: got nan"),
        ({"levels": [0, 1.5]}, "levels.1: got 1.5"),
        ({"levels": [-0.1, 1]}, "levels.0: got -0.1"),
        ({"levels": [1, 0]}, "levels: got [1.0, 0.0], allowed are distinct levels in ascending order"),
        ({"levels": [0.5, 0.5]}, "allowed are distinct levels"),
        ({"levels": [0.5]}, "levels: got [0.5]"),
        ({"levels": [0, 0.00001, 1]}, "levels: got 1e-05, allowed are levels of at most four decimals"),
        ({"seed": 2**32}, "seed: got 4294967296; input should be less than 4294967296"),
        (
            {"rewards": {"safety": {"kind": "classifier"}}},
            "rewards.safety: got the model None, a classifier needs",
        ),
        ({"prompts": {"train": 5}}, "prompts.train: got 5; input should be text"),
        ({"prompts": {"train": ["a", 5]}}, "prompts.train.1: got 5; input should be text"),
        (
            {"prompts": {"train": [{"source": "x", "weigth": 2}]}},
            "prompts.train.0.weigth: unknown key (did you mean 'weight'?)",
        ),
        (
            {"prompts": {"train": "x", "generalization": {"source": "x", "limt": 2}}},
            "prompts.generalization.limt: unknown key (did you mean 'limit'?); allowed are column, limit, name",
        ),
        ({"prompts": {"train": [{"weight": 2}]}}, "prompts.train.0.source: missing"),
        ({"prompts": {"train": [{"source": "x", "weight": 0}]}}, "prompts.train.0.weight: got 0"),
        ({"prompts": {"train": [{"source": "x", "weight": math.inf}]}}, "prompts.train.0.weight: got inf"),
        ({"prompts": {"train": "x", "near_duplicates": 1.1}}, "prompts.near_duplicates: got 1.1"),
        ({"rewards": 5}, "rewards: got 5; input should be a block of keys"),
        ({"train": {"lora": "always"}}, "train.lora: got 'always'; input should be 'auto'"),
        ({"train": {"learning_rate": 0}}, "train.learning_rate: got 0; input should be greater than 0"),
        ({"attention": "flash"}, "attention: got 'flash'; input should be 'eager', 'sdpa', 'flash_attention_2', "
                                 "'flash_attention_3' or 'flex_attention'"),
        ({"quantization": "4bit", "train": {"lora": None}},
         "train.lora: got null with quantization: 4bit, allowed are auto and a block of keys; "
         "weights of 4 bits cannot be trained themselves"),
        ({"train": {"lora": 7}}, "train.lora: got 7; input should be a block of keys"),
        ({"levels": [[[[1]]]]}, "levels.0: got [[[...]]]; input should be a number"),
        ({"model": ["x" * 5000]}, "...xx"),
        ({"levels": ["high", 1]}, "levels.0: got 'high'"),
        ({"levels": {"safety": [0, 2]}}, "levels.safety.1: got 2"),
        ({"levels": {"safety": [0.5]}}, "levels.safety: got [0.5]"),
        ({"levels": {"safety": [1, 0.5]}}, "levels.safety: got [1.0, 0.5], allowed are distinct levels"),
        ({"levels": {"safety": 0.5}}, "levels.safety: got 0.5; input should be a list"),
        ({"levels": {"safty": [0, 1]}}, "got 'safty', allowed are safety, helpfulness (did you mean 'safety'?)"),
        ({"levels": 0.5}, "levels: got 0.5; input should be a list"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": "one"}, "seed: got 'one'"),
        ({"generate": {"samples": 0}}, "generate.samples: got 0"),
        ({"generate": {"temperature": math.inf}}, "generate.temperature: got inf"),
        ({"generate": {"top_p": 0}}, "generate.top_p: got 0"),
        ({"prompts": {"train": "x", "held_out": 1}}, "prompts.held_out: got 1"),
        ({"methods": []}, "methods: got []"),
        ({"methods": ["clm", "clm"]}, "allowed is each method once"),
        ({"methods": ["exmat"]}, "(did you mean 'exmate'?)"),
        ({"methods": ["prompting+raw"]}, "allowed suffixes of prompting are none"),
        ({"methods": ["clm+raw+moec"]}, "allowed suffixes of clm are, each once, moec, raw, pool, round2, x0.25"),
        ({"judges": {"j": {"safety": "x"}}}, "judges.j: got safety, allowed is exactly helpfulness, safety"),
        ({"train": {"objectives": {"exmat": {}}}}, "(did you mean 'exmate'?)"),
        ({"methods": ["clm+x0"]}, "allowed suffixes of clm are, each once, moec, raw, pool, round2, x0.25"),
        ({"methods": ["clm+x0.5+x0.25"]}, "got 'clm+x0.5+x0.25'"),
        ({"methods": ["base+x0.5"]}, "allowed suffixes of base are none"),
        (
            {"train": {"objectives": {"exmate": {"weigth": 1}}}},
            "train.objectives.exmate.weigth: unknown key (did you mean 'weight'?)",
        ),
        (
            {"train": {"objectives": {"exmate": {"weight": "much"}}}},
            "train.objectives.exmate.weight: got 'much'; input should be a number",
        ),
        (
            {"train": {"objectives": {"exmate": {"weight": -1}}}},
            "weight: got -1.0, allowed is a finite number",
        ),
        ({"methods": ["exmate+Raw"]}, "got 'exmate+Raw', allowed suffixes of exmate are, each once, moec, raw, pool, "),
        ({"methods": ["exmate+Raw"]}, "(did you mean 'raw'?)"),
        ({"methods": ["dpo+helpfullness"]}, "(did you mean 'helpfulness'?)"),
        ({"methods": ["dpo+x2"]},
         "allowed suffixes of dpo are, each once, helpfulness, safety, fdc, x0.25, from_adpo, "),
        ({"methods": ["rlhf+from_exmte"]}, "(did you mean 'from_exmate'?)"),
        ({"methods": ["rlhf+round"]}, "allowed suffixes of rlhf are, each once, x0.25, from_adpo, from_ascent, "),
        ({"methods": ["rlhf+from_midpo_router"]}, "midpo_router trains routers and leaves no model to start from"),
        ({"methods": ["bfpo+safety"]}, "got 'bfpo+safety': of bfpo's pairs the response of more helpfulness is by "
                                       "definition the chosen one, allowed is bfpo without +safety"),
        ({"method_options": {"tune": {}}}, "got 'tune', allowed are base, logit_mixing, "),
        ({"method_options": {"tuned": {}}}, "got 'tuned', allowed are base, "),
        ({"train": {"overrides": {"dpo": {"lora": {"rnk": 3}}}}},
         "train.overrides.dpo.lora.rnk: unknown key (did you mean 'rank'?); allowed are alpha, dropout, layers, rank"),
        ({"train": {"overrides": {"dpo": {"counterfactual": {"fractoin": 1}}}}},
         "train.overrides.dpo.counterfactual.fractoin: unknown key (did you mean 'fraction'?)"),
        ({"train": {"steps": 0}}, "train.steps: got 0"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"generate": 5}, "generate: got 5"),
        ({"model": None}, "model: got None"),
    ],
)
def test_problem_is_named(changes: dict[str, Any], expected: str) -> None:
    found = problems(**changes)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"overrides": {"dpo": {1: 2}}}}, "train.overrides.dpo.1: got 1; input should be text"),
        ({"train": {"overrides": {"dpo": {True: 2}}}}, "train.overrides.dpo.1: got True; input should be text"),
        ({"train": {"overrides": {"dpo": {"lora": {1: 2}}}}},
         "train.overrides.dpo.lora.1: got 1; keys should be strings"),
        ({"train": {"objectives": {"dpo": {1: 2}}}}, "train.objectives.dpo.1: got 1; input should be text"),
        ({"method_options": {"soups": {1: 2}}}, "method_options.soups.1: got 1; input should be text"),
    ],
)  # fmt: skip
def test_a_key_that_is_no_text_is_told_once(changes: dict[str, Any], expected: str) -> None:
    assert problems(**changes) == (expected,)


def test_every_method_is_told_of_once() -> None:
    methods = ["base", "exmat", "dpo+raw", "dpo+safety", "clm+safety", "dpo+fdc"]
    told = problems(methods=methods, rewards={"helpfulness": "x"})
    assert [each.partition(";")[0].partition(", ")[0] for each in told] == [
        "methods.1: got 'exmat'",
        "methods.2: got 'dpo+raw': dpo learns from pairs",
        "methods.4: got 'clm+safety': clm learns from examples",
        "methods: got 'dpo+safety'",
        "methods: got 'dpo+fdc' without `mixing`",
    ]


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({})
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"model", "prompts", "rewards"}


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: m\nprompts: p\nrewards: {safety: r}\nsed: 1\nlevels: [0, 2]\ngenerate: {samples: 0}"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.epochs=-1", "no-equals", "a=[1"])
    found = "\n".join(caught.value.problems)
    for part in ("sed", "levels.1", "generate.samples", "train.epochs", "'no-equals'", "--set a"):
        assert part in found
    assert caught.value.message.startswith("6 problems in the configuration:")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate", "allowed is key.path=value"),
        ("=4", "allowed is key.path=value"),
        ("seed=[", "is not YAML"),
        ("seed=" + "[" * 10_000, "it is nested too deeply"),
        ("seed=2020-99-99", "a value that cannot be read: month must be in"),
        ("seed=" + "9" * 5000, "a value that cannot be read: Exceeds the limit"),
        ("seed=\udcff", "is not YAML"),
        ("seed.x=1", "not a block"),
        ("generate.samples.x=1", "not a block"),
        ("generate.sample=1", "did you mean 'samples'?"),
    ],
)
def test_bad_override(override: str, message: str) -> None:
    base = ["seed=3", "generate.samples=4"]
    with pytest.raises(ConfigError, match=message):
        load_config("pocket", [*base, override])


def test_overrides_are_yaml_and_reach_absent_blocks() -> None:
    config = load_config(
        "pocket",
        [
            "seed=3",
            "methods=[base, clm]",
            "train.lora.rank=4",
            "distil.per_corner=1",
            "prompts.train_limit=null",
        ],
    )
    assert (config.seed, config.methods, config.distil.per_corner) == (3, ["base", "clm"], 1)
    assert isinstance(config.train.lora, LoraConfig) and config.train.lora.rank == 4
    assert config.prompts.train_limit is None


def test_override_beside_the_prompts_shorthand(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\nprompts: p.txt\nrewards: {safety: r}")
    config = load_config(path, ["prompts.strict=true"])
    assert config.prompts.strict and config.prompts.train == "p.txt"


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path, to_yaml(config))) == config


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(
        st.integers(0, 10_000).map(lambda step: step / 10_000), min_size=2, max_size=5, unique=True
    ),
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-9, 1e3),
    source=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, levels: list[float], seed: int, rate: float, source: str
) -> None:
    config = validate(
        {
            **MINIMAL,
            "levels": sorted(levels),
            "seed": seed,
            "prompts": source,
            "train": {"learning_rate": rate},
        }
    )
    path = tmp_path_factory.mktemp("recipe") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b", "holds list, allowed is a mapping"),
        ("", "holds NoneType, allowed is a mapping"),
        ("just words", "holds str"),
        ("a: 1\n\tb: 2", "is not YAML: line 2, column 1"),
        ("model: a\nmodel: b", "line 2, column 1: the key 'model' stands twice"),
        ("model: 2020-13-45", "a value that cannot be read: month must be in"),
        ("seed: " + "9" * 5000, "a value that cannot be read: Exceeds the limit"),
        ("? [a]\n: 2", "is not YAML: line 1"),
        ("a: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_unreadable_recipe(tmp_path: Path) -> None:
    for source in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read the recipe") as caught:
            load_config(source)
        assert "pocket" in caught.value.hint
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"model: caf\xe9")
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_config(path)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=40))
def test_no_recipe_crashes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(RheostatError):
        load_config(path)


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(MINIMAL).seed = 1  # type: ignore[misc]


def test_method_names() -> None:
    parsed = MethodName.parse("exmate+raw+reranking")
    assert (parsed.method, parsed.objective, parsed.variant, parsed.reranking) == (
        "tuned",
        "exmate",
        "raw",
        True,
    )
    plain = MethodName.parse("prompting")
    assert (plain.method, plain.objective, plain.variant, plain.reranking) == ("prompting", None, None, False)


def test_a_method_may_learn_from_a_share_of_the_prompts() -> None:
    parsed = MethodName.parse("exmate+x0.25+raw")
    assert (parsed.variant, parsed.share) == ("raw", 0.25)
    config = load_config("pocket")
    assert str(Training.of(parsed, config)) == "exmate-raw+x0.25"
    assert str(Training.of(MethodName.parse("clm"), config)) == "clm-moec"


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 100_000, "[" * 10_000, "[" * 10_000 + "]" * 10_000, "{a: " * 5000]
)
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="it is nested too deeply"):
        load_config(write(tmp_path, text))


def test_objective_options_come_from_the_recipe() -> None:
    config = validate({**MINIMAL, "train": {"objectives": {"exmate": {"weight": 0.25}}}})
    assert objective_options(config.train, "exmate").weight == 0.25


def test_every_key_is_described_once() -> None:
    rows = list(describe_fields(RunConfig))
    paths = [path for path, *_ in rows]
    assert len(set(paths)) == len(paths)
    assert {"model", "prompts.train", "rewards.NAME.kind", "train.lora.rank"} <= set(paths)
    assert set(RunConfig.model_fields) <= {path.split(".")[0] for path in paths}


def test_types_are_described_in_the_words_of_a_recipe() -> None:
    """As a reader types them: no type of Python, limits and defaults in YAML."""
    rows = {path: (kind, default) for path, kind, default, _ in describe_fields(RunConfig)}
    assert rows["levels"] == ("list of numbers from 0 to 1 or such a list by name", "[0, 0.25, 0.5, 0.75, 1]")
    assert rows["prompts.optimization"] == ("text or block or list of these, or null", "null")
    assert rows["generate.top_p"] == ("number above 0 up to 1", "1")
    assert rows["generate.samples"] == ("whole number of 1 or more", "16")
    assert rows["prompts.strict"] == ("true or false", "false")
    assert rows["dtype"] == ("float32 or bfloat16 or float16", "float32")
    shown = " ".join(part for row in rows.values() for part in row)
    assert not any(word in shown for word in ("None", "True", "False", "'", "mapping", "dict", "int", "<"))
