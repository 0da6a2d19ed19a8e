"""One Protocol a kind of plug-in, and the loader: a plug-in's file name is its registration.

| kind         | the file defines                                     | protocol       |
|--------------|------------------------------------------------------|----------------|
| `attributes` | `ATTRIBUTE: Attribute`                               | `Attribute`    |
| `rewards`    | `OPTIONS`, `NEEDS_MODEL`, `build(spec, options, ...)`  | `RewardKind`   |
| `objectives` | `OPTIONS`, `NEEDS_COUNTERFACTUAL`, `loss(...)`       | `Objective`    |
| `methods`    | `build(context) -> Method`                           | `Method`       |
| `engines`    | `OPTIONS`, `NEEDS_POLICY`, `build(model, ...)`       | `EngineKind`   |
| `executors`  | `OPTIONS`, `build(options)`, a context's `Executor`  | `ExecutorKind` |
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from rheostat.errors import PluginNotFound, did_you_mean
from rheostat.records import Attribute, Control, Finish, Message

if TYPE_CHECKING:
    from torch import Tensor

    from rheostat.config import Dtype, RewardConfig
    from rheostat.control import ControlFormat

Kind = Literal["attributes", "rewards", "objectives", "methods", "engines", "executors"]
Progress = Callable[[int], None]
Task = TypeVar("Task")
Result = TypeVar("Result")
TaskIn = TypeVar("TaskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: `temperature` 0 is greedy; `top_p` in (0, 1]; `max_tokens` counts the end token."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 96


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation to answer `samples` times; `control` None asks the model as it is."""

    messages: tuple[Message, ...]
    control: Control | None = None
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled text, its tokens with the end token, and why it ended."""

    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation and the response to be scored."""

    messages: tuple[Message, ...]
    response: str


class Engine(Protocol):
    """Generates text."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Per request its `samples` completions, in order; `progress` is told of finished completions."""
        ...


class EngineKind(Protocol):
    """An engine's file, seen as an object.

    A recipe is validated with it, so none but the default's imports anything heavy (torch, a client) before `build`.
    `OPTIONS` is a frozen dataclass that refuses bad values: the keys of the recipe's block beside `kind`. With
    `NEEDS_POLICY` it generates with a loaded model, in process; without, the model is served elsewhere.
    """

    OPTIONS: type[Any]
    NEEDS_POLICY: bool

    def build(
        self, model: Any, control_format: "ControlFormat | None", *, batch_tokens: int, options: Any
    ) -> Engine:
        """The engine of a `Policy`, or of a model by its folder or id.

        With a `control_format`, controls reach the model and forged ones in the conversation are neutralised.
        """
        ...


class Reward(Protocol):
    """Scores responses; higher means more of the attribute."""

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """One finite raw score an item, in the reward's own units, in order."""
        ...


@dataclass(frozen=True, slots=True)
class PartedScores:
    """Raw scores, one an item, and those of the parts that they were made from, by the part's name."""

    combined: list[float]
    parts: Mapping[str, list[float]]


@runtime_checkable
class PartedReward(Protocol):
    """A reward made of others, whose own scores are to be stored too."""

    def score_parts(self, items: Sequence[Judged], *, progress: Progress | None = None) -> PartedScores:
        """What `score` gives, with the raw scores of its parts."""
        ...


class RewardKind(Protocol):
    """A reward's file, seen as an object.

    A recipe is validated with it, so it imports nothing heavy (torch, a client) outside `build`. `OPTIONS` is a
    frozen dataclass that refuses bad values: the keys of the recipe's block beside kind, model, sign and calibration.

    A file may also define, and `reward_tree.py` reads: `NESTED`, the names of the options that hold further rewards
    by name; `files(options)`, the files beside the model whose bytes decide a score; `problems(spec, options)`, what
    can be seen to be wrong before anything is loaded, a line each.
    """

    OPTIONS: type[Any]
    NEEDS_MODEL: bool

    def build(
        self,
        spec: "RewardConfig",
        options: Any,
        *,
        attribute: str,
        dtype: "Dtype",
        device: str,
        batch_tokens: int,
    ) -> Reward:
        """The reward of a recipe's block; a model's batches are bounded by `batch_tokens`."""
        ...


