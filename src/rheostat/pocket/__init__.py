"""The pocket world: a small honest world with its own tasks, models and known truth, offline.

Importing it loads no torch. ``prompts`` gives the requests of a split, ``judge`` the truth about a response,
``weights`` the directory of a shipped model; ``rheostat.pocket.build.build`` makes them all from nothing.
"""

from __future__ import annotations

from pathlib import Path

from rheostat.errors import ModelError
from rheostat.pocket.corpus import PocketPrompt, Task, prompts, tasks
from rheostat.pocket.truth import Truth, UnknownTask, judge

WEIGHTS = Path(__file__).parent / "weights"


def weights(name: str) -> Path:
    """The directory of a shipped model, e.g. ``weights("chat")``, in Hugging Face's format.

    Raises:
        ModelError: there is none of that name; the message lists those there are.
    """
    found = sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))
    if name not in found:
        raise ModelError(
            f"got the pocket model {name!r}; there are {', '.join(found) if found else 'none'}",
            hint="name one of those, or make the weights with `rheostat pocket build`",
        )
    return WEIGHTS / name


__all__ = [
    "WEIGHTS",
    "PocketPrompt",
    "Task",
    "Truth",
    "UnknownTask",
    "judge",
    "prompts",
    "tasks",
    "weights",
]
