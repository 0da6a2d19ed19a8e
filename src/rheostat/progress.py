"""How far a stage is: a live bar on a terminal, a line now and then elsewhere, nothing in library use.

A stage asks a `ProgressDisplay` for a task and calls what it gets with the number of finished items:

    with progress.task("generate", total=512, unit="responses") as advance:
        advance(64)

Tasks nest: each open one is a bar (or a line) of its own. All of it goes to the console's stream.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from rheostat.plugins import Progress as Advance

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of a task where the stream is no terminal."""


class ProgressDisplay(Protocol):
    """Shows how far tasks are."""

    def task(
        self, label: str, total: int | None, *, unit: str = "items", done: int = 0
    ) -> AbstractContextManager[Advance]:
        """Open a task of `total` items (None: unknown), `done` of them finished before."""
        ...


class _NullProgress:
    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Advance]:
        yield lambda count: None


null_progress: ProgressDisplay = _NullProgress()
"""Shows nothing."""


def console_progress(console: Console) -> ProgressDisplay:
    """Live bars where the console is a terminal, plain lines where it is not."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class LiveProgress:
    """A bar a task: label, bar, count, rate, elapsed, time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            _Column(lambda bar: Text(_count(bar.completed, bar.total), style="progress.percentage")),
            _Column(lambda bar: Text(_rate(_speed(bar), bar.fields["unit"]), style="progress.data.speed")),
            _Column(lambda bar: Text(_duration(bar.finished_time or bar.elapsed), style="progress.elapsed")),
            _Column(lambda bar: Text(_left(bar), style="progress.remaining")),
            console=console,
            expand=True,
        )
        self._open = 0

    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Advance]:
        """Open a bar; the display lives while any bar is open, and the outermost ones stay on screen."""
        nested = self._open > 0
        if not nested:
            self._bars.start()
        self._open += 1
        indent = "  " * (self._open - 1)
        bar = self._bars.add_task(indent + label, total=total, completed=done, unit=unit, done=done)
        try:
            yield lambda count: self._bars.advance(bar, count)
        finally:
            self._open -= 1
            if nested:
                self._bars.remove_task(bar)
            else:
                self._bars.refresh()
                self._bars.stop()
                self._bars.remove_task(bar)


class PlainProgress:
    """A line a task at most every `interval` seconds, and one when it ends."""

    def __init__(
        self,
        console: Console,
        *,
        interval: float = PLAIN_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._interval = interval
        self._clock = clock

    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Advance]:
        """Open a task; a task that ends early, by an error, says how far it came."""
        begun = last = self._clock()
        finished = done

        def line(now: float) -> str:
            elapsed = now - begun
            speed = (finished - done) / elapsed if elapsed > 0 else None
            parts = [f"{label}: {_count(finished, total)} {unit}", _rate(speed, unit)]
            parts.append(f"{_duration(elapsed)} elapsed")
            if total is not None and speed and finished < total:
                parts.append(f"{_duration((total - finished) / speed)} left")
            return ", ".join(part for part in parts if part)

        def show(now: float) -> None:
            self._console.print(line(now), markup=False, highlight=False, soft_wrap=True)

        def advance(count: int) -> None:
            nonlocal finished, last
            finished += count
            now = self._clock()
            if now - last >= self._interval and finished != total:
                last = now
                show(now)

        try:
            yield advance
        finally:
            show(self._clock())


class _Column(ProgressColumn):
    def __init__(self, text: Callable[[Bar], Text]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Bar) -> Text:
        return self._text(task)


def _speed(bar: Bar) -> float | None:
    """Items a second since the task was opened: steady even where items arrive in big shards."""
    elapsed = bar.finished_time or bar.elapsed
    fresh = bar.completed - int(bar.fields["done"])
    return fresh / elapsed if elapsed and fresh > 0 else None


def _left(bar: Bar) -> str:
    speed = _speed(bar)
    if bar.finished or bar.total is None or not speed:
        return ""
    return f"{_duration((bar.total - bar.completed) / speed)} left"


def _count(finished: float, total: float | None) -> str:
    return f"{finished:.0f}" if total is None else f"{finished:.0f}/{total:.0f}"


def _rate(speed: float | None, unit: str) -> str:
    if speed is None:
        return ""
    if speed >= 10_000:
        return f"{speed / 1000:.1f}k {unit}/s"
    return f"{speed:.0f} {unit}/s" if speed >= 100 else f"{speed:.2g} {unit}/s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
