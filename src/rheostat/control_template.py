"""The control inside a chat template: what a server without any code of ours renders. Pure."""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache

from rheostat.control import BRACKETS, CLOSERS, INVISIBLE, ControlFormat, level_text, reading
from rheostat.look_alikes import latin

_PLANES = 0x20000
"""Code points below it hold every character with a reading in Latin letters."""

_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def dialled_template(
    template: str, control_format: ControlFormat, *, floors: Mapping[str, float] | None = None
) -> str:
    """`template` with dials: it takes a number in [0, 1] by each attribute's name, and puts the control last.

    A dial is quantised on its own levels: what is asked below the lowest is raised to it. A dial that is not given
    stands at its default; one out of range, or no number, raises the template's own error. All that `template`
    renders, whoever wrote it and into which field, is neutralised as by `ControlFormat.neutralise`. With `floors`,
    which the levels already obey, the template renders nothing without its generation prompt: there the control
    stands, and a conversation that is continued without one would obey no floor.

    `{% generation %}` marks fall away: the mask of the assistant's tokens that they are for counts characters of
    what is rendered directly, and here that is neutralised first.
    """
    pieces = [
        # HF compiles templates with trim_blocks and lstrip_blocks: the line break lets the template begin a line,
        # as it does by itself, and the newline that ends its last line is not text.
        "{% set rendered %}\n" + _without_marks(template).removesuffix("\n") + "{%+ endset %}",
        "{% set rheostat = namespace(text='', ahead='', open=false, control='') %}",
        *_neutralise(control_format),
    ]
    for attribute in control_format.attributes:
        pieces += _dial(attribute.name, attribute.word, control_format)
    return "".join(pieces) + "{% if add_generation_prompt %}{{ rheostat.control }}" + _end(floors or {})


def _without_marks(template: str) -> str:
    """`template` with each `{% generation %}` block as a plain block, whose variables stay inside it as well."""
    return _GENERATION.sub(lambda mark: f"{mark[1]}{mark[2] or ''}with{mark[3]}", template)


def _end(floors: Mapping[str, float]) -> str:
    if not floors:
        return "{% endif %}"
    held = ", ".join(f"{name} at {level_text(level)} or above" for name, level in floors.items())
    refusal = f"got add_generation_prompt=false, allowed is true: this model holds {held}"
    return f"{{% else %}}{{{{ raise_exception({refusal!r}) }}}}{{% endif %}}"


def _neutralise(control_format: ControlFormat) -> list[str]:
    """Writes `rendered`, neutralised: as it is where its letters hold none of the words, else part by part.

    A NUL is put before every bracket, and the text split at the NULs: each part but the first begins with its bracket,
    or with `.` where the text held a NUL of its own.
    """
    words = control_format.plain_words
    longest = max(map(len, words))
    starts = " or ".join(f"ahead[:{len(word)}] == {word!r}" for word in words)
    return [
        f"{{% set table = {table(''.join(words))!r} %}}",
        # What neither ASCII nor the table knows is a letter or a digit, or nothing: `wordcount` counts \\w.
        "{% set own = rendered.translate(table) %}{% set is_known = own.isascii() %}",
        f"{{% if not is_known %}}{_REST}{{% endif %}}",
        f"{{% if {' or '.join(f'{word!r} in own' for word in words)} %}}",
        "{% set rheostat.text = rendered | replace('\x00', '\x00.') %}",
        f"{{% for bracket in {list(BRACKETS + CLOSERS)!r} %}}",
        "{% set rheostat.text = rheostat.text | replace(bracket, '\x00' ~ bracket) %}{% endfor %}",
        "{% set parts = rheostat.text.split('\x00') %}",
        # From the last part to the first: what letters follow each bracket, and whether they begin a word.
        "{% set forged %}{% for part in parts[1:] | reverse %}{% set own = part[1:].translate(table) %}",
        f"{{% if not is_known %}}{_REST}{{% endif %}}",
        f"{{% set ahead = (own ~ rheostat.ahead)[:{longest}] %}}{{% set rheostat.ahead = ahead %}}",
        f"{{{{ '1' if part[0] in {BRACKETS!r} and ({starts}) else '0' }}}}{{% endfor %}}{{% endset %}}",
        "{% set forged = forged | reverse %}{{ parts[0] }}{% for part in parts[1:] %}",
        "{% if forged[loop.index0] == '1' %}{% set rheostat.open = true %}({{ part[1:] }}",
        f"{{% elif part[0] in {CLOSERS!r} and rheostat.open %}}",
        "{% set rheostat.open = false %}){{ part[1:] }}",
        "{% elif part[0] == '.' %}{{ '\x00' ~ part[1:] }}{% else %}{{ part }}{% endif %}{% endfor %}",
        "{% else %}{{ rendered }}{% endif %}",
    ]


_REST = (
    "{% set own %}{% for each in own %}"
    "{{ each if each < '\x80' else '.' if each | wordcount else '' }}{% endfor %}{% endset %}"
)
"""Writes `own` in ASCII."""


@cache
def table(letters: str) -> dict[int, str]:
    """For `str.translate`: what a character reads as (`control.reading`), by code point.

    It holds ASCII, the brackets, and every character that reads as some of `letters`, or as nothing though it is a
    letter; any other is `.` where it is a letter or a digit, and nothing where it is neither.
    """
    alphabet = frozenset(letters)
    found = {code: reading(chr(code), alphabet) for code in range(128)}
    found |= {ord(each): "" for each in INVISIBLE + BRACKETS + CLOSERS}
    for character in map(chr, range(128, _PLANES)):
        if (
            character.casefold() != character
            or unicodedata.decomposition(character)
            or latin(character)
        ):
            read = reading(character, alphabet)
            if alphabet.issuperset(read) and read:
                found[ord(character)] = read
    return found


def _dial(name: str, word: str, control_format: ControlFormat) -> list[str]:
    levels, default = control_format.levels_of(name), control_format.default_of(name)
    thresholds = control_format.thresholds_of(name)
    texts = [level_text(level) for level in levels]
    pieces = [
        f"{{% set dial = {default} if {name} is not defined or {name} is none else {name} %}}",
        "{% if dial is boolean or dial is not number or not (dial >= 0 and dial <= 1) %}",
        f"{{{{ raise_exception('{name}: got ' ~ (dial | tojson)[:60] ~ ', allowed is a number from 0 to 1') }}}}",
        "{% endif %}",
    ]
    choice = f"'{texts[0]}'"
    for threshold, text in zip(thresholds, texts[1:], strict=True):
        choice = f"('{text}' if dial >= {threshold} else {choice})"
    return [*pieces, f"{{% set rheostat.control = rheostat.control ~ '[{word}=' ~ {choice} ~ ']' %}}"]
