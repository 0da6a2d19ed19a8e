"""Ray: the workers of a Ray cluster, by Ray Data. A worker opens the work once; retries and spilling are Ray's.

Tasks go into Ray's object store as they are read, and results leave it as they arrive, in any order. A worker that
dies is started anew and its task done again. Workers start in the directory of the command where they have it too, so
that relative paths mean the same there; a model trained in the run is read from the run directory, so machines beside
this one must share its file system.
"""

import importlib
import importlib.util
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from rheostat.errors import ExecutorError, RheostatError
from rheostat.plugins import Executor, Result, Task, Work

_SPARE_CPUS = 1
"""Processors left to Ray's own tasks: where workers take all of them, Ray Data starves and waits for ever."""


@dataclass(frozen=True, slots=True)
class OPTIONS:
    """`workers` of `cpus_per_worker` processors (threads) and `gpus_per_worker` devices each.

    `address`: `auto` is the cluster that this machine belongs to, `HOST:PORT` another one, None starts one here.
    """

    workers: int = 2
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, allowed is a whole number of at least 1")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise ValueError(
                f"gpus_per_worker: got {self.gpus_per_worker!r}, allowed is a finite number of at least 0"
            )


def build(options: OPTIONS) -> AbstractContextManager[Executor]:
    """The executor. Raises `ExecutorError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ExecutorError(
            "executor: ray needs the package ray, which is not installed",
            hint="pip install 'rheostat[ray]', or use `executor: local`",
        )
    return _opened(options)


@dataclass(slots=True)
class _Session:
    """What of Ray's process-wide state is ours: how many executors are open, and whether we started Ray."""

    open_executors: int = 0
    is_started_here: bool = False


_session = _Session()


@contextmanager
def _opened(options: OPTIONS) -> Iterator[Executor]:
    """Nested executors share one cluster, which is started for the first task and given back by the outermost."""
    _session.open_executors += 1
    try:
        yield RayExecutor(options)
    finally:
        _session.open_executors -= 1
        if _session.is_started_here and not _session.open_executors:
            import ray

            ray.shutdown()
            _session.is_started_here = False


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Maps work over a pool of actors, each with the work open."""

    options: OPTIONS

    def map(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """Each task's result as it arrives. Raises `ExecutorError` where the cluster is too small or not there."""
        pickled = pickle.dumps(work)
        with _quiet():
            import pyarrow as pa
            import ray
            import ray.data

            _connect(self.options)
            _refuse_starvation(self.options, ray.cluster_resources())
            references = [
                ray.put(pa.table({"place": [place], "task": [pickle.dumps(task)]}))
                for place, task in enumerate(tasks)
            ]
            if not references:
                return
            dataset = ray.data.from_arrow_refs(references).map_batches(
                RayWorker,
                fn_constructor_args=(pickled, os.getcwd(), self.options.cpus_per_worker),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(self.options.workers, len(references))),
                num_cpus=self.options.cpus_per_worker,
                num_gpus=self.options.gpus_per_worker or None,
            )
            dataset.context.enable_progress_bars = False
            for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                outcome = pickle.loads(batch["outcome"][0].as_py())
                if isinstance(outcome, RheostatError):
                    raise outcome
                yield batch["place"][0].as_py(), outcome


class RayWorker:
    """An actor of the pool: the work, opened for its first task. A user's fault is a result, not a crash to retry."""

    def __init__(self, work: bytes, directory: str, threads: int) -> None:
        import torch

        if os.path.isdir(directory):
            os.chdir(directory)
        torch.set_num_threads(threads)
        self._work: Work[Any, Any] = pickle.loads(work)
        self._compute: Callable[[Any], Any] | None = None

    def __call__(self, batch: Any) -> Any:
        """A table of one task gives a table of one outcome."""
        import pyarrow as pa

        return pa.table({"place": batch["place"], "outcome": [pickle.dumps(self._outcome(batch["task"][0].as_py()))]})

    def _outcome(self, task: bytes) -> Any:
        try:
            if self._compute is None:
                self._compute = self._work.open()
            return self._compute(pickle.loads(task))
        except RheostatError as error:
            return error


def _connect(options: OPTIONS) -> None:
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a line about arguments that are kept anyway
    if options.address is None:
        needed = options.workers * options.cpus_per_worker + _SPARE_CPUS
        ray.init(
            address="local",
            num_cpus=max(needed, os.cpu_count() or 1),
            log_to_driver=False,
            configure_logging=False,
            include_dashboard=False,
        )
    else:
        try:
            ray.init(address=options.address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise ExecutorError(
                f"executor: no Ray cluster at the address {options.address!r} "
                f"({str(error).strip().splitlines()[0]})",
                hint="start one with `ray start --head`, or leave address out: one is started on this machine",
            ) from error
    _session.is_started_here = True


def _refuse_starvation(options: OPTIONS, resources: dict[str, float]) -> None:
    """Raises `ExecutorError` where Ray would wait for ever for processors or devices that the cluster lacks."""
    processors, devices = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    needed = options.workers * options.cpus_per_worker + _SPARE_CPUS
    if processors < needed:
        raise ExecutorError(
            f"executor: got {options.workers} workers of {options.cpus_per_worker} CPUs on a Ray cluster of "
            f"{processors:g} CPUs, allowed are workers × cpus_per_worker + {_SPARE_CPUS} ≤ CPUs: with fewer Ray waits "
            "for ever",
            hint=f"lower executor.workers, or give Ray at least {needed} CPUs (ray start --num-cpus {needed}; they are "
            "logical)",
        )
    if devices < options.workers * options.gpus_per_worker:
        raise ExecutorError(
            f"executor: got {options.workers} workers of {options.gpus_per_worker:g} GPUs on a Ray cluster of "
            f"{devices:g} GPUs, allowed are workers × gpus_per_worker ≤ GPUs",
            hint="lower executor.workers or executor.gpus_per_worker, or add machines to the cluster",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile Ray logs errors only, and warns of no setting that is its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
        importlib.import_module("ray.data")  # it sets its loggers' levels
        loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
