"""Build the pocket world's models from nothing: ``build(out)`` writes what ships in ``weights/``.

Tokenizer, chat model, two reward models, two judges, then the figures, each seeded; two cores need about
25 minutes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from rheostat.pocket.comparisons import ATTRIBUTES
from rheostat.pocket.judges import train_judge, train_judge_tokenizer
from rheostat.pocket.language import train_chat, train_tokenizer
from rheostat.pocket.measure import all_figures, rounded
from rheostat.pocket.rewards import train_reward
from rheostat.pocket.training import Budget, save

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a build made: figures by model, files with bytes and SHA-256, seconds by phase, versions."""

    seed: int
    budget: dict[str, int]
    figures: dict[str, dict[str, float | None]]
    files: dict[str, dict[str, int | str]]
    seconds: dict[str, float]
    versions: dict[str, str]
    schema: int = field(default=SCHEMA)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _files(out: Path) -> dict[str, dict[str, int | str]]:
    return {
        path.relative_to(out).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(out.glob("*/*"))
    }


def build(
    out: Path,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    console: Console | None = None,
    threads: int = 2,
) -> Manifest:
    """Train all pocket models and write them, with ``manifest.json``, into ``out``.

    The same seed, versions and machine give the same weights. Progress goes to ``console`` (standard error).
    On a busy machine one of ``threads`` is faster than two that wait for each other.
    """
    budget = budget or Budget()
    console = console or Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - began, 1)
        console.print(f"{name}: {seconds[name]} s")

    with _threads(threads):
        with phase("chat"):
            tokenizer = train_tokenizer(seed, conversations=budget.tokenizer_conversations)
            chat, _ = train_chat(tokenizer, seed, budget=budget, console=console)
            save(chat, tokenizer, out / "chat")
        for place, attribute in enumerate(ATTRIBUTES):
            with phase(f"reward-{attribute}"):
                reward, _ = train_reward(
                    tokenizer, attribute, seed + 1 + place, budget=budget, console=console
                )
                save(reward, tokenizer, out / f"reward-{attribute}")
        judge_tokenizer = train_judge_tokenizer(seed + 10, responses=budget.tokenizer_conversations)
        for place, attribute in enumerate(ATTRIBUTES):
            with phase(f"judge-{attribute}"):
                judge, _ = train_judge(
                    judge_tokenizer, attribute, seed + 11 + place, budget=budget, console=console
                )
                save(judge, judge_tokenizer, out / f"judge-{attribute}")
        with phase("figures"):
            figures = rounded(all_figures(out, budget=budget, seed=seed))
    manifest = Manifest(
        seed=seed,
        budget=asdict(budget),
        figures=figures,
        files=_files(out),
        seconds=seconds,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    )
    (out / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    return manifest
