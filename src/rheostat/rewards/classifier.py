"""A sequence classifier as a reward: the usual kind of reward model, or any classifier of texts.

It reads the conversation with its response in its own chat template; a model without one (an encoder, say) reads the
pair of the prompt's text and the response; `input` says otherwise. The raw score is the logit; of a classifier of
several labels, what `label` or `labels` says (`_labels.py` has the formulas).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rheostat.config import Dtype, RewardConfig
from rheostat.errors import RewardError
from rheostat.plugins import Judged, Progress, Reward
from rheostat.records import Message
from rheostat.rewards._encoding import Input, encode
from rheostat.rewards._labels import Counted, Output, choose

if TYPE_CHECKING:
    from rheostat.models import Classifier
    from rheostat.rewards._logits import Row

NEEDS_MODEL = True

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """What counts of a classifier.

    `label`, a name or number: the one label that counts. `labels`: a weight for each of several. One of them is
    needed where there are several labels. `output`: what is counted of a label. `input`: what the model reads.
    """

    label: str | int | None = None
    labels: dict[str | int, float] | None = None
    output: Output = "logit"
    input: Input = "auto"

    def __post_init__(self) -> None:
        if self.label is not None and self.labels is not None:
            raise ValueError("got both label and labels, allowed is one of them")
        if self.labels is not None and not any(self.labels.values()):
            raise ValueError(f"got labels {self.labels!r}, allowed is a weight that is not 0 for at least one")
        for name, weight in (self.labels or {}).items():
            if not math.isfinite(weight):
                raise ValueError(f"got the weight {weight!r} for {name!r}, allowed are finite numbers")


OPTIONS = ClassifierOptions


def problems(spec: RewardConfig, options: ClassifierOptions) -> Iterator[str]:
    """A choice of labels that the model's config.json, where it is at hand, does not allow."""
    from rheostat.model_files import labels_of

    assert spec.model is not None, spec  # the recipe refuses a classifier without a model
    found = labels_of(spec.model)
    if found is None:
        return
    try:
        _counted(*found, options, spec.model)
    except RewardError as error:
        yield f"{error.message}; {error.hint}"


def build(
    spec: RewardConfig,
    options: ClassifierOptions,
    *,
    attribute: str,
    dtype: Dtype,
    device: str,
    batch_tokens: int,
) -> Reward:
    """The reward of a recipe's block; rows × longest row of a batch is at most `batch_tokens`.

    It is the same for every attribute: what it measures is in its weights. Raises `RewardError` where its labels are
    not those that the block names.
    """
    from rheostat.models import load_classifier

    assert spec.model is not None, spec
    classifier = load_classifier(spec.model, dtype=dtype, device=device)
    return ClassifierReward(classifier, batch_tokens, options)


@dataclass(slots=True)
class ClassifierReward:
    """Scores with a classifier; equal inputs are scored once."""

    classifier: "Classifier"
    batch_tokens: int
    options: ClassifierOptions = ClassifierOptions()
    _counted: Counted = field(init=False)
    _has_warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        classifier = self.classifier
        self._counted = _counted(classifier.labels, classifier.problem_type, self.options, classifier.name)

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """One score an item, in order; what exceeds the model's context is cut (`_encoding.py` says where).

        Raises `RewardError` where a score is not finite.
        """
        from rheostat.rewards._logits import logits

        copies: dict[tuple[tuple[Message, ...], str], list[int]] = {}
        for index, item in enumerate(items):
            copies.setdefault((item.messages, item.response), []).append(index)
        distinct = [items[indices[0]] for indices in copies.values()]
        places = list(copies.values())
        scores = [math.nan] * len(items)
        for batch in logits(
            self.classifier.model,
            self._encode(distinct),
            [item.messages for item in distinct],
            batch_tokens=self.batch_tokens,
        ):
            for number, values in zip(batch.numbers, batch.values, strict=True):
                score = self._counted.score(values) if all(map(math.isfinite, values)) else math.nan
                if not math.isfinite(score):
                    raise self._not_finite(score, distinct[number])
                for index in places[number]:
                    scores[index] = score
            if progress is not None:
                progress(sum(len(places[number]) for number in batch.numbers))
        return scores

    def _encode(self, items: Sequence[Judged]) -> "list[Row]":
        encoded = encode(self.classifier, items, self.options.input)
        if encoded.cut and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: %d of %d conversations exceed its context of %d tokens; their beginning is cut",
                self.classifier.name,
                encoded.cut,
                len(items),
                self.classifier.context,
            )
        return encoded.rows

    def _not_finite(self, score: float, item: Judged) -> RewardError:
        return RewardError(
            f"{self.classifier.name}: got the score {score} for the response {item.response[:80]!r}, "
            "allowed are finite numbers",
            hint="load it with dtype float32, or check the model on this text",
        )


def _counted(
    names: Sequence[str], problem_type: str | None, options: ClassifierOptions, model: str
) -> Counted:
    labels: Mapping[str | int, float] | None = options.labels
    return choose(
        names, problem_type, label=options.label, labels=labels, output=options.output, model=model
    )
