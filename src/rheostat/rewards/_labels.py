"""Which labels of a classifier count for a score, and as what.

| what the classifier is            | `logit` of one label              | `logit` of a weighted sum            |
|-----------------------------------|-----------------------------------|--------------------------------------|
| one logit                         | that logit                        | its weight times that logit          |
| several labels, one of them true  | log-odds: zₖ − log Σⱼ≠ₖ exp(zⱼ)   | Σ wₖzₖ; the wₖ must sum to 0         |
| several labels, each true or not  | zₖ                                | Σ wₖzₖ                               |
| regression                        | zₖ                                | Σ wₖzₖ                               |

Under a softmax a label's own logit says nothing across texts (any number may be added to all of them), so of one
label its log-odds counts. `probability` and `log_probability` are of a softmax or of each label's sigmoid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rheostat.errors import RewardError, did_you_mean

Output = Literal["logit", "probability", "log_probability"]
Truth = Literal["one", "each", "number"]
"""One of the labels is true, each is true or not, or each is a number."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The weight of each label that counts, by its place among the `labels`, and as what it counts."""

    weights: Mapping[int, float]
    output: Output
    truth: Truth
    is_sum: bool

    def score(self, logits: Sequence[float]) -> float:
        """The score of one text from its logits, one a label."""
        if len(logits) == 1 and self.output == "logit":
            return self.weights[0] * logits[0] if self.is_sum else logits[0]
        values = {place: self._value(logits, place) for place in self.weights}
        if not self.is_sum:
            return next(iter(values.values()))
        return math.fsum(weight * values[place] for place, weight in self.weights.items())

    def _value(self, logits: Sequence[float], place: int) -> float:
        others = [each for at, each in enumerate(logits) if at != place]
        if self.output == "logit":
            needs_odds = self.truth == "one" and not self.is_sum
            return logits[place] - _log_sum_exp(others) if needs_odds else logits[place]
        odds = logits[place] - _log_sum_exp(others) if self.truth == "one" else logits[place]
        log_probability = -_softplus(-odds)
        return log_probability if self.output == "log_probability" else math.exp(log_probability)


def choose(
    names: Sequence[str],
    problem_type: str | None,
    *,
    label: str | int | None,
    labels: Mapping[str | int, float] | None,
    output: Output,
    model: str,
) -> Counted:
    """What counts of a classifier with the labels `names`; raises `RewardError` where that is not clear."""
    truth: Truth = {"multi_label_classification": "each", "regression": "number"}.get(  # type: ignore[assignment]
        problem_type or "", "each" if len(names) == 1 else "one"
    )
    if truth == "number" and output != "logit":
        raise RewardError(
            f"{model}: got output {output!r} of a regression, allowed is 'logit'",
            hint="a regression's outputs are no probabilities; leave `output` away",
        )
    if label is None and labels is None:
        if len(names) > 1:
            raise RewardError(
                f"{model}: got a classifier of {len(names)} labels and no choice among them, allowed is one of "
                f"{_shown(names)}",
                hint=f"say `label: {names[0]}`, or weigh several: `labels: {{{names[0]}: -1, {names[1]}: 1}}`",
            )
        return Counted({0: 1.0}, output, truth, is_sum=False)
    if labels is None:
        assert label is not None
        return Counted({_place(label, names, model): 1.0}, output, truth, is_sum=False)
    weights: dict[int, float] = {}
    for name, weight in labels.items():
        place = _place(name, names, model)
        if place in weights:
            raise RewardError(
                f"{model}: got the label {names[place]!r} twice, allowed is once", hint="one weight a label"
            )
        weights[place] = weight
    if truth == "one" and output == "logit" and abs(math.fsum(weights.values())) > 1e-9:
        raise RewardError(
            f"{model}: got weights that sum to {math.fsum(weights.values()):g} over the logits of a softmax, "
            "allowed is a sum of 0",
            hint="only differences of its logits mean anything; or set `output: probability`",
        )
    return Counted(weights, output, truth, is_sum=True)


def _place(label: str | int, names: Sequence[str], model: str) -> int:
    if label in names:
        return list(names).index(str(label))
    text = str(label)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise RewardError(
        f"{model}: got the label {label!r}, allowed are {_shown(names)}{did_you_mean(text, names)}",
        hint="a label is given by its name or its number, from 0, as in the model's config.json",
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:24]) + (f" and {len(names) - 24} more" if len(names) > 24 else "")


def _log_sum_exp(values: Sequence[float]) -> float:
    """log Σ exp(v); −∞ of none."""
    highest = max(values, default=-math.inf)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _softplus(value: float) -> float:
    """log(1 + exp(v)), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
