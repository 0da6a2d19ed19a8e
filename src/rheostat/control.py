"""The home of the control: its levels, its text, and what keeps a user from writing it.

The literal form `[helpful=s_hp][harmless=s_sf]` and its order are the paper's (arXiv 2404.01295); the level grid
and the place, right after the generation prompt, are ours. There a user's text cannot reach it, every chat
template can carry it, and all controls of one prompt share the prompt's key-value cache.

Pure: no disk, no device, no global state.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product

from rheostat.errors import DialError
from rheostat.look_alikes import spelled
from rheostat.records import Attribute

LEVELS: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The full grid: what a dial has where a recipe says nothing."""

Levels = tuple[float, ...] | Mapping[str, tuple[float, ...]]
"""Ascending levels in [0, 1]: of every dial alike, or of each dial by its name."""

BRACKETS = "[［﹇⁅⦋⦍⦏⹕⹗【〖〔〘〚「『｢❲⟦⟬⦗﹝︗︹︻﹁﹃"
"""Characters that open a bracket, as a forged control may: square, tortoise shell, lenticular, corner."""

CLOSERS = "]］﹈⁆⦌⦎⦐⹖⹘】〗〕〙〛」』｣❳⟧⟭⦘﹞︘︺︼﹂﹄"

INVISIBLE = "\u115f\u1160\u3164\uffa0"
"""Letters, by Unicode's word, that show nothing: Hangul fillers."""

_BEFORE_BRACKET = re.compile(rf"(?=[{re.escape(BRACKETS)}])")
_CLOSER = re.compile(rf"[{re.escape(CLOSERS)}]")


