"""What a model got, read: which control stands last, and whether anything else in the prompt reads like one."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rheostat.control import ControlFormat

_SHAPES: Mapping[str, str] = {
    "a": "аαᴀ", "e": "еᴇ", "f": "ꜰ", "h": "һʜн", "l": "ⅼʟ", "m": "ᴍм", "p": "рρᴘ", "r": "ʀг", "s": "ѕꜱſ", "u": "υᴜ",
}  # fmt: skip
"""Letters that look like a Latin one: our own short list, beside the package's."""

_AS_LATIN = {shape: letter for letter, shapes in _SHAPES.items() for shape in shapes}
_SIGNS = {first + place: chr(97 + place) for first in (0x1F150, 0x1F170, 0x1F1E6) for place in range(26)}
"""Letters in circles and squares, and flags."""

_OPENS = ("SQUARE BRACKET", "LENTICULAR BRACKET", "TORTOISE SHELL BRACKET", "CORNER BRACKET")
"""In the names of the brackets that count; those that close are named RIGHT, and a TAG shows nothing."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a model got it: its ids, the text that they stand for."""

    ids: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads prompts of one model; written without the code that writes them, but for the format's exact parser."""

    tokenizer: Any
    control_format: ControlFormat
    has_own_markup: bool = True
    """Whether the chat template is the packaged model's, whose markup is special tokens."""

    def of_ids(self, ids: Sequence[int]) -> Prompt:
        """A prompt by its token ids."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Prompt(tuple(ids), text)

    def of_text(self, text: str) -> Prompt:
        """A prompt by its rendered text, tokenised as a server does."""
        return Prompt(tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), text)

    def control(self, prompt: Prompt) -> tuple[dict[str, float], str] | None:
        """The control that stands last in a prompt, and all before it; None where the prompt ends in none."""
        opening = f"[{self.control_format.attributes[0].word}="
        start = prompt.text.rfind(opening)
        parsed = self.control_format.parse(prompt.text[start:]) if start >= 0 else None
        if parsed is None or parsed[1]:
            return None
        return parsed[0], prompt.text[:start]

    def breach(self, prompt: Prompt, floors: Mapping[str, float]) -> str | None:
        """What is wrong with a prompt under these floors, None where nothing is."""
        found = self.control(prompt)
        if found is None:
            return f"no control stands last: …{prompt.text[-60:]!r}"
        control, before = found
        low = [name for name, floor in floors.items() if control[name] < floor]
        if low:
            return f"{', '.join(low)} below the floor: {control}"
        if self.control_format.neutralise(before) != before:
            return f"a control is left in the text: {before!r}"
        if forged := self.reads_as_control(before):
            return f"{forged!r} reads as a control"
        return self._markup_fault(prompt, before) if self.has_own_markup else None

    def reads_as_control(self, text: str) -> str | None:
        """A piece of `text` that opens a bracket onto a dial's word as a person may read it."""
        words = [attribute.word for attribute in self.control_format.attributes]
        for place, character in enumerate(text):
            name = unicodedata.name(character, "")
            if not {"RIGHT", "TAG"} & set(name.split()) and any(each in name for each in _OPENS):
                letters = ""
                for each in unicodedata.normalize("NFKD", text[place + 1 : place + 80]):
                    shown = _SIGNS.get(ord(each)) or _AS_LATIN.get(each, each)
                    plain = shown.casefold()
                    if plain.isalnum() and each not in "\u115f\u1160\u3164\uffa0":
                        letters += plain
                    elif each in "]］)":
                        break
                if letters.startswith(tuple(words)):
                    return text[place : place + 40]
        return None

    def _markup_fault(self, prompt: Prompt, before: str) -> str | None:
        """Special tokens are the template's: a beginning, one a role, an end after an assistant's turn."""
        special = set(self.tokenizer.all_special_ids)
        names = [self.tokenizer.convert_ids_to_tokens(each) for each in prompt.ids if each in special]
        if not before.endswith("<|assistant|>"):
            return f"what stands before the control is not the template's: …{before[-40:]!r}"
        turns = " ".join(names).replace("<|assistant|> </s>", "A").split()
        roles = [each for each in turns[1:-1] if each != "<|user|>" and each != "A"]
        expected_head = (
            turns[:1] == ["<s>"] and turns[-1:] == ["<|assistant|>"] and turns[-2:-1] == ["<|user|>"]
        )
        if not expected_head or roles not in ([], ["<|system|>"]) or "<|system|>" in turns[2:]:
            return f"special tokens that no conversation has: {names}"
        return None
