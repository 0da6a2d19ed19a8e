"""Opens the executor that a recipe names."""

from contextlib import AbstractContextManager

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.plugins import Executor
from rheostat.recipe import executor_options


def open_executor(config: RunConfig) -> AbstractContextManager[Executor]:
    """Where the shards of a stage are computed; a cluster is not touched before there is one to compute."""
    spec = config.executor
    opened: AbstractContextManager[Executor] = plugins.load("executors", spec.kind).build(
        executor_options(spec)
    )
    return opened
