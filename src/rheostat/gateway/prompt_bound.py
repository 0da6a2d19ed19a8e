"""Conversations that can never fit are refused before they are tokenised, which takes seconds a MiB.

A token stands for so many characters at most as the vocabulary's longest has (in a byte-level vocabulary a character is
a byte, and a character of text is one byte at least): a text of n characters has n over that many tokens or more. True
only of tokenizers that let no character fall; with others nothing is refused here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rheostat.chat import prompt_text
from rheostat.errors import PromptTooLong
from rheostat.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPOSED = 4
"""Characters that NFC makes one of, at most."""

_SPACE_MARK = "▁"


class PromptBound:
    """What a tokenizer's tokens hold at most."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._longest = _longest_token(tokenizer)

    def check(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], context: int | None
    ) -> None:
        """Raises `PromptTooLong` for a conversation that certainly leaves no room for a token of a response.

        `tokenizer` is the one of the bound or its copy. Raises `InputError` where the chat template refuses it.
        """
        if context is None or sum(len(turn.content) for turn in messages) <= self.characters(context):
            return
        # What the template makes of it counts: it may leave turns out, and spaces at their ends. Neutralising, and the
        # control after it, make no text shorter.
        tokens = self.tokens(prompt_text(tokenizer, messages))
        if tokens + 1 > context:
            raise PromptTooLong(
                f"a prompt of at least {tokens} tokens, allowed are at most {context - 1} (the context is {context})",
                hint="shorten the prompt, or use a model with a longer context",
            )

    def characters(self, tokens: int) -> float:
        """How many characters so many tokens stand for at most."""
        return math.inf if self._longest is None else tokens * self._longest

    def tokens(self, text: str) -> int:
        """How many tokens a text has at least; 0 where that is not known."""
        return 0 if self._longest is None else -(-len(text) // self._longest)


def _longest_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Characters of text that one token stands for at most; None where there is no telling."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts: Mapping[str, Any] = json.loads(backend.to_str())
    model, added = parts["model"], parts["added_tokens"]
    shrinks = _shrinks(parts["normalizer"])
    if shrinks is None or not _keeps_all(parts["pre_tokenizer"]) or model["type"] != "BPE":
        return None
    if any(token["lstrip"] or token["rstrip"] for token in added):  # take the spaces beside them in
        return None
    if not _knows_every_byte(parts["pre_tokenizer"], model):  # what it does not know falls, or is one token in all
        return None
    strings = [*model["vocab"], *(token["content"] for token in added)]
    return shrinks * max(map(len, strings))


def _shrinks(normaliser: Mapping[str, Any] | None) -> int | None:
    """How many characters a normaliser makes one of at most; None where there is no telling."""
    match None if normaliser is None else normaliser["type"]:
        case None | "NFD" | "Prepend":
            return 1
        case "NFC":
            return _COMPOSED
        case "Replace":
            assert normaliser is not None
            return 1 if (normaliser["pattern"], normaliser["content"]) == ({"String": " "}, _SPACE_MARK) else None
        case "Sequence":
            assert normaliser is not None
            found = [_shrinks(each) for each in normaliser["normalizers"]]
            return None if None in found else math.prod(each for each in found if each is not None)
    return None


def _keeps_all(splitter: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokeniser lets no character fall."""
    match None if splitter is None else splitter["type"]:
        case None | "ByteLevel" | "Digits" | "Metaspace":
            return True
        case "Split" | "Punctuation":
            assert splitter is not None
            return bool(splitter["behavior"] != "Removed")
        case "Sequence":
            assert splitter is not None
            return all(map(_keeps_all, splitter["pretokenizers"]))
    return False


def _knows_every_byte(splitter: Mapping[str, Any] | None, model: Mapping[str, Any]) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = model["vocab"]
    if model["byte_fallback"]:
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    parts = [] if splitter is None else splitter.get("pretokenizers", [splitter])
    is_byte_level = any(part["type"] == "ByteLevel" for part in parts)
    return is_byte_level and all(character in vocabulary for character in ByteLevel.alphabet())
