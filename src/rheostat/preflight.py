"""What a recipe names must be there: everything that is not is told at once, before a model loads or a file is written.

Models and datasets on the Hub are not asked for; they are met when they load.
"""

from collections.abc import Iterator

from rheostat.config import PromptsConfig, RunConfig, SourceConfig
from rheostat.errors import ConfigError, RheostatError
from rheostat.models import locate, pick_device
from rheostat.prompt_sources import listed, source_problems
from rheostat.scoring import OWN, parties


def check(config: RunConfig) -> None:
    """Raises `ConfigError` with every prompt file, model folder and device that is not there."""
    problems = list(_problems(config))
    if problems:
        raise ConfigError(
            problems, hint="paths in a recipe are relative to the directory in which the command runs"
        )


def _problems(config: RunConfig) -> Iterator[str]:
    try:
        pick_device(config.device)
    except RheostatError as error:
        yield error.message
    models = {"model": config.model}
    for party, specs in parties(config).items():
        where = "rewards" if party == OWN else f"judges.{party}"
        models |= {f"{where}.{name}": spec.model for name, spec in specs.items() if spec.model is not None}
    for where, model in models.items():
        try:
            locate(model)
        except RheostatError as error:
            yield f"{where}: {error.message}"
    for where, source in _sources(config.prompts):
        yield from (f"{where}: {problem}" for problem in source_problems(source))


def _sources(prompts: PromptsConfig) -> Iterator[tuple[str, SourceConfig]]:
    for split in ("train", "optimization", "generalization", "calibration"):
        for source in listed(getattr(prompts, split)):
            yield f"prompts.{split}", source
