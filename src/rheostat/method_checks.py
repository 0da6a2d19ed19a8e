"""What the methods of a recipe need of it: all that can be known to be missing before anything is trained."""

import importlib.util
from collections.abc import Iterator

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.plugins import MethodNeeds
from rheostat.recipe import objective_options
from rheostat.trainings import Training, models_of, requirements, trainings


def method_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with the methods of a recipe, and with the trainings behind them; a line each."""
    yield from _missing_dials(config)
    yield from _routers(config)
    yield from _missing_trainer(config)
    yield from _unfit_methods(config)
    yield from _missing_adapters(config)
    yield from _unfit_passes(config)


def _missing_trainer(config: RunConfig) -> Iterator[str]:
    """An objective that is trained online, where TRL is not installed."""
    online = [each for each in trainings(config) if plugins.needs(each.objective).rows == "prompts"]
    if online and importlib.util.find_spec("trl") is None:
        yield f"methods: {online[0].objective} is trained by TRL, which is not here: pip install 'rheostat[rlhf]'"


def _missing_dials(config: RunConfig) -> Iterator[str]:
    """Attributes that an objective reads by name and for which the run has no reward."""
    dials = ", ".join(config.rewards)
    for objective in dict.fromkeys(each.objective for each in trainings(config)):
        wanted = plugins.needs(objective).attributes
        if not set(wanted) <= set(config.rewards):
            yield f"methods: {objective}: got the dials {dials}, {objective} needs the rewards {', '.join(wanted)}"


def _routers(config: RunConfig) -> Iterator[str]:
    """Those that are the training of another method, whose model is no whole one."""
    for name in config.method_names:
        if name.objective is None or not plugins.needs(name.objective).experts:
            continue
        users = plugins.methods_made_of(name.objective, config.control_format.names)
        yield f"methods: got {name.name!r}, which trains routers for other methods, allowed are {', '.join(users)}"


def _unfit_methods(config: RunConfig) -> Iterator[str]:
    """Methods of several models that this recipe's dials or weights do not fit."""
    for name in config.method_names:
        needs = _needs(name.method)
        if len(config.rewards) < needs.dials:
            yield (
                f"methods: got {name.name!r} with the dials {', '.join(config.rewards)}, allowed are {needs.dials} or "
                "more: it weighs one against another"
            )
        if needs.whole_weights and config.quantization is not None:
            yield (
                f"methods: got {name.name!r} with quantization: {config.quantization}, allowed is null: weights of 4 "
                "bits cannot be mixed"
            )


def _missing_adapters(config: RunConfig) -> Iterator[str]:
    """Experts that are adapters, of a training that is to have none."""
    experts: dict[Training, str] = {}
    for name in config.method_names:
        if _needs(name.method).adapters:
            experts |= {each: name.name for each in models_of(name, config).values()}
    for each in trainings(config):
        if plugins.needs(each.objective).experts:
            experts |= {other: each.objective for other in requirements(each, config) if other != each.start}
    told: dict[str, str] = {each.objective: user for each, user in experts.items() if each.options(config).lora is None}
    for objective, user in told.items():
        yield (
            f"{_place('lora', objective, config)}: got null for {objective}, whose adapter is an expert of {user}; "
            "allowed are auto and a block of keys"
        )


def _unfit_passes(config: RunConfig) -> Iterator[str]:
    """Trainings whose step cannot be computed in as many passes as the recipe says."""
    for objective in dict.fromkeys(each.objective for each in trainings(config)):
        needs, options = plugins.needs(objective), config.train.of(objective)
        where = f"{_place('accumulation', objective, config)}: got {options.accumulation} for {objective}, allowed is"
        remedy = f"train.overrides.{objective}.accumulation=1 does"
        if needs.experts and options.accumulation > 1:
            yield f"{where} 1: the penalty on gates is of one pass; {remedy}"
        if needs.rows == "prompts":
            own: plugins.OnlineOptions = objective_options(options, objective)
            if own.prompts * own.samples % options.accumulation:
                yield f"{where} what divides a step's {own.prompts} prompts · {own.samples} samples; {remedy}"


def _needs(method: str) -> MethodNeeds:
    found: MethodNeeds = getattr(plugins.load("methods", method), "NEEDS", MethodNeeds())
    return found


def _place(key: str, objective: str, config: RunConfig) -> str:
    """Where the recipe says what an objective's key of `train` is."""
    own = config.train.overrides.get(objective, {})
    return f"train.overrides.{objective}.{key}" if key in own else f"train.{key}"
