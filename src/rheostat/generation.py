"""Engines: the one place that says who generates the text of a model of the run."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rheostat import plugins
from rheostat.config import EngineConfig, RunConfig
from rheostat.plugin_options import identified
from rheostat.plugins import Engine, EngineKind
from rheostat.recipe import engine_options

if TYPE_CHECKING:
    from rheostat.models import Policy


def load_engine(config: RunConfig, policy: Callable[[], "Policy"]) -> Engine:
    """The recipe's engine over the untuned model; `policy` loads it where the engine needs it in process.

    Raises `ModelError` where the model or its tokenizer cannot be loaded.
    """
    kind = _kind(config.engine)
    return kind.build(
        policy() if kind.NEEDS_POLICY else config.model,
        config.control_format,
        batch_tokens=config.batch_tokens,
        options=engine_options(config.engine),
    )


def tuned_engine(config: RunConfig, policy: "Policy") -> Engine:
    """The engine over a model that the run has tuned: always in process, since no server serves it yet."""
    engine = config.engine if _kind(config.engine).NEEDS_POLICY else EngineConfig()
    return _kind(engine).build(
        policy, config.control_format, batch_tokens=config.batch_tokens, options=engine_options(engine)
    )


def engine_identity(config: RunConfig) -> dict[str, object]:
    """What of the engine identifies the untuned model's texts: an input of the stages that generate them.

    Empty for the default, which is no other than it was before there was a choice.
    """
    if config.engine == EngineConfig():
        return {}
    return {"engine": {"kind": config.engine.kind, **identified(engine_options(config.engine))}}


def _kind(engine: EngineConfig) -> EngineKind:
    kind: EngineKind = plugins.load("engines", engine.kind)
    return kind
