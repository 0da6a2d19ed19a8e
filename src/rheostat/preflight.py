"""What a recipe names must be there: everything that is not is told at once, before a model loads or a file is written.

Models and datasets on the Hub, and servers, are not asked for; they are met when they are used.
"""

from collections.abc import Iterator

from rheostat import endpoint
from rheostat.config import EngineConfig, PromptsConfig, RewardConfig, RunConfig, SourceConfig
from rheostat.errors import ConfigError, RheostatError
from rheostat.method_checks import method_problems
from rheostat.model_files import locate
from rheostat.models import check_quantization, pick_device
from rheostat.plugin_options import identified, parts
from rheostat.prompt_classes import judge_options
from rheostat.prompt_sources import listed, source_problems
from rheostat.recipe import engine_options, reward_options
from rheostat.reward_tree import load_problems, walk
from rheostat.scoring import OWN, parties
from rheostat.suite_prompts import suite_sources


def check(config: RunConfig) -> None:
    """Raises `ConfigError` with all that is not there: prompt files, models, device, keys, what a method needs."""
    of_methods, others = list(method_problems(config)), list(_problems(config))
    if others:
        hint = "paths in a recipe are relative to the directory in which the command runs"
        raise ConfigError([*of_methods, *others], hint=hint)
    if of_methods:
        raise ConfigError(of_methods, hint="change `methods` or what they need; `rheostat config` prints every key")


def _problems(config: RunConfig) -> Iterator[str]:
    try:
        device = pick_device(config.device)
        if config.quantization is not None:
            check_quantization(device)
    except RheostatError as error:
        yield error.message
    try:
        locate(config.model)
    except RheostatError as error:
        yield f"model: {error.message}"
    for party, specs in parties(config).items():
        where = "rewards" if party == OWN else f"judges.{party}"
        for name, spec in specs.items():
            yield from load_problems(f"{where}.{name}", spec)
    for where, spec in _suite_rewards(config).items():
        yield from load_problems(where, spec)
    for where, options in _options(config):
        try:
            identified(options)
        except RheostatError as error:
            yield f"{where}: {error.message}"
        for server in parts(options, endpoint.EndpointOptions):
            yield from (f"{where}: {problem}" for problem in endpoint.problems(server))
    suite = suite_sources(config.suite) if config.suite is not None else []
    for where, source in (*_sources(config.prompts), *suite):
        yield from (f"{where}: {problem}" for problem in source_problems(source))


def _options(config: RunConfig) -> Iterator[tuple[str, object]]:
    """The options of the engine, the rewards and the judge of prompts, which may name servers and files."""
    if config.mixing is not None and config.mixing.judge is not None:
        yield "mixing.judge", judge_options(config.mixing)
    if config.engine != EngineConfig():
        yield "engine", engine_options(config.engine)
    for party, specs in parties(config).items():
        where = "rewards" if party == OWN else f"judges.{party}"
        for name, spec in specs.items():
            yield from ((path, reward_options(each)) for path, each in walk(f"{where}.{name}", spec))
    for where, spec in _suite_rewards(config).items():
        yield from ((path, reward_options(each)) for path, each in walk(where, spec))


def _suite_rewards(config: RunConfig) -> dict[str, RewardConfig]:
    """The rewards that the suite names for itself, by their place in the recipe."""
    if config.suite is None:
        return {}
    own = {"suite.harm": config.suite.harm, "suite.refusals": config.suite.refusals}
    return {where: spec for where, spec in own.items() if spec is not None}


def _sources(prompts: PromptsConfig) -> Iterator[tuple[str, SourceConfig]]:
    for split in ("train", "optimization", "generalization", "calibration"):
        for source in listed(getattr(prompts, split)):
            yield f"prompts.{split}", source
