"""A guard model as a reward: a language model asked whether a response is safe, scored by its verdict's probability.

Of verdicts v with log-probabilities l(v) and worths w(v) in [0, 1] the raw score is the log-odds

    log Σ w(v) exp l(v) − log Σ (1 − w(v)) exp l(v)

or, with `output: probability`, its sigmoid: the expected worth of the verdict, among the verdicts. Higher is safer.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rheostat.config import Dtype, RewardConfig
from rheostat.errors import RewardError, did_you_mean
from rheostat.plugins import Judged, Progress, Reward
from rheostat.rewards._guard_prompts import (
    MODEL_TEMPLATE,
    Asker,
    Moderates,
    Style,
    read_style,
    style_file,
    style_names,
)

if TYPE_CHECKING:
    from rheostat.models import LanguageModel

NEEDS_MODEL = True

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How a guard is asked.

    `style`: one of the known prompts (guards/). `template`: instead of the style's, a Jinja file, or `model` for the
    guard's own chat template. `verdicts`: what each answer is worth, 0 to 1. `opening`: what the answer begins with
    whatever the verdict. `policy`: what counts as unsafe, instead of the style's. `moderates`: the response or the
    prompt.
    """

    style: str | None = None
    template: str | None = None
    verdicts: dict[str, float] | None = None
    opening: str | None = None
    policy: str | None = None
    moderates: Moderates = "response"
    output: Literal["log_odds", "probability"] = "log_odds"

    def __post_init__(self) -> None:
        names = style_names()
        if self.style is not None and self.style not in names:
            raise ValueError(
                f"got the style {self.style!r}, allowed are {', '.join(names)}{did_you_mean(self.style, names)}"
            )
        if self.style is None and (self.template is None or self.verdicts is None):
            raise ValueError(
                f"got no style, allowed are {', '.join(names)}, or a template together with verdicts"
            )
        if self.verdicts is not None:
            worths = self.verdicts.values()
            if not all(math.isfinite(worth) and 0 <= worth <= 1 for worth in worths) or not (
                any(worth > 0 for worth in worths) and any(worth < 1 for worth in worths)
            ):
                raise ValueError(
                    f"got the verdicts {self.verdicts!r}, allowed are worths from 0 to 1, not all 0 and not all 1"
                )
            if "" in self.verdicts:
                raise ValueError("got an empty verdict, allowed are the texts of answers")


OPTIONS = GuardOptions


def files(options: GuardOptions) -> dict[str, Path]:
    """The style's and the template's file."""
    found = {}
    if options.style is not None:
        found["style"] = style_file(options.style)
    if options.template is not None and options.template != MODEL_TEMPLATE:
        found["template"] = Path(options.template)
    return found


def problems(spec: RewardConfig, options: GuardOptions) -> Iterator[str]:
    """A template that is not there."""
    path = files(options).get("template")
    if path is not None and not path.is_file():
        yield f"template: got {str(path)!r}, which is no file; allowed is a Jinja file, or `{MODEL_TEMPLATE}`"


def build(
    spec: RewardConfig, options: GuardOptions, *, attribute: str, dtype: Dtype, device: str, batch_tokens: int
) -> Reward:
    """The reward of a recipe's block; prompts × longest prompt of a batch is at most `batch_tokens`."""
    from rheostat.models import load_language_model

    assert spec.model is not None, spec  # the recipe refuses a guard without a model
    guard = load_language_model(spec.model, dtype=dtype, device=device)
    return GuardReward(guard, style_of(options), options.moderates, options.output, batch_tokens)


def style_of(options: GuardOptions) -> Style:
    """The style that the options name or make up. Raises `RewardError` where a template cannot be read."""
    named = (
        Style("", "", "", {}) if options.style is None else read_style(options.style, options.moderates)
    )
    template: str | None = named.template
    if options.template == MODEL_TEMPLATE:
        template = None
    elif options.template is not None:
        try:
            template = Path(options.template).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RewardError(
                f"cannot read the guard's template {options.template!r}: {error}",
                hint=f"give a Jinja file, or `{MODEL_TEMPLATE}`",
            ) from error
    return Style(
        template=template,
        policy=named.policy if options.policy is None else options.policy,
        opening=named.opening if options.opening is None else options.opening,
        verdicts=named.verdicts if options.verdicts is None else options.verdicts,
    )


class GuardReward:
    """Scores with a guard; equal inputs are scored once."""

    def __init__(
        self,
        guard: "LanguageModel",
        style: Style,
        moderates: Moderates,
        output: Literal["log_odds", "probability"],
        batch_tokens: int,
    ) -> None:
        self._guard = guard
        self._asker = Asker(guard, style, moderates)
        self._worths = tuple(style.verdicts.values())
        self._moderates = moderates
        self._output = output
        self._batch_tokens = batch_tokens
        self._has_warned = False

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """One score an item, in order. Raises `RewardError` where one is not finite."""
        from rheostat.rewards._verdicts import judge

        copies: dict[object, list[int]] = {}
        for index, item in enumerate(items):
            says = item.response if self._moderates == "response" else None
            copies.setdefault((item.messages, says), []).append(index)
        distinct = [items[indices[0]] for indices in copies.values()]
        places = list(copies.values())
        asked = self._asker.ask(distinct)
        self._warn(sum(each.is_cut for each in asked), len(asked))
        scores = [math.nan] * len(items)
        for batch in judge(
            self._guard.model,
            asked,
            [item.messages for item in distinct],
            pad_id=self._guard.tokenizer.pad_token_id,
            batch_tokens=self._batch_tokens,
        ):
            for number, values in zip(batch.numbers, batch.values, strict=True):
                score = verdict_score(values, self._worths, is_probability=self._output == "probability")
                if not math.isfinite(score):
                    raise RewardError(
                        f"{self._guard.name}: got the score {score} for the response "
                        f"{distinct[number].response[:80]!r}, allowed are finite numbers",
                        hint="load it with dtype float32 or bfloat16",
                    )
                for index in places[number]:
                    scores[index] = score
            if progress is not None:
                progress(sum(len(places[number]) for number in batch.numbers))
        return scores

    def _warn(self, cut: int, of: int) -> None:
        if cut and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "%s: %d of %d conversations exceed its context of %d tokens; their turns are cut",
                self._guard.name,
                cut,
                of,
                self._guard.context,
            )


def verdict_score(log_probabilities: Sequence[float], worths: Sequence[float], *, is_probability: bool) -> float:
    """The log-odds of the expected worth, or that worth itself.

    Worked: verdicts worth 1, ½ and 0 with probabilities .2, .2 and .1 give log((.2 + .1) / (.1 + .1)) = log 1.5 = .405,
    and .6: what is left to other answers (.5) does not count.
    """
    for_it = _log_mean(log_probabilities, worths)
    against = _log_mean(log_probabilities, [1 - worth for worth in worths])
    if not math.isfinite(for_it) or not math.isfinite(against):
        return math.nan
    odds = for_it - against
    if not is_probability:
        return odds
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def _log_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """log Σ w exp(v); −∞ where nothing counts."""
    terms = [value + math.log(weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
    highest = max(terms, default=-math.inf)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(term - highest) for term in terms))
