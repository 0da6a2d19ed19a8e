"""The one place where a conversation becomes text and token ids.

A prompt is the tokenizer's own chat template with its generation prompt, followed directly by the control
text: `…<|assistant|>[helpful=1][harmless=0.75]`. The whole text is tokenised at once; the response's tokens
come after.

What keeps a user out of the machinery: the whole prompt is neutralised before the control is put after it (no
control text, see `control.py`, in any turn or across turns that a template joins; a client may have written the
assistant's earlier turns too), and no content whatsoever yields a special token: a string that the tokenizer would
read as one, `<|assistant|>` say, is broken by a space after its first character, `< |assistant|>`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from rheostat.errors import InputError, ModelError, PromptTooLong
from rheostat.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Neutralise = Callable[[str], str]

_TEMPLATE_ERRORS = (TemplateError, TypeError)  # what a template raises, and what Python does within one


def plain_chat_template() -> str:
    """The chat template of a base model, which has none of its own: `User: … Assistant: …`."""
    return (Path(__file__).parent / "templates" / "plain_chat.jinja").read_text(encoding="utf-8")


def single_chat_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> str | None:
    """The tokenizer's chat template: of several, the one named `default`; None where it has none.

    Raises `ModelError` where several have names and none is `default`; `name` is the model's, for the message.
    """
    templates: str | dict[str, str] | None = tokenizer.chat_template
    if not isinstance(templates, dict):
        return templates or None
    if "default" not in templates:
        raise ModelError(
            f"{name}: got the chat templates {', '.join(sorted(templates))}, one of them must be named default",
            hint="put the template to use into chat_template.jinja in the model's folder",
        )
    return templates["default"]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    control_text: str = "",
    neutralise: Neutralise | None = None,
    context: int | None = None,
) -> list[int]:
    """The token ids of a conversation that waits for the assistant, the control text right after its prompt.

    With `context`, raises `PromptTooLong` where no room for a single response token is left. Raises
    `InputError` where the chat template refuses the conversation.
    """
    text = prompt_text(tokenizer, messages, control_text=control_text, neutralise=neutralise)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if context is not None:
        check_fits(len(ids), context)
    return ids


def check_fits(tokens: int, context: int) -> None:
    """Raises `PromptTooLong` where a prompt leaves no room for a token of a response."""
    if tokens + 1 > context:
        raise PromptTooLong(
            f"a prompt of {tokens} tokens, allowed are at most {context - 1} (the context is {context})",
            hint="shorten the prompt, or use a model with a longer context",
        )


def prompt_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    control_text: str = "",
    neutralise: Neutralise | None = None,
) -> str:
    """The text that `encode_prompt` tokenises."""
    text = _render(tokenizer, messages, awaits_response=True)
    return (text if neutralise is None else neutralise(text)) + control_text


@dataclass(frozen=True, slots=True)
class ServedPrompt:
    """A conversation for a server that renders the same template: its turns, and the text that they become there."""

    turns: list[dict[str, str]]
    text: str


def served_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    control_text: str = "",
    neutralise: Neutralise | None = None,
) -> ServedPrompt:
    """The turns, `role` and `content`, that a server makes the text of `prompt_text` of.

    No content yields a special token, and a system text stands in the first user turn where the template refuses or
    drops a system turn. A control forged across two turns is neutralised too. Raises `InputError` where the chat
    template refuses the conversation.
    """
    turns, text = _rendered(tokenizer, messages, awaits_response=True)
    if neutralise is not None:
        turns, text = _neutral_turns(turns, neutralise), neutralise(text)
    return ServedPrompt(turns, text + control_text)


def encode_response(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, end_id: int | None = None
) -> list[int]:
    """The token ids of a response and its end token: `end_id`, else the tokenizer's."""
    end = tokenizer.eos_token_id if end_id is None else end_id
    assert end is not None, "a tokenizer without eos_token needs end_id"
    plain = defuse(tokenizer, text)
    ids: list[int] = tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"]
    return [*ids, end]


def conversation_text(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], response: str
) -> str:
    """The chat template of a conversation with its response as the last turn: what a reward model reads.

    Raises `InputError` where the chat template refuses the conversation.
    """
    return _render(tokenizer, [*messages, Message("assistant", response)], awaits_response=False)


