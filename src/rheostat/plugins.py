"""One Protocol a kind of plug-in, and the loader: a plug-in's file name is its registration.

| kind         | the file defines                                     | protocol       |
|--------------|------------------------------------------------------|----------------|
| `attributes` | `ATTRIBUTE: Attribute`                               | `Attribute`    |
| `rewards`    | `OPTIONS`, `NEEDS_MODEL`, `build(spec, options, ...)`  | `RewardKind`   |
| `objectives` | `OPTIONS`, `NEEDS`, `loss(...)` (`OnlineObjective`: `reward(...)`) | `Objective` |
| `methods`    | `OPTIONS`, `HAS_DIAL`, `models(dials)`, `build(context)`, perhaps `NEEDS` | `MethodKind` |
| `engines`    | `OPTIONS`, `NEEDS_POLICY`, `build(model, ...)`       | `EngineKind`   |
| `executors`  | `OPTIONS`, `build(options)`, a context's `Executor`  | `ExecutorKind` |
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from rheostat.errors import PluginNotFound, did_you_mean
from rheostat.records import Attribute, Control, Finish, Message, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from rheostat.config import Dtype, LoraConfig, RewardConfig
    from rheostat.control import ControlFormat
    from rheostat.models import Policy

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


class Models(Protocol):
    """The models that a method works with, loaded as they are asked for."""

    def base(self) -> "Policy":
        """The untuned model, shared: a method that edits its weights puts them back."""
        ...

    def tuned(self, role: str) -> "Policy":
        """The model of one of the method's trainings (`models`), loaded anew at each call."""
        ...

    def folder(self, role: str) -> Path:
        """The stage of that training: `model/`, and what else the training wrote there (`adapter/`)."""
        ...

    def engine(self, policy: "Policy") -> Engine:
        """The recipe's engine in process over a policy."""
        ...


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method may use: the engine of its model and whether that model reads controls, the run's own scorer,
    the attributes, how many candidates it may sample, further models, and its own options.
    """

    engine: Engine
    is_controlled: bool
    scorer: Scorer
    attributes: tuple[Attribute, ...]
    samples: int
    models: Models
    options: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodNeeds:
    """What a method needs of a recipe beside its models; none where its file says nothing (`NEEDS`).

    `dials`: so many at least. `whole_weights`: of the base and of its models, in no 4 bits. `adapters`: its models are
    taken as their adapters, so that they must be trained with such.
    """

    dials: int = 1
    whole_weights: bool = False
    adapters: bool = False


class MethodKind(Protocol):
    """A method's file, seen as an object; it imports nothing heavy outside `build`.

    A constant `NEEDS: MethodNeeds` is its own to have, where it needs more of a recipe than its models.
    `OPTIONS` is a frozen dataclass that refuses bad values: what `method_options.NAME` of the recipe may say.
    `HAS_DIAL`: whether its responses depend on the control, which makes it a curve and not a point.
    """

    OPTIONS: type[Any]
    HAS_DIAL: bool

    def models(self, dials: Sequence[str]) -> Mapping[str, str]:
        """The trainings that it needs, by the role that each plays: tuned methods' names, as a recipe writes them.

        `dials` are in the order of the control text, as are a context's attributes.
        """
        ...

    def build(self, context: MethodContext) -> Method:
        """The method."""
        ...


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
    """What an objective of examples is computed from.

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
class PairInputs:
    """What an objective of pairs is computed from: two responses to each prompt, the chosen and the rejected one.

    All log-probabilities are `(pairs, tokens)`, tokens of a row counted from the first of its prompt. `reference_*`:
    of the frozen model that training started from. `chosen_scores` and `rejected_scores`: attribute → `(pairs,)`,
    calibrated, in [0, 1]. `shared` `(pairs,)`: how many of their first tokens the two responses have in common.
    `chosen_token_rewards` and `rejected_token_rewards` `(pairs, tokens)`: r_t = log p_R(y_t) − log p_ref(y_t), nats, of
    the model R that `Needs.token_rewards_of` names, zero elsewhere; None where it names none. `gates`: what a routed
    model's gates were, by role, `(layers × tokens of the batch,)` each; empty for other models. `ordered_by`: the
    attribute whose score says which response is the chosen one; None: the mean over attributes.
    """

    chosen: LogProbabilities
    rejected: LogProbabilities
    reference_chosen: LogProbabilities
    reference_rejected: LogProbabilities
    chosen_scores: "Mapping[str, Tensor]"
    rejected_scores: "Mapping[str, Tensor]"
    shared: "Tensor"
    chosen_token_rewards: "Tensor | None" = None
    rejected_token_rewards: "Tensor | None" = None
    gates: "Mapping[str, Tensor]" = field(default_factory=dict)
    ordered_by: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss to minimise, a scalar with gradient, and the parts it is made of, for the log."""

    total: "Tensor"
    parts: Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an objective learns from.

    `rows`: `examples` (a response under its scores as a control), `pairs` (two responses to a prompt, one of them
    preferred), or `prompts` alone, answered while it trains. `control`: whether the model reads the control; what is
    trained without one is a point, not a dial. `counterfactual`: examples also under an untreated control.
    `ordered_by`: the attribute whose score says which response of a pair is the chosen one; None: the mean over
    attributes. `attributes`: those whose scores it reads by name, which a run must have. `keeps`: which rows, by their
    calibrated scores: `keeps(scores)` of an example, of a pair `keeps(chosen, rejected)`; None keeps all.
    `token_rewards_of`: the training (a method's name) whose model rewards tokens. `experts`: trainings by role whose
    adapters stand frozen in the model, under gates that are trained, by routers of the width that the objective's
    option `width` says; the base's weights and theirs stay, and no `model/` is saved, but the routers with the
    adapters. `adapter`: with which adapter `train.lora: auto` trains it, whatever the model's size; None: as
    `train.lora_above` says. `importance`: whether the training also writes how much each weight matters to its loss
    (`weight_importance.py`).
    """

    rows: Literal["examples", "pairs", "prompts"] = "examples"
    control: bool = True
    counterfactual: bool = False
    ordered_by: str | None = None
    attributes: tuple[str, ...] = ()
    keeps: Callable[..., bool] | None = None
    token_rewards_of: str | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    importance: bool = False
    adapter: "LoraConfig | None" = None


