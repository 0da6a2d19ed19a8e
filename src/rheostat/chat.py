"""The one place where a conversation becomes text and token ids.

A prompt is the tokenizer's own chat template with its generation prompt, followed directly by the control
text: `…<|assistant|>[helpful=1][harmless=0.75]`. The whole text is tokenised at once; the response's tokens
come after.

What keeps a user out of the machinery: the whole prompt is neutralised before the control is put after it (no
control text, see `control.py`, in any turn or across turns that a template joins; a client may have written the
assistant's earlier turns too), and no content whatsoever yields a special token: a string that the tokenizer would
read as one, `<|assistant|>` say, is broken by a space after its first character, `< |assistant|>`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from rheostat.errors import InputError, PromptTooLong
from rheostat.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Neutralise = Callable[[str], str]


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
    if context is not None and len(ids) + 1 > context:
        raise PromptTooLong(
            f"a prompt of {len(ids)} tokens, allowed are at most {context - 1} (the context is {context})",
            hint="shorten the prompt, or use a model with a longer context",
        )
    return ids


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


def plain_turns(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[dict[str, str]]:
    """The turns for a server that renders the same template: `role` and `content`, as `prompt_text` renders them.

    No content yields a special token, and a system text stands in the first user turn where the template refuses or
    drops a system turn. Raises `InputError` where the chat template refuses the conversation.
    """
    return _rendered(tokenizer, messages, awaits_response=True)[0]


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
    token of a single character is left out. Added tokens that are words or white space are text and stay.
    """
    forbidden = _forbidden(tokenizer)
    while found := [string for string in forbidden if string in text]:
        for string in found:
            text = text.replace(string, f"{string[0]} {string[1:]}" if len(string) > 1 else "")
    return text


def _forbidden(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    tokens = tokenizer.added_tokens_decoder.values()
    strings = {token.content for token in tokens if token.special or _is_markup(token.content)}
    strings.update(tokenizer.all_special_tokens)
    return sorted((string for string in strings if string.strip()), key=len, reverse=True)


def _is_markup(string: str) -> bool:
    """Like `<think>` or `[TOOL]`: neither a word nor white space at either end."""
    ends = string[:1] + string[-1:]
    return len(string) > 1 and not any(end.isalnum() or end.isspace() for end in ends)


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
    except TemplateError as error:
        if turns[0]["role"] != "system":
            raise _refused(tokenizer, error) from error
    else:
        if turns[0]["role"] != "system" or turns[0]["content"].strip() in text:
            return turns, text
    folded = _fold_system(turns)
    try:
        return folded, _apply(tokenizer, folded, awaits_response)
    except TemplateError as error:
        raise _refused(tokenizer, error) from error


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], awaits_response: bool) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=awaits_response)
    return text


def _fold_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The system text in front of the first user turn, for templates that refuse or drop a system turn."""
    system, *rest = turns
    for index, turn in enumerate(rest):
        if turn["role"] == "user":
            rest[index] = {"role": "user", "content": f"{system['content']}\n\n{turn['content']}"}
            break
    return rest


def _refused(tokenizer: "PreTrainedTokenizerBase", error: TemplateError) -> InputError:
    return InputError(
        f"the chat template of {tokenizer.name_or_path or 'the model'} refuses the conversation: {error}",
        hint="user and assistant turns must alternate, and the last turn must be the user's",
    )
