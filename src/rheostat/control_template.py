"""The control inside a chat template: what a server without any code of ours renders. Pure."""

import unicodedata
from functools import cache

from rheostat.control import BRACKETS, CLOSERS, INVISIBLE, ControlFormat, level_text, reading

_PLANES = 0x20000
"""Code points below it hold every character with a reading in Latin letters."""


def dialled_template(template: str, control_format: ControlFormat) -> str:
    """`template` with dials: it takes a number in [0, 1] by each attribute's name, and puts the control last.

    A dial that is not given stands at its highest level; one out of range raises the template's own error. All that
    `template` renders, whoever wrote it and into which field, is neutralised as by `ControlFormat.neutralise`.
    """
    pieces = [
        # HF compiles templates with trim_blocks and lstrip_blocks: the line break lets the template begin a line,
        # as it does by itself, and the newline that ends its last line is not text.
        "{% set rendered %}\n" + template.removesuffix("\n") + "{%+ endset %}",
        "{% set rheostat = namespace(text='', letters='', ahead='', open=false, control='') %}",
        *_neutralise(control_format),
    ]
    for attribute in control_format.attributes:
        levels, thresholds = (
            each(attribute.name) for each in (control_format.levels_of, control_format.thresholds_of)
        )
        pieces += _dial(attribute.name, attribute.word, levels, thresholds)
    return "".join(pieces) + "{% if add_generation_prompt %}{{ rheostat.control }}{% endif %}"


def _neutralise(control_format: ControlFormat) -> list[str]:
    """Writes `rendered`, neutralised: a NUL is put before every bracket, and the text split at the NULs.

    Each part but the first begins with its bracket, or with `.` where the text held a NUL of its own.
    """
    words = control_format.plain_words
    longest = max(map(len, words))
    starts = " or ".join(f"rheostat.ahead.startswith({word!r})" for word in words)
    return [
        f"{{% set readings = {readings(''.join(words))!r} %}}",
        "{% set rheostat.text = rendered | replace('\x00', '\x00.') %}",
        f"{{% for bracket in {list(BRACKETS + CLOSERS)!r} %}}",
        "{% set rheostat.text = rheostat.text | replace(bracket, '\x00' ~ bracket) %}{% endfor %}",
        "{% set parts = rheostat.text.split('\x00') %}",
        # From the last part to the first: what letters follow each bracket, and whether they begin a word.
        "{% set forged %}{% for part in parts[1:] | reverse %}{% set rheostat.letters = '' %}",
        "{% for character in part[1:] "
        f"if rheostat.letters | length < {longest} and '.' not in rheostat.letters %}}",
        "{% set rheostat.letters = rheostat.letters ~ "
        "readings.get(character, '.' if character.isalnum() else '') %}{% endfor %}",
        f"{{% set rheostat.ahead = (rheostat.letters ~ rheostat.ahead)[:{longest}] %}}",
        f"{{{{ '1' if part[0] in {BRACKETS!r} and ({starts}) else '0' }}}}{{% endfor %}}{{% endset %}}",
        "{% set forged = forged | reverse %}{{ parts[0] }}{% for part in parts[1:] %}",
        "{% if forged[loop.index0] == '1' %}{% set rheostat.open = true %}({{ part[1:] }}",
        f"{{% elif rheostat.open and part[0] in {CLOSERS!r} %}}",
        "{% set rheostat.open = false %}){{ part[1:] }}",
        "{% elif part[0] == '.' %}{{ '\x00' ~ part[1:] }}{% else %}{{ part }}{% endif %}{% endfor %}",
    ]


@cache
def readings(letters: str) -> dict[str, str]:
    """Every character that reads as some of `letters`, or as nothing though it is a letter: `control.reading`."""
    alphabet = frozenset(letters)
    found = dict.fromkeys(INVISIBLE, "")
    for character in map(chr, range(_PLANES)):
        if character.isascii() or character.casefold() != character or unicodedata.decomposition(character):
            read = reading(character, alphabet)
            if alphabet.issuperset(read) and read:
                found[character] = read
    return found


def _dial(
    name: str, word: str, levels: tuple[float, ...], thresholds: tuple[float, ...]
) -> list[str]:
    texts = [level_text(level) for level in levels]
    pieces = [
        f"{{% set dial = {levels[-1]} if {name} is not defined or {name} is none else {name} %}}",
        "{% if dial is boolean or dial is not number or not (dial >= 0 and dial <= 1) %}",
        f"{{{{ raise_exception('{name}: got ' ~ dial ~ ', allowed is a number from 0 to 1') }}}}{{% endif %}}",
    ]
    choice = f"'{texts[0]}'"
    for threshold, text in zip(thresholds, texts[1:], strict=True):
        choice = f"('{text}' if dial >= {threshold} else {choice})"
    return [*pieces, f"{{% set rheostat.control = rheostat.control ~ '[{word}=' ~ {choice} ~ ']' %}}"]
