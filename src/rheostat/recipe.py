"""A recipe is read, overridden and validated whole.

Unknown keys are refused with the nearest name, and all problems are reported together, before any model loads.
"""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from rheostat import plugins, yaml_text
from rheostat.config import (
    EngineConfig,
    ExecutorConfig,
    MixingConfig,
    RewardConfig,
    RunConfig,
    TrainConfig,
    expand_engine,
    expand_rewards,
)
from rheostat.config_fields import describe_fault, plain_words
from rheostat.errors import ConfigError, InputError, did_you_mean
from rheostat.method_name import MethodName
from rheostat.prompt_classes import ClassJudgeOptions, judge_options
from rheostat.yaml_text import shown

RECIPES = Path(__file__).parent / "recipes"


def packaged_recipes() -> list[str]:
    """The names of the recipes inside the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(source: str | Path = "pocket", overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe at a path, or a packaged one by name, with `key.path=value` overrides (values in YAML).

    Relative paths in it stay relative to the working directory. Raises `ConfigError` with every problem.
    """
    path = Path(source)
    if not path.suffix and str(source) in packaged_recipes():
        path = RECIPES / f"{source}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the recipe {str(source)!r}: {error}",
            hint=f"give a YAML file, or a packaged recipe: {', '.join(packaged_recipes())}",
        ) from error
    try:
        values = yaml_text.parse(text)
    except ValueError as error:
        raise ConfigError(
            [f"{path.name}: {error}"], hint="a recipe is YAML, four levels deep at most"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            [f"{path.name} holds {type(values).__name__}, allowed is a mapping"],
            hint="see docs/configuration.md",
        )
    problems = [problem for override in overrides if (problem := _override(values, override))]
    return validate(values, problems)


def validate(values: Mapping[str, Any], problems: Sequence[str] = ()) -> RunConfig:
    """`values` as a `RunConfig`, or `ConfigError` with all problems, those given included."""
    found = list(problems)
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        found += [describe_fault(detail, RunConfig) for detail in error.errors()]
    found += _plugin_problems(values)
    if found or config is None:
        raise ConfigError(found, hint="`rheostat config` prints every key with its meaning and default")
    return config


def objective_options(config: TrainConfig, objective: str) -> Any:
    """The options of an objective: its own `OPTIONS` with what the recipe sets."""
    options = plugins.load("objectives", objective).OPTIONS
    return TypeAdapter(options).validate_python(config.objectives.get(objective, {}))


def method_options(config: RunConfig, method: str) -> Any:
    """The options of a method: its own `OPTIONS` with what the recipe sets."""
    options = plugins.load("methods", method).OPTIONS
    return TypeAdapter(options).validate_python(config.method_options.get(method, {}))


def reward_options(spec: RewardConfig) -> Any:
    """The options of a reward: its kind's own `OPTIONS` with what the recipe sets."""
    options = plugins.load("rewards", spec.kind).OPTIONS
    return TypeAdapter(options).validate_python(spec.given_options)


def executor_options(spec: ExecutorConfig) -> Any:
    """The options of an executor: its kind's own `OPTIONS` with what the recipe sets."""
    options = plugins.load("executors", spec.kind).OPTIONS
    return TypeAdapter(options).validate_python(spec.given_options)


def engine_options(engine: EngineConfig) -> Any:
    """The options of an engine: its kind's own `OPTIONS` with what the recipe sets."""
    options = plugins.load("engines", engine.kind).OPTIONS
    return TypeAdapter(options).validate_python(engine.given_options)


