"""Text as it is drawn, token by token: whole characters only, and up to the first stop text. Without I/O."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[list[int]], str]

_UNKNOWN = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokeniser:
    """How a tokenizer's ids become text piece by piece; `TextStream` holds what one answer has come to."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(id for id, token in added.items() if token.special)
        self.bytes = frozenset(id for token, id in tokenizer.get_vocab().items() if _BYTE.fullmatch(token))
        if tokenizer.is_fast:
            backend = tokenizer.backend_tokenizer  # what the tokenizer calls, five times faster
            self.decode: Decode = lambda ids: str(backend.decode(ids, skip_special_tokens=True))
        else:
            self.decode = lambda ids: str(
                tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )


class TextStream:
    """The text of one answer: `add` a token and get what is certain by it, at last `end` gives the rest.

    Together that is what the tokenizer makes of all tokens, without special ones, up to the first text of `stop` that
    is complete. A character is given when its last byte is there, what may begin a text of `stop` when it does not.
    """

    def __init__(self, detokeniser: Detokeniser, stop: Sequence[str] = ()) -> None:
        self._detokeniser = detokeniser
        self._ids: list[int] = []
        self._given = 0
        self._given_text = ""
        self._stop = StopTexts(stop)

    @property
    def has_stopped(self) -> bool:
        """Whether a stop text was met: no more text comes."""
        return self._stop.is_met

    def add(self, token: int) -> str:
        """The text that is certain by this token, often empty."""
        kinds = self._detokeniser
        if token in kinds.special or self.has_stopped:
            return ""
        self._ids.append(token)
        # A run of byte tokens is text only as a whole: one false byte at its end makes all of it unknown.
        return "" if token in kinds.bytes else self._stop.add(self._new(is_last=False))

    def end(self) -> str:
        """The rest of the text."""
        return self._stop.add(self._new(is_last=True)) + self._stop.end()

    def _new(self, *, is_last: bool) -> str:
        text = self._detokeniser.decode(self._ids)
        if not is_last and (len(text) <= len(self._given_text) or text.endswith(_UNKNOWN)):
            return ""
        new = text[len(self._given_text) :]
        # What was given last stays as the context in which the next tokens are read: a decoder may treat a first
        # token in its own way, as one that drops a space there does.
        del self._ids[: self._given]
        self._given = len(self._ids)
        self._given_text = self._detokeniser.decode(self._ids)
        return new


class StopTexts:
    """Cuts a text that comes in pieces before the first of several texts that is complete in it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_met = False

    def add(self, text: str) -> str:
        """What is certain not to belong to a stop text; nothing once one is met."""
        if self.is_met or not self._texts:
            return "" if self.is_met else text
        held = self._held + text
        found = [(place + len(stop), place) for stop in self._texts if (place := held.find(stop)) >= 0]
        if found:
            self.is_met, self._held = True, ""
            return held[: min(found)[1]]
        keep = max(_overlap(held, stop) for stop in self._texts)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back, as no stop text came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, of `stop` not all."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