class Scorer(Protocol):
    """All rewards of one party (the run's own, or one set of judges), each with its calibrator."""

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[dict[str, float]]:
        """Per item the calibrated score in [0, 1] of each attribute."""
        ...


@dataclass(frozen=True, slots=True)
class ControlledRequest:
    """A conversation and the control its response should obey."""

    messages: tuple[Message, ...]
    control: Control


@dataclass(frozen=True, slots=True)
class ControlledCompletion:
    """A method's response and all the tokens generated for it, rejected candidates included."""

    completion: Completion
    generated_tokens: int


class Method(Protocol):
    """A way to obtain a controlled response."""

    def respond(
        self,
        requests: Sequence[ControlledRequest],
        sampling: Sampling,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[ControlledCompletion]:
        """One completion a request, in order."""
        ...


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may use: the engine of its model and whether that model reads controls, the run's own scorer,
    the attributes, and how many candidates it may sample.
    """

    engine: Engine
    is_controlled: bool
    scorer: Scorer
    attributes: tuple[Attribute, ...]
    samples: int


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Token log-probabilities of responses, padded with zeros: `(rows, tokens)`, nats; `mask` is 1 on tokens."""

    values: "Tensor"
    mask: "Tensor"

    def mean(self) -> "Tensor":
        """ℓ: mean token log-probability of each row, `(rows,)`; a row without tokens gives 0."""
        return self.sum() / self.mask.sum(-1).clamp(min=1)

    def sum(self) -> "Tensor":
        """Summed log-probability of each row, `(rows,)`."""
        return (self.values * self.mask).sum(-1)


@dataclass(frozen=True, slots=True)
class ObjectiveInputs:
    """What an objective is computed from.

    `factual`: log p(y | x, ζ), one row an example. `counterfactual`: log p(y | x, ζ′) for a uniform sub-sample of
    the examples, or None where the objective asks for none; `rows` `(counterfactual rows,)` says which example
    each belongs to; `changed` `(counterfactual rows, attributes)` is 1 where ζ′ differs from ζ. `warmth` in [0, 1]
    multiplies the objective's λ: below 1 while it warms up.
    """

    factual: LogProbabilities
    counterfactual: LogProbabilities | None = None
    rows: "Tensor | None" = None
    changed: "Tensor | None" = None
    warmth: float = 1.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss to minimise, a scalar with gradient, and the parts it is made of, for the log."""

    total: "Tensor"
    parts: Mapping[str, "Tensor"]


class Objective(Protocol):
    """A training objective's file, seen as an object."""

    OPTIONS: type[Any]
    NEEDS_COUNTERFACTUAL: bool

    def loss(self, inputs: ObjectiveInputs, options: Any) -> Loss:
        """The loss of a batch."""
        ...


class Work(Protocol[TaskIn, ResultOut]):
    """What an executor maps over tasks: it, its tasks and their results can be pickled."""

    def open(self) -> Callable[[TaskIn], ResultOut]:
        """Loads what the work needs (models), once, in the process where it runs; a task's result is its alone."""
        ...


class Executor(Protocol):
    """Where work runs: this process, or the workers of a cluster."""

    def map(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """The result of every task with its place among them, in any order; what `work` raises passes."""
        ...


class ExecutorKind(Protocol):
    """An executor's file, seen as an object; it imports nothing heavy outside `build`.

    `OPTIONS` is a frozen dataclass that refuses bad values: the keys of the recipe's block beside `kind`.
    """

    OPTIONS: type[Any]

    def build(self, options: Any) -> AbstractContextManager[Executor]:
        """The executor, with what it holds given back at the end."""
        ...


def available(kind: Kind) -> list[str]:
    """The names of the plug-ins of a kind, read off the folder, sorted."""
    folder = Path(__file__).parent / kind
    return sorted(
        module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_")
    )


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in file `name` of a kind; raises `PluginNotFound` with the nearest name."""
    names = available(kind)
    if name not in names:
        raise PluginNotFound(
            f"{kind}: got {name!r}, allowed are {', '.join(names)}{did_you_mean(name, names)}",
            hint=f"use one of those, or add it as a file of that name in {kind}/",
        )
    return importlib.import_module(f"rheostat.{kind}.{name}")


def attribute(name: str) -> Attribute:
    """The attribute `name`."""
    found: Attribute = load("attributes", name).ATTRIBUTE
    return found
