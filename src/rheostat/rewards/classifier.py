"""A sequence classifier with one logit as a reward: the usual kind of reward model.

It reads the conversation with its response in its own chat template; a model without one (an encoder, say)
reads the pair of the prompt's text and the response. The raw score is the logit.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rheostat.chat import conversation_text, defuse
from rheostat.config import Dtype, RewardConfig
from rheostat.errors import RewardError
from rheostat.plugins import Judged, Progress, Reward
from rheostat.records import Message

if TYPE_CHECKING:
    from rheostat.models import Classifier
    from rheostat.rewards._logits import Row

NEEDS_MODEL = True

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """None yet."""


OPTIONS = ClassifierOptions


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

    It is the same for every attribute: what it measures is in its weights.
    """
    from rheostat.models import load_classifier

    assert spec.model is not None, spec  # the recipe refuses a classifier without a model
    return ClassifierReward(load_classifier(spec.model, dtype=dtype, device=device), batch_tokens)


@dataclass(slots=True)
class ClassifierReward:
    """Scores with a classifier; equal inputs are scored once."""

    classifier: "Classifier"
    batch_tokens: int
    _has_warned: bool = field(default=False, init=False)

    def score(self, items: Sequence[Judged], *, progress: Progress | None = None) -> list[float]:
        """One logit an item, in order; what exceeds the model's context is cut from the prompt's beginning.

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
            for number, score in zip(batch.numbers, batch.values, strict=True):
                if not math.isfinite(score):
                    raise self._not_finite(score, distinct[number])
                for index in places[number]:
                    scores[index] = score
            if progress is not None:
                progress(sum(len(places[number]) for number in batch.numbers))
        return scores

    def _encode(self, items: Sequence[Judged]) -> "list[Row]":
        if not items:
            return []
        tokenizer, context = self.classifier.tokenizer, self.classifier.context
        if tokenizer.chat_template:
            texts = [conversation_text(tokenizer, item.messages, item.response) for item in items]
            rows = _rows(tokenizer(texts, add_special_tokens=False, verbose=False))
            cut = sum(len(row["input_ids"]) > context for row in rows)
            rows = [{name: ids[-context:] for name, ids in row.items()} for row in rows]
        else:
            pairs = [(_prompt_text(item), item.response) for item in items]
            pairs = [(defuse(tokenizer, prompt), defuse(tokenizer, response)) for prompt, response in pairs]
            rows = _rows(
                tokenizer([prompt for prompt, _ in pairs], [response for _, response in pairs], verbose=False)
            )
            cut = 0
            for number, (prompt, response) in enumerate(pairs):
                if len(rows[number]["input_ids"]) > context:
                    rows[number] = self._fitting_pair(prompt, response)
                    cut += 1
        if cut and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: %d of %d conversations exceed its context of %d tokens; their beginning is cut",
                self.classifier.name,
                cut,
                len(items),
                context,
            )
        return rows

    def _fitting_pair(self, prompt: str, response: str) -> "Row":
        """The pair, its prompt cut from the left, then its response from the right, to fit the context."""
        tokenizer, context = self.classifier.tokenizer, self.classifier.context
        while True:
            row = _rows(tokenizer([prompt], [response], verbose=False))[0]
            excess = len(row["input_ids"]) - context
            if excess <= 0:
                return row
            text = prompt or response
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            spans = encoded["offset_mapping"]
            if prompt:
                prompt = prompt[spans[excess][0] :] if excess < len(spans) else ""
            else:
                response = response[: spans[-excess][0]]

    def _not_finite(self, score: float, item: Judged) -> RewardError:
        return RewardError(
            f"{self.classifier.name}: got the score {score} for the response {item.response[:80]!r}, "
            "allowed are finite numbers",
            hint="load it with dtype float32, or check the model on this text",
        )


def _rows(encoding: dict[str, list[list[int]]]) -> "list[Row]":
    names = list(encoding)
    return [dict(zip(names, values, strict=True)) for values in zip(*encoding.values(), strict=True)]


def _prompt_text(item: Judged) -> str:
    """The turns without the system's, one a paragraph; for a single question the question itself."""
    return "\n\n".join(message.content for message in item.messages if message.role != "system")