class Objective(Protocol):
    """A training objective's file, seen as an object."""

    OPTIONS: type[Any]
    NEEDS: Needs

    def loss(self, inputs: Any, options: Any) -> Loss:
        """The loss of a batch: of `ObjectiveInputs` where it needs examples, of `PairInputs` where it needs pairs."""
        ...


class OnlineOptions(Protocol):
    """What the options of every objective that learns from prompts alone say, beside what it has of its own."""

    @property
    def beta(self) -> float:
        """What a nat of divergence from the reference costs."""
        ...

    @property
    def prompts(self) -> int:
        """Prompts a step."""
        ...

    @property
    def samples(self) -> int:
        """Responses to each of them."""
        ...

    @property
    def temperature(self) -> float:
        """At which they are drawn."""
        ...


class OnlineObjective(Protocol):
    """The file of an objective that learns from prompts alone (`rows="prompts"`): it rewards what the model answers."""

    OPTIONS: type[Any]
    NEEDS: Needs

    def reward(self, scores: Sequence[Scores], controls: Sequence[Control], options: Any) -> dict[str, list[float]]:
        """Per component its reward of each response, at most 0; what is maximised is their sum less the KL penalty."""
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


def named_methods() -> list[str]:
    """The methods that a recipe calls by their file's name: all but `tuned`, which it calls by the objective's."""
    return [name for name in available("methods") if name != "tuned"]


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in file `name` of a kind; raises `PluginNotFound` with the nearest name."""
    names = available(kind)
    if name not in names:
        raise PluginNotFound(
            f"{kind}: got {name!r}, allowed are {', '.join(names)}{did_you_mean(name, names)}",
            hint=f"use one of those, or add it as a file of that name in {kind}/",
        )
    return importlib.import_module(f"rheostat.{kind}.{name}")


def needs(objective: str) -> Needs:
    """What the objective of that name learns from."""
    found: Needs = load("objectives", objective).NEEDS
    return found


def methods_made_of(training: str, dials: Sequence[str]) -> list[str]:
    """The methods that need a training, named as a recipe names it, in a run with those dials."""
    return [name for name in named_methods() if training in load("methods", name).models(dials).values()]


def attribute(name: str) -> Attribute:
    """The attribute `name`."""
    found: Attribute = load("attributes", name).ATTRIBUTE
    return found