@dataclass(frozen=True)
class ControlFormat:
    """Renders and parses the control text of some attributes, each on its own levels in [0, 1].

    A dial that is not given stands at its level in `defaults`, or else at its highest.
    """

    attributes: tuple[Attribute, ...]
    levels: Levels = LEVELS
    defaults: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of a calibrated dial the values from which on its next level is meant; else that is half-way between them."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "attributes", tuple(sorted(self.attributes, key=lambda a: (a.order, a.name)))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The dials' names in the order of the control text."""
        return tuple(attribute.name for attribute in self.attributes)

    def levels_of(self, name: str) -> tuple[float, ...]:
        """The levels of a dial, ascending."""
        return levels_of(self.levels, name)

    def default_of(self, name: str) -> float:
        """The level at which a dial stands that is not given."""
        return self.defaults.get(name, self.levels_of(name)[-1])

    def with_floors(self, floors: Mapping[str, float]) -> "ControlFormat":
        """The same dials, some of which go no lower than a floor, which is one of their levels. Raises `DialError`."""
        self._check_levels("floor", floors)
        return self._kept(lambda name, level: level >= floors.get(name, 0.0))

    def with_ceilings(self, ceilings: Mapping[str, float]) -> "ControlFormat":
        """The same dials, some of which go no higher than a ceiling, one of their levels. Raises `DialError`."""
        self._check_levels("ceiling", ceilings)
        return self._kept(lambda name, level: level <= ceilings.get(name, 1.0))

    def _kept(self, is_kept: Callable[[str, float], bool]) -> "ControlFormat":
        """The same dials with fewer levels; a default that is none of them becomes the nearest."""
        levels = {name: tuple(each for each in self.levels_of(name) if is_kept(name, each)) for name in self.names}
        return replace(
            self,
            levels=levels,
            defaults={name: nearest_level(each, levels[name]) for name, each in self.defaults.items()},
            thresholds={
                name: tuple(
                    threshold
                    for threshold, (low, high) in zip(each, pairwise(self.levels_of(name)), strict=True)
                    if is_kept(name, low) and is_kept(name, high)
                )
                for name, each in self.thresholds.items()
            },
        )

    def with_defaults(self, defaults: Mapping[str, float]) -> "ControlFormat":
        """The same dials, some of which stand elsewhere than at the highest where not given. Raises `DialError`."""
        self._check_levels("default", defaults)
        return replace(self, defaults={**self.defaults, **defaults})

    def _check_levels(self, what: str, given: Mapping[str, float]) -> None:
        self._check_names(given)
        for name, level in given.items():
            if level not in self.levels_of(name):
                levels = ", ".join(map(level_text, self.levels_of(name)))
                raise DialError(
                    f"{name}: got the {what} {level:g}, allowed are its levels {levels}", hint="take one of those"
                )

    def thresholds_of(self, name: str) -> tuple[float, ...]:
        """The values from which on a dial's next level is meant, ascending, one less than its levels."""
        levels = self.levels_of(name)
        middles = ((low + high) / 2 for low, high in pairwise(levels))
        return tuple(self.thresholds.get(name, middles))

    def quantise(self, name: str, value: float) -> float:
        """The level that `value` means on a dial: the nearest one, of two equally near the upper, or by its
        thresholds. Raises `DialError` outside [0, 1].
        """
        wanted = check_dial(name, value)
        if name in self.thresholds:
            return self.levels_of(name)[bisect_right(self.thresholds[name], wanted)]
        return nearest_level(wanted, self.levels_of(name))

    def holds(self, name: str, score: float) -> bool:
        """Whether a calibrated score lies within a dial's range.

        It does not where a level of the full grid that lies below the dial's lowest or above its highest is nearer
        than all of the dial's own: 0.3 on a dial of 0.5, 0.75 and 1. Levels left out in between forbid nothing.
        """
        own = self.levels_of(name)
        beyond = [level for level in LEVELS if not own[0] <= level <= own[-1]]
        return nearest_level(score, (*own, *beyond)) in own

    @property
    def is_restricted(self) -> bool:
        """Whether some dial does not reach from 0 to 1."""
        return any((own[0], own[-1]) != (LEVELS[0], LEVELS[-1]) for own in map(self.levels_of, self.names))

    def resolve(self, dials: Mapping[str, float | None]) -> dict[str, float]:
        """The full control for some dials: quantised, the missing ones at their default level."""
        self._check_names(dials)
        control: dict[str, float] = {}
        for name in self.names:
            value = dials.get(name)
            control[name] = self.default_of(name) if value is None else self.quantise(name, value)
        return control

    def _check_names(self, dials: Iterable[str]) -> None:
        unknown = sorted(set(dials) - set(self.names))
        if unknown:
            raise DialError(
                f"there is no dial {', '.join(map(repr, unknown))}; this model has {', '.join(self.names)}",
                hint="use one of the dials named above",
            )

    def grid(self) -> tuple[dict[str, float], ...]:
        """Every control: the product of the levels, the last attribute turning fastest."""
        return tuple(
            dict(zip(self.names, point, strict=True))
            for point in product(*map(self.levels_of, self.names))
        )

    def render(self, control: Mapping[str, float]) -> str:
        """The control text, `[helpful=1][harmless=0.75]`. `control` must hold every attribute, on the grid."""
        assert set(control) == set(self.names), control
        return "".join(
            f"[{attribute.word}={level_text(control[attribute.name])}]" for attribute in self.attributes
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

        Whatever the case, the spacing, the kind of bracket, the width, style, accents or script of the letters: a
        bracket that opens onto one of the control's words loses its bracket, and the next closing bracket with it.
        All else stays. Takes time in proportion to the text.
        """
        head, *parts = _BEFORE_BRACKET.split(text)
        pieces = [head]
        forged = False
        for part, opens_control in zip(parts, self._open_controls(parts), strict=True):
            if opens_control:
                part, forged = "(" + part[1:], True
            if forged and (closer := _CLOSER.search(part)):
                part, forged = f"{part[: closer.start()]}){part[closer.end() :]}", False
            pieces.append(part)
        return "".join(pieces)

    @cached_property
    def plain_words(self) -> tuple[str, ...]:
        """The control's words as `reading` spells them: letters and digits, case folded."""
        return tuple("".join(filter(str.isalnum, attribute.word.casefold())) for attribute in self.attributes)

    def _open_controls(self, parts: Sequence[str]) -> list[bool]:
        """Of parts of a text, each of which begins with a bracket: which bracket opens onto a word."""
        words = self.plain_words
        alphabet = frozenset("".join(words))
        longest = max(map(len, words))
        ahead = ""
        found = []
        for part in reversed(parts):
            letters = ""
            for character in part[1:]:
                letters += reading(character, alphabet)
                if len(letters) >= longest or letters.endswith("."):
                    break
            ahead = (letters + ahead)[:longest]
            found.append(ahead.startswith(words))
        return found[::-1]

    @cached_property
    def _exact(self) -> re.Pattern[str]:
        return re.compile(
            "".join(rf"\[{re.escape(attribute.word)}=(0(?:\.[0-9]+)?|1)\]" for attribute in self.attributes)
        )


@lru_cache(maxsize=2**14)
def reading(character: str, alphabet: frozenset[str]) -> str:
    """What a character reads as: some letters of `alphabet`, `.` for any other letter or digit, nothing else.

    Case, width, style (`𝐡`, `ⓗ`), accents and ligatures fall away, and letters of other scripts read as the Latin ones
    that they look like (`look_alikes.py`); spaces, signs and marks read as nothing.
    """
    if character in INVISIBLE:
        return ""
    seen = spelled(unicodedata.normalize("NFKD", character), alphabet)
    plain = unicodedata.normalize("NFKD", seen.casefold())
    letters = "".join(filter(str.isalnum, plain))
    if letters and alphabet.issuperset(letters):
        return letters
    return "." if character.isalnum() else ""


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


def level_text(level: float) -> str:
    """A level as the control text and the chat template write it, `0.75`."""
    return f"{level:.4f}".rstrip("0").rstrip(".")


def levels_of(levels: Levels, name: str) -> tuple[float, ...]:
    """The levels of the dial `name`."""
    return levels[name] if isinstance(levels, Mapping) else levels


def nearest_level(value: float, levels: Sequence[float]) -> float:
    """The level nearest to `value`; of two equally near, the upper."""
    return min(levels, key=lambda level: (abs(level - value), -level))
