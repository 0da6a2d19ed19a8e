"""Executors: the same bytes wherever a stage's shards are computed, on a real Ray cluster whose worker is killed."""

import hashlib
import importlib.util
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rheostat import errors
from rheostat.calibration import Calibrator
from rheostat.collect import collect
from rheostat.config import RunConfig
from rheostat.errors import ConfigError, ExecutorError, InputError, ModelError, RheostatError
from rheostat.evaluate import Evaluator
from rheostat.execution import open_executor
from rheostat.executors import ray as ray_executor
from rheostat.executors.local import LOCAL
from rheostat.generate import generate
from rheostat.generation_work import GenerateWork
from rheostat.method_models import MethodModels
from rheostat.plugins import Executor
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.recipe import executor_options, load_config
from rheostat.records import Message, Prompt, Response
from rheostat.rundir import RunDirectory
from rheostat.score import load_calibrators, score
from rheostat.shard_work import EncodedWork, InThisProcess, ShardTask

SMALL = [
    "prompts.train_limit=8", "prompts.evaluation_limit=2", "prompts.generalization=null", "judges={}", "suite=null",
    "generate.samples=4", "generate.shard_prompts=1", "generate.max_tokens=32", "evaluate.max_tokens=16",
    "evaluate.shard_prompts=1", "evaluate.reachable_samples=4", "levels=[0,1]", "methods=[reranking]",
    "evaluate.rerank_samples=2",
]  # fmt: skip
RAY = ["executor={kind: ray, workers: 2}"]


def config(*overrides: str) -> RunConfig:
    return load_config("pocket", [*SMALL, *overrides])


def test_an_executor_may_be_named_alone() -> None:
    assert config("executor=ray").executor.kind == "ray"
    assert executor_options(config("executor=ray").executor) == ray_executor.OPTIONS()
    assert executor_options(config(*RAY, "executor.cpus_per_worker=3").executor).cpus_per_worker == 3
    assert config().executor.kind == "local"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("executor=rey", "executor.kind: got 'rey', allowed are local, ray (did you mean 'ray'?)"),
        ("executor={kind: ray, worker: 3}", "executor.worker: unknown key (did you mean 'workers'?)"),
        ("executor={workers: 3}", "executor.workers: unknown key; allowed are kind"),
        ("executor={kind: ray, workers: 0}", "workers: got 0, allowed is a whole number of at least 1"),
        ("executor={kind: ray, gpus_per_worker: -1}", "gpus_per_worker: got -1"),
        ("executor=3", "executor: got 3"),
    ],
)
def test_a_wrong_executor_is_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(given)
    assert said in str(raised.value)


def test_local_computes_in_order_and_no_further_than_asked() -> None:
    computed: list[int] = []

    class Squares:
        def open(self) -> Callable[[int], int]:
            return lambda task: computed.append(task) or task * task  # type: ignore[func-returns-value]

    results = LOCAL.map(Squares(), iter([3, 1, 2]))
    assert next(results) == (0, 9)
    assert computed == [3]
    assert list(results) == [(1, 1), (2, 4)]


def test_a_function_of_this_process_goes_nowhere_else() -> None:
    def compute(items: Sequence[str], seed: int) -> list[Response]:
        return []

    with pytest.raises(InputError, match="the stage suite computes in the process that started it"):
        pickle.dumps(EncodedWork(InThisProcess("suite", compute), Response))


ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, RheostatError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_the_way_between_processes(kind: type[RheostatError]) -> None:
    error = ConfigError(["a: wrong", "b: wrong"], hint="h") if kind is ConfigError else kind("m", hint="h")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and vars(again) == vars(error) and str(again) == str(error)


@pytest.mark.parametrize(
    ("workers", "processors", "fits"), [(2, 5.0, True), (2, 4.0, False), (1, 3.0, True), (1, 2.0, False)]
)
def test_workers_leave_one_processor_of_the_cluster_free(workers: int, processors: float, fits: bool) -> None:
    """2 workers of 2 CPUs and 1 spare are 5."""
    options = ray_executor.OPTIONS(workers=workers, cpus_per_worker=2)
    if fits:
        ray_executor._refuse_starvation(options, {"CPU": processors})
        return
    with pytest.raises(ExecutorError, match=f"{workers} workers of 2 CPUs on a Ray cluster of {processors:g} CPUs"):
        ray_executor._refuse_starvation(options, {"CPU": processors})


