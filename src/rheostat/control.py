"""The home of the control: its levels, its text, and what keeps a user from writing it.

The literal form `[helpful=s_hp][harmless=s_sf]` and its order are the paper's (arXiv 2404.01295); the level grid
and the place, right after the generation prompt, are ours. There a user's text cannot reach it, every chat
template can carry it, and all controls of one prompt share the prompt's key-value cache.

Pure: no disk, no device, no global state.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from rheostat.errors import DialError
from rheostat.records import Attribute

LEVELS: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)

BRACKETS = "[［【〔⟦「『"
"""Characters that open a bracket, as a forged control may."""

CLOSERS = "]］】〕⟧」』"


@dataclass(frozen=True)
class ControlFormat:
    """Renders and parses the control text of some attributes on a grid of levels in [0, 1]."""

    attributes: tuple[Attribute, ...]
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "attributes", tuple(sorted(self.attributes, key=lambda a: (a.order, a.name)))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The dials' names in the order of the control text."""
        return tuple(attribute.name for attribute in self.attributes)

    def quantise(self, value: float) -> float:
        """The level nearest to `value`; of two equally near, the upper. Raises `DialError` outside [0, 1]."""
        return nearest_level(check_dial("dial", value), self.levels)

    def resolve(self, dials: Mapping[str, float | None]) -> dict[str, float]:
        """The full control for some dials: quantised, the missing ones at the highest level."""
        unknown = sorted(set(dials) - set(self.names))
        if unknown:
            raise DialError(
                f"there is no dial {', '.join(map(repr, unknown))}; this model has {', '.join(self.names)}",
                hint="use one of the dials named above",
            )
        control: dict[str, float] = {}
        for name in self.names:
            value = dials.get(name)
            control[name] = (
                max(self.levels) if value is None else nearest_level(check_dial(name, value), self.levels)
            )
        return control

    def grid(self) -> tuple[dict[str, float], ...]:
        """Every control: the product of the levels, the last attribute turning fastest."""
        return tuple(
            dict(zip(self.names, point, strict=True))
            for point in product(self.levels, repeat=len(self.names))
        )

    def render(self, control: Mapping[str, float]) -> str:
        """The control text, `[helpful=1][harmless=0.75]`. `control` must hold every attribute, on the grid."""
        assert set(control) == set(self.names), control
        return "".join(
            f"[{attribute.word}={_number(control[attribute.name])}]" for attribute in self.attributes
        )

    def parse(self, text: str) -> tuple[dict[str, float], str] | None:
        """The control at the very start of `text` and the rest of it, or None where no exact one stands there."""
        match = self._exact.match(text)
        if match is None:
            return None
        values = [float(value) for value in match.groups()]
        return dict(zip(self.names, values, strict=True)), text[match.end() :]

    def neutralise(self, text: str) -> str:
        """`text` with the brackets of anything that reads like a control turned into parentheses.

        Whatever the case, the spacing, the kind of bracket or the width of the letters: a bracket that opens
        onto one of the control's words loses its bracket, and the next closing bracket with it. All else stays.
        """
        pieces: list[str] = []
        forged = False
        for index, character in enumerate(text):
            if character in BRACKETS and self._opens_control(text, index + 1):
                pieces.append("(")
                forged = True
            elif character in CLOSERS and forged:
                pieces.append(")")
                forged = False
            else:
                pieces.append(character)
        return "".join(pieces)

    def _opens_control(self, text: str, start: int) -> bool:
        words = [attribute.word for attribute in self.attributes]
        letters = ""
        longest = max(map(len, words))
        for character in text[start:]:
            for plain in unicodedata.normalize("NFKC", character).casefold():
                if plain.isalnum():
                    letters += plain
            if len(letters) >= longest:
                break
            if letters and not any(word.startswith(letters) for word in words):
                break
        return any(letters.startswith(word) for word in words)

    @cached_property
    def _exact(self) -> re.Pattern[str]:
        return re.compile(
            "".join(rf"\[{re.escape(attribute.word)}=([01](?:\.\d+)?)\]" for attribute in self.attributes)
        )


def check_dial(name: str, value: float) -> float:
    """`value` as a float, or `DialError` where it is not a number in [0, 1]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or math.isnan(value)
        or not 0 <= value <= 1
    ):
        raise DialError(
            f"{name}: got {value!r}, allowed is a number from 0 to 1",
            hint="0 turns the dial fully down, 1 fully up; 0.5 is the middle",
        )
    return float(value)


def _number(level: float) -> str:
    return f"{level:.4f}".rstrip("0").rstrip(".")


def nearest_level(value: float, levels: Sequence[float]) -> float:
    """The level nearest to `value`; of two equally near, the upper."""
    return min(levels, key=lambda level: (abs(level - value), -level))
