"""Letters of other scripts that look like Latin ones: `е` of the Cyrillic script reads as `e`. Pure.

The table is that of Unicode's security mechanisms (UTS #39, confusables.txt), cut down to single letters and digits
that look like one ASCII letter and that neither compatibility decomposition nor their own name already says to be one.
Ours: the small Cyrillic letters in the shape of Latin capitals (`н`); and what looks like a capital I stands under i as
well as under l.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from functools import cache

LOOK_ALIKES: Mapping[str, str] = {
    "a": "ɑΑαАаᎪᗅꓮ𐊠𖽀",
    "b": "ƄΒВЬвᏏᏴᑲᖯᗷꓐꞴ𐊂𐊡𐌁",
    "c": "СсᏟⲤⲥꓚꮯ𐊢𐌂𐐕𐐽𐔜𑣩𑣲",
    "d": "ԁᎠᏧᑯᗞᗪꓒꓓ",
    "e": "ΕЕеҽᎬⴹꓰꬲ𐊆𑢦𑢮",
    "f": "Ϝքᖴẝꓝꬵ𐊇𐊥𐔥𑢢𑣂",
    "g": "ƍɡԌցᏀᏳꓖ",
    "h": "ΗНнһհᎻᏂᕼⲎꓧ𐋏",
    "i": "ıɩΙιІіӀӏᎥᛁⲒⵏꓲꙇꭵ𑣃",
    "j": "ͿϳЈјᎫᒍꓙ",
    "k": "ΚКкᏦᛕⲔꓗ𐔘",
    "l": "ƖǀΙІӀ۱ᏞᒪᛁⲒⳐⵏꓡꓲ𐊊𐌉𐌠𐐛𐔦𑢣𑢲𖼖𖼨",
    "m": "ΜϺМмᎷᗰᛖⲘꓟ𐊰𐌑",
    "n": "ΝոռⲚꓠ𐔓",
    "o": "ΟοσОоՕօ۵०০੦૦ଠ୦௦౦೦ഠ൦๐໐ဝ၀ჿዐᴑⲞⲟⵔ〇ꓳꬽ𐊒𐊫𐐄𐐬𐓂𐓪𐔖𑓐𑢵𑣈𑣗𑣠",
    "p": "ΡρРрᏢᑭⲢⲣꓑ𐊕",
    "q": "ԛգզⵕ",
    "r": "ƦгᎡᏒᖇᴦⲅꓣꭇꭈꮁ𐒴𖼵",
    "s": "ƽЅѕՏᏕᏚꓢꮪ𐊖𐐠𐑈𑣁𖼺",
    "t": "ΤТтᎢⲦꓔ𐊗𐊱𐌕𑢼𖼊",
    "u": "υՍսሀᑌꓴꞟ𐓎𐓶𑢸𑣘𖽂",
    "v": "νѴѵ۷Ꮩᐯⴸꓦꛟꮩ𐔝𑜆𑢠𑣀𖼈",
    "w": "ɯѡԜԝաᎳᏔꓪꮃ𑜊𑜎𑜏𑣦𑣯",
    "x": "ΧХхᕁᕽᚷⲬⵝꓫꞳ𐊐𐊴𐌗𐌢𐔧𑣬",
    "y": "ɣΥγУуҮүყᎩᎽⲨꓬ𐊲𑢤𑣜𖽃",
    "z": "ΖᏃꓜꮓ𐋵𑢩𑣄𑣥",
}
"""By small Latin letter what looks like it, in either case."""

_NAMED = re.compile(
    r"(?:(?:NEGATIVE (?:SQUARED|CIRCLED) )?LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL )?"
    r"|REGIONAL INDICATOR SYMBOL LETTER )([A-Z])(?: WITH .*)?"
)
"""Also of signs that show a letter, `🅷` and `🇭`, though Unicode calls them no letters."""


@cache
def latin(character: str) -> str:
    """The small Latin letters that a character looks like, mostly one or none; of an ASCII character none."""
    if character.isascii():
        return ""
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    if named is not None:
        return named[1].lower()
    return "".join(letter for letter, shapes in LOOK_ALIKES.items() if character in shapes)


def spelled(text: str, alphabet: Collection[str]) -> str:
    """`text` with what looks like a letter of `alphabet` written as that letter, if it is not of it already."""
    return "".join(
        each if each in alphabet else next((seen for seen in latin(each) if seen in alphabet), each)
        for each in text
    )
