"""What this machine can do: the rate of its float32 matrix products, to hold other figures against."""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rheostat.machine import matmul_rate as matmul_rate
from rheostat.machine import timed as timed


def describe() -> dict[str, Any]:
    """The machine and the versions, for a figure's record."""
    import transformers

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matmul_flops": matmul_rate(),
    }


class Clock:
    """A progress display that notes when each step ended, in seconds; the first `warm_up` steps do not count."""

    def __init__(self, warm_up: int = 4) -> None:
        self._warm_up = warm_up
        self._ends: list[float] = []

    @contextmanager
    def task(self, label: str, total: int | None, *, unit: str = "items", done: int = 0) -> Iterator[Any]:
        yield lambda count: self.tick()

    def tick(self) -> None:
        """A step has ended."""
        self._ends.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        """Seconds of each step that counts."""
        ends = self._ends[self._warm_up :]
        return [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]


def contest(description: str | None, *, model: str, prompts: int, batch_tokens: int) -> argparse.ArgumentParser:
    """The arguments of a benchmark that holds our code against a pipeline at several batch sizes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=model)
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--batch-tokens", type=int, default=batch_tokens)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128], help="must hold 1")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """The figures with the machine they were taken on, as JSON, where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    found = describe()
    for key, value in found.items():
        print(f"{key:14} {value:.3g}" if isinstance(value, float) else f"{key:14} {value}")
    write(given.json, found)