def option_problems(
    where: str, options: type[Any], given: Mapping[str, Any], besides: Sequence[str] = ()
) -> Iterator[str]:
    """What is wrong with a plug-in's options, given at `where`; `besides` are keys allowed beside them."""
    known = [field.name for field in dataclasses.fields(options)]
    allowed = [*besides, *known]
    unknown = [f"{where}.{key}: unknown key{did_you_mean(key, allowed)}" for key in given if key not in known]
    if unknown:
        yield from (f"{problem}; allowed are {', '.join(allowed) or 'none'}" for problem in unknown)
        return
    inner = [
        problem
        for name, kind in typing.get_type_hints(options).items()
        if dataclasses.is_dataclass(kind) and isinstance(given.get(name), Mapping)
        for problem in option_problems(f"{where}.{name}", typing.cast(type[Any], kind), given[name])
    ]
    if inner:
        yield from inner
        return
    try:
        TypeAdapter(options).validate_python(given)
    except ValidationError as error:
        for detail in error.errors():
            message = plain_words(detail["msg"])
            at = ".".join([where, *map(str, detail["loc"])])
            got = (
                ""
                if message.startswith("got ") or f"got {detail['input']!r}" in message
                else f"got {shown(detail['input'])}; "
            )
            yield f"{at}: {got}{message[0].lower()}{message[1:]}"


def _plugin_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the options of objectives and rewards, whatever else is wrong with the recipe."""
    train = values.get("train")
    objectives = train.get("objectives") if isinstance(train, Mapping) else None
    for name, given in objectives.items() if isinstance(objectives, Mapping) else ():
        if name in plugins.available("objectives") and isinstance(given, Mapping):
            options = plugins.load("objectives", name).OPTIONS
            yield from option_problems(f"train.objectives.{name}", options, _by_text(given))
    overrides = train.get("overrides") if isinstance(train, Mapping) else None
    for name, given in overrides.items() if isinstance(overrides, Mapping) else ():
        if isinstance(given, Mapping):
            yield from _override_problems(f"train.overrides.{name}", _by_text(given))
    methods = values.get("method_options")
    for name, given in methods.items() if isinstance(methods, Mapping) else ():
        if name in plugins.named_methods() and isinstance(given, Mapping):
            options = plugins.load("methods", name).OPTIONS
            yield from option_problems(f"method_options.{name}", options, _by_text(given))
    yield from _name_problems(values)
    executor = values.get("executor")
    if isinstance(executor, Mapping) and executor.get("kind", "local") in plugins.available("executors"):
        options = plugins.load("executors", executor.get("kind", "local")).OPTIONS
        given = {key: value for key, value in executor.items() if key != "kind"}
        yield from option_problems("executor", options, given, ["kind"])
    yield from engine_problems(values.get("engine"))
    yield from _mixing_problems(values.get("mixing"))
    judges = values.get("judges")
    parties = {"rewards": values.get("rewards")}
    if isinstance(judges, Mapping):
        parties |= {f"judges.{name}": rewards for name, rewards in judges.items()}
    suite = values.get("suite")
    if isinstance(suite, Mapping):
        parties["suite"] = {name: suite[name] for name in ("harm", "refusals") if suite.get(name) is not None}
    for where, rewards in parties.items():
        expanded = expand_rewards(rewards)
        for name, block in expanded.items() if isinstance(expanded, Mapping) else ():
            yield from reward_problems(f"{where}.{name}", block)


def _by_text(given: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys that are text; of others `RunConfig` itself tells."""
    return {key: value for key, value in given.items() if isinstance(key, str)}


def _name_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Methods that ask for what the recipe has not; of those that are none `RunConfig` itself tells."""
    given, rewards = values.get("methods"), values.get("rewards")
    for text in given if isinstance(given, list) else ():
        try:
            name = MethodName.parse(str(text))
        except ValueError:
            continue
        if name.by is not None and isinstance(rewards, Mapping) and name.by not in rewards:
            yield f"methods: got {name.name!r}, allowed are the dials {', '.join(map(str, rewards))}"
        if name.mixed and values.get("mixing") is None:
            yield f"methods: got {name.name!r} without `mixing`, allowed is one with that block"


def _mixing_problems(block: Any) -> Iterator[str]:
    """What is wrong with the options of the judge of prompts, beside what `MixingConfig` itself refuses."""
    try:
        mixing = MixingConfig.model_validate(block)
    except ValidationError:
        return
    if mixing.judge is None:
        return
    unknown = list(option_problems("mixing.judge", ClassJudgeOptions, mixing.judge))
    yield from unknown
    if not unknown:
        try:
            judge_options(mixing)
        except ValueError as error:
            yield f"mixing.judge.{error}"


def _override_problems(where: str, given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the keys of `train` that an objective has for itself."""
    allowed = sorted(set(TrainConfig.model_fields) - {"variant", "objectives", "overrides"})
    for key in given:
        if key not in allowed:
            yield f"{where}.{key}: unknown key{did_you_mean(key, allowed)}; allowed are {', '.join(allowed)}"
    try:
        TrainConfig.model_validate({key: value for key, value in given.items() if key in allowed})
    except ValidationError as error:
        for detail in error.errors():
            yield f"{where}.{describe_fault(detail, TrainConfig)}"


