"""A rehearsal: the whole recipe in miniature, in a folder of its own, timed task by task.

What a run will take is best known from having done a little of it: `plan.py` scales what is measured here. It also
meets, before anything is spent, whatever would have stopped the run.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rheostat import pipeline
from rheostat.config import RunConfig
from rheostat.plugins import Progress
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.rundir import RunDirectory

_WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True)
class Miniature:
    """How small a rehearsal is: prompts to train on, prompts of each evaluation, training steps."""

    train_prompts: int = 24
    evaluation_prompts: int = 4
    steps: int = 24


@dataclass(slots=True)
class Task:
    """A progress bar's work: its items, and when each of them was finished, in seconds since it began."""

    label: str
    unit: str
    total: int = 0
    seconds: float = 0.0
    marks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds_each(self) -> float:
        """Seconds an item: of training steps the median after a few, else all seconds over all items."""
        if self.unit == "steps" and len(self.marks) > _WARM_UP_STEPS + 1:
            times = [when for when, _ in self.marks[_WARM_UP_STEPS:]]
            return statistics.median(later - earlier for earlier, later in zip(times, times[1:], strict=False))
        return self.seconds / max(1, self.total)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rehearsal took: its tasks in order, all its seconds, the peak of memory in bytes, and what it wrote."""

    config: RunConfig
    tasks: tuple[Task, ...]
    seconds: float
    peak_memory: int
    summaries: dict[str, dict[str, Any]]
    bytes_written: dict[str, int]


def rehearse(config: RunConfig, size: Miniature, *, progress: ProgressDisplay = null_progress) -> Rehearsed:
    """Run `config` in miniature in a temporary folder; `progress` sees its stages. Raises whatever the run would."""
    small = miniature(config, size)
    watch = _StopWatch(progress)
    with tempfile.TemporaryDirectory(prefix="rheostat-rehearsal-") as folder:
        out = Path(folder) / "run"
        started = time.perf_counter()
        pipeline.run(small, out, progress=watch)
        seconds = time.perf_counter() - started
        summaries, written = _look(out)
    return Rehearsed(small, tuple(watch.tasks), seconds, _peak_memory(), summaries, written)


def miniature(config: RunConfig, size: Miniature) -> RunConfig:
    """The recipe with fewer prompts and steps, nothing else changed."""

    def least(limit: int | None, few: int) -> int:
        return few if limit is None else min(limit, few)

    prompts = config.prompts.model_copy(
        update={
            "train_limit": least(config.prompts.train_limit, size.train_prompts),
            "evaluation_limit": least(config.prompts.evaluation_limit, size.evaluation_prompts),
            "calibration_limit": least(config.prompts.calibration_limit, size.evaluation_prompts),
        }
    )
    forged = least(config.evaluate.forged_prompts, size.evaluation_prompts)
    evaluate = config.evaluate.model_copy(update={"forged_prompts": forged})
    overrides = {
        name: {key: least(value, size.steps) if key == "steps" else value for key, value in given.items()}
        for name, given in config.train.overrides.items()
    }
    train = config.train.model_copy(
        update={"steps": least(config.train.steps, size.steps), "overrides": overrides}
    )
    rounds = config.rounds
    if rounds.steps is not None:
        rounds = rounds.model_copy(update={"steps": least(rounds.steps, size.steps)})
    suite = config.suite
    if suite is not None:
        suite = suite.model_copy(update={"limit": least(suite.limit, size.evaluation_prompts)})
    changed = {"prompts": prompts, "train": train, "rounds": rounds, "evaluate": evaluate, "suite": suite}
    return config.model_copy(update=changed)


class _StopWatch:
    """A progress display that times what it shows through another."""

    def __init__(self, shown: ProgressDisplay) -> None:
        self._shown = shown
        self.tasks: list[Task] = []

    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Progress]:
        timed = Task(label, unit)
        self.tasks.append(timed)
        started = time.perf_counter()
        with self._shown.task(label, total, unit=unit, done=done) as advance:

            def tell(count: int) -> None:
                timed.total += count
                timed.marks.append((time.perf_counter() - started, count))
                advance(count)

            yield tell
        timed.seconds = time.perf_counter() - started


def _look(out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """The summary of each stage, and the bytes under each of the run's folders and files."""
    with RunDirectory.open(out, read_only=True) as run:
        names = [
            path.parent.relative_to(out).as_posix()
            for path in sorted(out.rglob("done.json"))
        ]
        summaries = {name: run.finished(name).summary for name in names}
    written: dict[str, int] = {}
    for path in out.rglob("*"):
        if path.is_file():
            top = path.relative_to(out).parts[0]
            written[top] = written.get(top, 0) + path.stat().st_size
    return summaries, written


def _peak_memory() -> int:
    """Bytes that this process has held at most; on CUDA what torch has held there."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
