"""Any Python callable as a reward: `python:my.module:function`, or `{kind: python, function: my.module:function}`.

It is called with a list of items, each `{"messages": [{"role": ..., "content": ...}, ...], "response": ...}`, and
gives a list (or array) of as many finite numbers, higher meaning more of the attribute. `my.module` is found as
`python -m` would find it: in the directory of the command, then among what is installed.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rheostat.config import Dtype, RewardConfig
from rheostat.errors import RewardError, did_you_mean
from rheostat.plugins import Judged, Progress, Reward

NEEDS_MODEL = False

_BATCH = 256
"""Items a call: what progress is told of, and an upper bound on what a function must hold at once."""


@dataclass(frozen=True, slots=True)
class PythonOptions:
    """`function`: the module and the callable in it, `my.module:function`; `batch`: most items a call."""

    function: str
    batch: int = _BATCH

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not colon or not all(part.isidentifier() for part in parts):
            raise ValueError(f"got {self.function!r}, allowed is MODULE:FUNCTION, as in my.module:function")
        if self.batch < 1:
            raise ValueError(f"got batch {self.batch}, allowed are whole numbers of 1 or more")


OPTIONS = PythonOptions


def files(options: PythonOptions) -> dict[str, Path]:
    """The module's file, where it is one: an edit of it makes other scores. What it imports is not looked at."""
    origin = _origin(options.function.partition(":")[0])
    return {} if origin is None else {"function": origin}


def problems(spec: RewardConfig, options: PythonOptions) -> Iterator[str]:
    """A module or function that is not there."""
    try:
        find(options.function)
    except RewardError as error:
        yield f"function: {error.message}"


def build(
    spec: RewardConfig, options: PythonOptions, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The function as a reward, the same for every attribute. Raises `RewardError` where it is not there."""
    return PythonReward(options.function, find(options.function), options.batch)


@dataclass(frozen=True, slots=True)
class PythonReward:
    """Scores by calling a function; what it raises passes."""

    name: str
    function: Callable[[list[dict[str, Any]]], Sequence[float]]
    batch: int

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """What the function says. Raises `RewardError` where that is not one finite number an item."""
        scores: list[float] = []
        for start in range(0, len(items), self.batch):
            part = items[start : start + self.batch]
            scores += self._checked(self.function([_plain(item) for item in part]), part)
            if progress is not None:
                progress(len(part))
        return scores

    def _checked(self, given: Any, items: Sequence[Judged]) -> list[float]:
        hint = "it is given a list of items and gives a list of as many numbers"
        try:
            values = list(given)
        except TypeError:
            raise RewardError(
                f"{self.name}: got {type(given).__name__}, allowed is a list of {len(items)} numbers", hint=hint
            ) from None
        if len(values) != len(items):
            raise RewardError(
                f"{self.name}: got {len(values)} scores for {len(items)} items, allowed is one an item", hint=hint
            )
        scores = []
        for value, item in zip(values, items, strict=True):
            try:
                score = float(value)
            except (TypeError, ValueError):
                score = math.nan
            if not math.isfinite(score):
                raise RewardError(
                    f"{self.name}: got the score {value!r} for the response {item.response[:80]!r}, allowed are "
                    "finite numbers",
                    hint=hint,
                )
            scores.append(score)
        return scores


def find(function: str) -> Callable[..., Any]:
    """The callable `my.module:function`; raises `RewardError` where there is none of that name.

    What the module raises while it is imported passes, its own missing imports included.
    """
    module_name, _, path = function.partition(":")
    if _spec_of(module_name) is None:
        raise RewardError(
            f"got {function!r}, and there is no module {module_name!r} in the working directory or among what is "
            "installed",
            hint="run the command in the directory that holds it, or install it",
        )
    found: Any = importlib.import_module(module_name)
    for name in path.split("."):
        names = [each for each in dir(found) if not each.startswith("_")]
        if not hasattr(found, name):
            raise RewardError(
                f"got {function!r}, and {module_name} has no {name!r}{did_you_mean(name, names)}",
                hint="name a function of the module",
            )
        found = getattr(found, name)
    if not callable(found):
        raise RewardError(
            f"got {function!r}, which is {type(found).__name__}, allowed is a callable",
            hint="name a function of the module",
        )
    callable_found: Callable[..., Any] = found
    return callable_found


def _plain(item: Judged) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in item.messages]
    return {"messages": messages, "response": item.response}


def _origin(module: str) -> Path | None:
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def _spec_of(module: str) -> Any:
    """Where a module would come from, the working directory first, as `python -m` has it."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        return importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