def defuse(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """`text` changed, where it must be, so that it yields none of the tokenizer's special or markup tokens.

    A space goes in after the first character of each string that would be one, until none is left; a special
    token of a single character is left out. Added tokens that are words or white space are text and stay, and so
    does the token of what the vocabulary lacks.
    """
    forbidden = _forbidden(tokenizer)
    while found := [string for string in forbidden.strings if string in text]:
        for string in found:
            text = text.replace(string, f"{string[0]} {string[1:]}" if len(string) > 1 else "")
    return _defused_as_read(tokenizer, text, forbidden.read) if forbidden.read else text


@dataclass(frozen=True, slots=True)
class _Forbidden:
    """What no content may yield: `strings`, longest first, and `read`, the ids of those of them that the tokenizer
    looks for in what its normaliser makes of a text, where they can stand though they do not in the text itself.
    """

    known_tokens: int
    specials: tuple[str, ...]
    strings: tuple[str, ...]
    read: frozenset[int]


_FORBIDDEN: "WeakKeyDictionary[PreTrainedTokenizerBase, _Forbidden]" = WeakKeyDictionary()
"""By tokenizer, since some have thousands of added tokens; made anew for one that has got more."""


def _forbidden(tokenizer: "PreTrainedTokenizerBase") -> _Forbidden:
    specials = tuple(tokenizer.all_special_tokens)
    known = _FORBIDDEN.get(tokenizer)
    if known is None or (known.known_tokens, known.specials) != (len(tokenizer), specials):
        added = {
            id: token
            for id, token in tokenizer.added_tokens_decoder.items()
            if (token.special or _is_markup(token.content)) and token.content.strip()
        }
        strings = {token.content for token in added.values()} | {each for each in specials if each.strip()}
        normalises = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None) is not None
        read = {id for id, token in added.items() if token.normalized and normalises}
        known = _FORBIDDEN[tokenizer] = _Forbidden(
            known_tokens=len(tokenizer),
            specials=specials,
            strings=tuple(sorted(strings, key=lambda string: (-len(string), string))),
            read=frozenset(read - {tokenizer.unk_token_id}),
        )
    return known


def _defused_as_read(tokenizer: "PreTrainedTokenizerBase", text: str, ids: frozenset[int]) -> str:
    """`text` without what the tokenizer reads as one of `ids`: broken by a space, or where that does not help, gone."""
    is_broken = False
    while True:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = [
            span for id, span in zip(read["input_ids"], read["offset_mapping"], strict=True) if id in ids
        ]
        if not spans:
            return text
        for start, stop in reversed(spans):
            start = min(start, len(text) - 1)
            first = text[start : start + 1] + " " if not is_broken and stop - start > 1 else ""
            text = text[:start] + first + text[start + 1 :]
        is_broken = True


def _is_markup(string: str) -> bool:
    """Like `<think>` or `[TOOL]`: neither a word nor white space at either end."""
    ends = string[:1] + string[-1:]
    return len(string) > 1 and not any(end.isalnum() or end.isspace() for end in ends)


def _neutral_turns(turns: Sequence[Mapping[str, str]], neutralise: Neutralise) -> list[dict[str, str]]:
    """Turns whose contents were neutralised as one text, which stays as long as it is."""
    text = neutralise("".join(turn["content"] for turn in turns))
    sent, start = [], 0
    for turn in turns:
        stop = start + len(turn["content"])
        sent.append({**turn, "content": text[start:stop]})
        start = stop
    return sent


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, awaits_response: bool
) -> str:
    return _rendered(tokenizer, messages, awaits_response=awaits_response)[1]


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, awaits_response: bool
) -> tuple[list[dict[str, str]], str]:
    """The turns that the template takes, and their text."""
    turns = [{"role": message.role, "content": defuse(tokenizer, message.content)} for message in messages]
    try:
        text = _apply(tokenizer, turns, awaits_response)
    except _TEMPLATE_ERRORS as error:
        if turns[0]["role"] != "system":
            raise _refused(tokenizer, error) from error
    else:
        if turns[0]["role"] != "system" or _shows(text, turns[0]):
            return turns, text
    folded = _fold_system(turns)
    try:
        return folded, _apply(tokenizer, folded, awaits_response)
    except _TEMPLATE_ERRORS as error:
        raise _refused(tokenizer, error) from error


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], awaits_response: bool) -> str:
    """The template's text; a template that shows no content as text gets it as a list of parts, as images come."""
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=awaits_response)
    if _shows(text, turns[-1]):
        return text
    in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    try:
        other: str = tokenizer.apply_chat_template(
            in_parts, tokenize=False, add_generation_prompt=awaits_response
        )
    except _TEMPLATE_ERRORS:
        return text
    return other if _shows(other, turns[-1]) else text


def _shows(text: str, turn: Mapping[str, str]) -> bool:
    return turn["content"].strip() in text


def _fold_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The system text in front of the first user turn, for templates that refuse or drop a system turn."""
    system, *rest = turns
    for index, turn in enumerate(rest):
        if turn["role"] == "user":
            rest[index] = {"role": "user", "content": f"{system['content']}\n\n{turn['content']}"}
            break
    return rest


def _refused(tokenizer: "PreTrainedTokenizerBase", error: Exception) -> InputError:
    return InputError(
        f"the chat template of {tokenizer.name_or_path or 'the model'} refuses the conversation: {error}",
        hint="user and assistant turns must alternate, and the last turn must be the user's",
    )