def reward_problems(where: str, block: Any) -> Iterator[str]:
    """What is wrong with the options of one reward's block at `where`, beside what `RewardConfig` itself refuses."""
    try:
        spec = RewardConfig.model_validate(block)
    except ValidationError:
        return
    kind = plugins.load("rewards", spec.kind)
    unknown = list(option_problems(where, kind.OPTIONS, spec.given_options, sorted(RewardConfig.model_fields)))
    yield from unknown
    if kind.NEEDS_MODEL and not spec.model and not unknown:
        yield f"{where}: got the model {spec.model!r}, a {spec.kind} needs one (model: PATH)"
    for path, member in nested_rewards(spec).items():
        yield from block_problems(f"{where}.{path}", member)
        yield from reward_problems(f"{where}.{path}", member)


def nested_rewards(spec: RewardConfig) -> dict[str, Any]:
    """The blocks of the rewards that a reward is made of, by their path inside it (`members.NAME`)."""
    nested: tuple[str, ...] = getattr(plugins.load("rewards", spec.kind), "NESTED", ())
    return {
        f"{option}.{name}": block
        for option in nested
        if isinstance(blocks := spec.given_options.get(option), Mapping)
        for name, block in expand_rewards(blocks).items()
    }


def block_problems(where: str, block: Any) -> Iterator[str]:
    """What `RewardConfig` refuses in a block that pydantic does not meet by itself."""
    try:
        RewardConfig.model_validate(block)
    except ValidationError as error:
        for detail in error.errors():
            at = ".".join([where, *map(str, detail["loc"])])
            message = plain_words(detail["msg"])
            got = "" if message.startswith("got ") else f"got {shown(detail['input'])}; "
            yield f"{at}: {got}{message[0].lower()}{message[1:]}"


def engine_problems(block: Any) -> Iterator[str]:
    """What is wrong with the options of the engine's block, beside what `EngineConfig` itself refuses."""
    try:
        engine = EngineConfig.model_validate(expand_engine(block))
    except ValidationError:
        return
    if engine == EngineConfig():
        return  # nothing to check, and the default's file would load torch
    options = plugins.load("engines", engine.kind).OPTIONS
    yield from option_problems("engine", options, engine.given_options, sorted(EngineConfig.model_fields))


def _override(values: dict[str, Any], override: str) -> str | None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        return f"--set: got {override!r}, allowed is key.path=value"
    try:
        value = yaml_text.parse(text)
    except ValueError as error:
        return f"--set {key}: got {shown(text)}; {error}"
    *parents, last = key.strip().split(".")
    node = values
    for position, parent in enumerate(parents):
        child = node.get(parent)
        if isinstance(child, str) and parent in ("prompts",):
            child = {"train": child}
        if parent == "engine":
            child = expand_engine(child)
        if child is None:
            child = {}
        if not isinstance(child, dict):
            return f"--set {key}: {'.'.join(parents[: position + 1])} is {shown(child)}, not a block"
        node[parent] = child = dict(child)
        node = child
    node[last] = value
    return None


def to_yaml(config: RunConfig) -> str:
    """The resolved recipe as YAML; `load_config` of it gives an equal `RunConfig`."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
