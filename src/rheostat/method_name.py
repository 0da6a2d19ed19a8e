"""A method's name as a recipe writes it: what is tuned, on which data, from where, whether it is reranked. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from rheostat import plugins
from rheostat.errors import did_you_mean
from rheostat.method_suffixes import SUFFIXES

Variant = Literal["moec", "raw", "pool"]
_Item = TypeVar("_Item")
_VARIANTS = ("raw", "moec", "pool")
_SHARE, _ROUND, _START = r"x0\.\d+", r"round([2-9])", r"from_(\w+)"


class TrainingData(BaseModel):
    """Which rows a tuned method learns from.

    Examples of a variant, or pairs (`variant="pairs"`, the chosen response being the one with more of the attribute
    `by`, None: of the mean of all), or prompts alone (`variant="prompts"`: nothing is distilled); of the
    first `share` of the training prompts; with `mixed`, prompts of each class in the recipe's ratios (`mixing`). From
    `round` 2 on also what the models of the rounds before answered: those of the method `sampler` (`exmate`,
    `exmate+from_clm`), learning from the same variant and share.
    """

    model_config = ConfigDict(frozen=True)

    variant: Literal["moec", "raw", "pool", "pairs", "prompts"]
    share: float = 1.0
    by: str | None = None
    mixed: bool = False
    round: int = 1
    sampler: str | None = None

    def __str__(self) -> str:
        parts = [self.variant, self.by, "fdc" if self.mixed else None]
        parts += [None if self.share == 1 else f"x{self.share:g}", None if self.round == 1 else f"round{self.round}"]
        return "+".join(part for part in [*parts, self.sampler] if part)

    @property
    def stage(self) -> str:
        """The name of the stage that distils it."""
        return f"distil/{self}"

    @property
    def round_stage(self) -> str:
        """The name under which the stages lie that sample and score what its last round added."""
        assert self.round > 1, self
        return f"rounds/{self}"

    @property
    def further(self) -> "tuple[TrainingData, ...]":
        """The data of the rounds up to this one, the first one's left out: each added what its model answered."""
        return tuple(self.model_copy(update={"round": each}) for each in range(2, self.round + 1))

    @property
    def before(self) -> "TrainingData":
        """The data of the round before."""
        assert self.round > 1, self
        sampler = self.sampler if self.round > 2 else None
        return self.model_copy(update={"round": self.round - 1, "sampler": sampler})

    def first(self, prompts: Sequence[_Item]) -> Sequence[_Item]:
        """Of the training prompts, in the order of their collection, the first `share`."""
        return prompts[: max(1, round(len(prompts) * self.share))]


class MethodName(BaseModel):
    """A method's name taken apart.

    `exmate+raw+reranking` is objective `exmate`, variant `raw`, reranked; `exmate+x0.25` learned from a quarter of the
    training prompts, `exmate+round2` also from what its first round answered; `rlhf+from_exmate` goes on from ExMATE's
    model; `dpo+safety` prefers the safer response of each pair, `dpo+fdc` learns from prompts mixed by class.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    method: str
    objective: str | None = None
    variant: Variant | None = None
    share: float = 1.0
    reranking: bool = False
    by: str | None = None
    mixed: bool = False
    round: int = 1
    start: str | None = None

    @property
    def is_dialled_model(self) -> bool:
        """Whether it is a tuned model by itself that reads the control, as is exported and served."""
        return self.objective is not None and not self.reranking and self.has_dial

    @property
    def has_dial(self) -> bool:
        """Whether its responses depend on the control; reranking gives any model a dial. Loads the plug-in."""
        if self.objective is None:
            found: bool = plugins.load("methods", self.method).HAS_DIAL
            return found
        return self.reranking or plugins.needs(self.objective).control

    def identity(self) -> dict[str, Any]:
        """What tells its results from another method's; parts that came later only where they say something."""
        later = {"by": None, "mixed": False, "round": 1, "start": None}
        found = self.model_dump(exclude={"name"})
        return {key: value for key, value in found.items() if key not in later or value != later[key]}

    @classmethod
    def parse(cls, name: str) -> "MethodName":
        """Parse; raises `ValueError` naming what is allowed."""
        head, *suffixes = name.split("+")
        trainable = plugins.available("objectives")
        free = plugins.named_methods()
        if head not in trainable + free:
            raise ValueError(
                f"got {name!r}, allowed are {', '.join(free + trainable)}{did_you_mean(head, free + trainable)}"
            )
        if head in free:
            if suffixes:
                raise ValueError(f"got {name!r}, allowed suffixes of {head} are none")
            return cls(name=name, method=head)
        return cls(name=name, method="tuned", objective=head, **_parts(name, head, suffixes))