def test_workers_need_the_devices_they_ask_for() -> None:
    options = ray_executor.OPTIONS(workers=4, gpus_per_worker=0.5)
    ray_executor._refuse_starvation(options, {"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(ExecutorError, match="4 workers of 0.5 GPUs on a Ray cluster of 1 GPUs"):
        ray_executor._refuse_starvation(options, {"CPU": 8.0, "GPU": 1.0})


def test_without_ray_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExecutorError) as raised:
        ray_executor.build(ray_executor.OPTIONS())
    assert "pip install 'rheostat[ray]'" in raised.value.hint


def test_an_open_executor_without_work_starts_nothing() -> None:
    pytest.importorskip("ray")
    import ray

    with open_executor(config(*RAY)):
        assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    """An executor that is held open, so that all tests here share the cluster that its first task starts."""
    pytest.importorskip("ray", reason="needs the extra rheostat[ray]")
    with open_executor(config(*RAY)) as executor:
        yield executor


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix == ".parquet" or path.name in ("done.json", "stage.json", "calibration.json")
    }


class Killer:
    """Kills a worker when the first shard is there, and sees whether another process took its place."""

    def __init__(self) -> None:
        self.killed = 0
        self.replaced = False

    @contextmanager
    def task(
        self, label: str, total: int | None, *, unit: str = "items", done: int = 0
    ) -> Iterator[Callable[[int], None]]:
        before = set[int]()

        def advance(count: int) -> None:
            nonlocal before
            if not self.killed:
                before = workers()
                self.killed = min(before)
                os.kill(self.killed, signal.SIGKILL)
                deadline = time.monotonic() + 60  # a busy machine takes its time to replace it
                while not workers() - before and time.monotonic() < deadline:
                    time.sleep(0.1)
            self.replaced |= bool(workers() - before)

        yield advance


def workers() -> set[int]:
    """The processes of the pool's actors that descend from this one."""
    parents: dict[int, int] = {}
    actors = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
                if b"MapWorker" in (folder / "cmdline").read_bytes():
                    actors.add(int(folder.name))
            except OSError:
                continue

    def is_ours(process: int) -> bool:
        while process > 1:
            process = parents.get(process, 0)
            if process == os.getpid():
                return True
        return False

    return {each for each in actors if is_ours(each)}


def stages(path: Path, chosen: RunConfig, killer: ProgressDisplay = null_progress) -> None:
    with RunDirectory.open(path, create=True) as run:
        collect(run, chosen)
        generate(run, chosen, progress=killer)
        score(run, chosen)
        with open_executor(chosen) as executor:
            calibrators: dict[str, dict[str, Calibrator]] = load_calibrators(run, chosen)
            evaluator = Evaluator(run, chosen, calibrators, executor)
            evaluator.evaluate(chosen.method_names[0], ["optimization"], models=MethodModels())


@pytest.mark.timeout(400)
def test_on_a_cluster_whose_worker_is_killed_every_stage_writes_the_bytes_of_local(
    cluster: Executor, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages(tmp_path / "local", config())
    finally:
        torch.set_num_threads(threads)
    killer = Killer()
    stages(tmp_path / "ray", config(*RAY), killer)
    assert killer.killed and killer.replaced
    expected = digests(tmp_path / "local")
    assert digests(tmp_path / "ray") == expected
    assert sum(name.endswith(".parquet") for name in expected) >= 8 + 2 + 2


@pytest.mark.timeout(200)
def test_a_fault_of_the_user_s_comes_back_from_the_cluster_as_it_is(cluster: Executor) -> None:
    prompt = Prompt("p", (Message("user", "Hello."),), "train", "test")
    work = EncodedWork(GenerateWork(config("model=./no-such-folder")), Response)
    with pytest.raises(ModelError, match="no such folder"):
        list(cluster.map(work, [ShardTask([prompt], "key", 0)]))


@pytest.mark.timeout(200)
def test_more_workers_than_the_cluster_holds_are_refused_before_anything_waits(cluster: Executor) -> None:
    work = EncodedWork(GenerateWork(config()), Response)
    list(cluster.map(work, []))  # the cluster is there
    started = time.monotonic()
    with (
        open_executor(config("executor={kind: ray, workers: 50}")) as greedy,
        pytest.raises(ExecutorError, match="50 workers of 1 CPUs on a Ray cluster of 3 CPUs"),
    ):
        list(greedy.map(work, [ShardTask([], "key", 0)]))
    assert time.monotonic() - started < 60, "it waited"
