"""What a classifier reads of a conversation and its response, as token rows that fit its context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rheostat.chat import conversation_text, defuse
from rheostat.errors import RewardError
from rheostat.plugins import Judged

if TYPE_CHECKING:
    from rheostat.models import Classifier
    from rheostat.rewards._logits import Row

Input = Literal["auto", "chat", "pair", "response"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token rows, one an item, and how many of them were cut to the context."""

    rows: "list[Row]"
    cut: int


def encode(classifier: "Classifier", items: Sequence[Judged], input: Input = "auto") -> Encoded:
    """The rows of `items`; no text in them yields a special token.

    `chat` is the chat template with the response as the last turn, cut from its beginning; `pair` the prompt's text
    and the response as the tokenizer joins two texts, the prompt cut first; `response` the response alone, cut from
    its end; `auto` is `chat` where there is a template, else `pair`. Raises `RewardError` for `chat` without one.
    """
    if not items:
        return Encoded([], 0)
    tokenizer, context = classifier.tokenizer, classifier.context
    if input == "auto":
        input = "chat" if tokenizer.chat_template else "pair"
    if input == "chat":
        if not tokenizer.chat_template:
            raise RewardError(
                f"{classifier.name}: got `input: chat` for a tokenizer without chat template",
                hint="say `input: pair`, or add chat_template.jinja to its folder",
            )
        texts = [conversation_text(tokenizer, item.messages, item.response) for item in items]
        rows = _rows(tokenizer(texts, add_special_tokens=False, verbose=False))
        cut = sum(len(row["input_ids"]) > context for row in rows)
        return Encoded([{name: ids[-context:] for name, ids in row.items()} for row in rows], cut)
    prompts = ["" if input == "response" else defuse(tokenizer, _prompt_text(item)) for item in items]
    responses = [defuse(tokenizer, item.response) for item in items]
    if input == "response":
        rows = _rows(tokenizer(responses, verbose=False))
    else:
        rows = _rows(tokenizer(prompts, responses, verbose=False))
    cut = 0
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if len(rows[number]["input_ids"]) > context:
            rows[number] = _fitting(classifier, prompt, response, is_pair=input == "pair")
            cut += 1
    return Encoded(rows, cut)


def _fitting(classifier: "Classifier", prompt: str, response: str, *, is_pair: bool) -> "Row":
    """The text or pair, its prompt cut from the left, then its response from the right, to fit the context."""
    tokenizer, context = classifier.tokenizer, classifier.context
    while True:
        texts = ([prompt], [response]) if is_pair else ([response],)
        row = _rows(tokenizer(*texts, verbose=False))[0]
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


def _rows(encoding: dict[str, list[list[int]]]) -> "list[Row]":
    names = list(encoding)
    return [dict(zip(names, values, strict=True)) for values in zip(*encoding.values(), strict=True)]


def _prompt_text(item: Judged) -> str:
    """The turns without the system's, one a paragraph; for a single question the question itself."""
    return "\n\n".join(message.content for message in item.messages if message.role != "system")