class _Part(NamedTuple):
    """What a suffix says: the field of `MethodName`, its value, and the form under which `SUFFIXES` has it."""

    field: str
    value: Any
    form: str


def _parts(name: str, head: str, suffixes: Sequence[str]) -> dict[str, Any]:
    """What the suffixes of a tuned method say, by field. Raises `ValueError`."""
    found: dict[str, _Part] = {}
    for suffix in suffixes:
        part = _read(suffix)
        if part is None or part.field in (each.field for each in found.values()):
            known = _suffixes(head)
            near = did_you_mean(suffix, known) if part is None else ""
            raise ValueError(f"got {name!r}, allowed suffixes of {head} are, each once, {', '.join(known)}{near}")
        found[suffix] = part
    if found:
        _refuse_unfit(name, head, found)
    return {part.field: part.value for part in found.values()}


def _read(suffix: str) -> _Part | None:
    """A suffix taken apart; None where it is none."""
    if suffix in _VARIANTS:
        return _Part("variant", suffix, f"+{suffix}")
    if suffix == "reranking":
        return _Part("reranking", True, "+reranking")
    if suffix == "fdc":
        return _Part("mixed", True, "+fdc")
    if suffix in plugins.available("attributes"):
        return _Part("by", suffix, "+DIAL")
    if re.fullmatch(_SHARE, suffix) and float(suffix[1:]) > 0:
        return _Part("share", float(suffix[1:]), "+x0.25")
    if match := re.fullmatch(_ROUND, suffix):
        return _Part("round", int(match[1]), "+round2")
    if (match := re.fullmatch(_START, suffix)) and match[1] in plugins.available("objectives"):
        return _Part("start", match[1], "+from_OBJECTIVE")
    return None


def _starts() -> list[str]:
    """The objectives whose trainings leave a model that another can start from. Loads them."""
    return [name for name in plugins.available("objectives") if not plugins.needs(name).experts]


def _suffixes(head: str) -> list[str]:
    """The suffixes that say something to what an objective learns from, written out, one of each kind of number."""
    variable = {"+DIAL": plugins.available("attributes"), "+from_OBJECTIVE": [f"from_{start}" for start in _starts()]}
    fit = [each for each in SUFFIXES if each.applies(plugins.needs(head))]
    return [text for each in fit for text in variable.get(each.form, [each.form.removeprefix("+")])]


def _refuse_unfit(name: str, head: str, found: Mapping[str, _Part]) -> None:
    """Raises `ValueError` for a suffix that says nothing to what the objective learns from, or starts from no model."""
    needs = plugins.needs(head)
    by_form = {each.form: each for each in SUFFIXES}
    if unfit := sorted(suffix for suffix, part in found.items() if needs.rows not in by_form[part.form].rows):
        raise ValueError(f"got {name!r}: {head} learns from {needs.rows}, to which {', '.join(unfit)} says nothing")
    for part in found.values():
        if by_form[part.form].is_steered and not needs.control:
            raise ValueError(f"got {name!r}: {head} reads no control, by which a further round is steered")
        if by_form[part.form].is_ordering and needs.ordered_by not in (None, part.value):
            raise ValueError(
                f"got {name!r}: of {head}'s pairs the response of more {needs.ordered_by} is by definition the chosen "
                f"one, allowed is {head} without +{part.value}"
            )
        if part.field == "start" and plugins.needs(part.value).experts:
            raise ValueError(
                f"got {name!r}: {part.value} trains routers and leaves no model to start from, allowed after from_ are "
                f"{', '.join(_starts())}"
            )
