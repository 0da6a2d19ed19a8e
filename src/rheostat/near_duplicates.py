"""Near-duplicates among conversations: prefix-filtered set similarity, exact and in a fixed order.

Two conversations are near-duplicates at a threshold t where their last user turns are alike and what comes before
them is too: the Jaccard index |A ∩ B| / |A ∪ B| of their shingles, the runs of five characters of the normalised
text, is at least t in both. Shingles of characters, as words are no unit of Chinese or Thai; of the last turn by
itself, as a long history would drown two different questions to it.

The search is the prefix filter of Chaudhuri, Ganti and Kaushik (2006) and Bayardo, Ma and Srikant (2007): with the
shingles of each set in one common order, rarest first, two sets of Jaccard index t or more share one of the first
|A| - ⌈t |A|⌉ + 1 of each. Unlike MinHash it misses none, which is what keeps evaluation prompts out of training. A
shingle is known by a 64-bit hash of its characters.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rheostat.records import Message

SHINGLE = 5
"""Characters a shingle."""

_EDGES = ".,;:!?\"'“”‘’«»„()[]{}…。，！？、；：「」『』（）¿¡"
"""What a word is stripped of at its ends: `C++`, `3.14` and `2*2` stay what they are."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a polynomial in it keeps all 64 bits
_Shingles = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Copy:
    """Conversation `index` is a near-duplicate of the earlier one `of`, whose last turn is `similarity` like its."""

    index: int
    of: int
    similarity: float


def normalise(text: str) -> str:
    """Text without case, compatibility forms, white space beyond single blanks, and marks at the ends of words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = [stripped for word in plain.split() if (stripped := word.strip(_EDGES))]
    return " ".join(words or plain.split())


def shingles(text: str) -> _Shingles:
    """The distinct shingles of a text, hashed and sorted; all of a text shorter than one is a single shingle."""
    data = f" {normalise(text)} ".encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(data, dtype="<u4").astype(np.uint64)
    width = min(SHINGLE, len(codes))
    hashed = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashed = (hashed + codes[offset : offset + len(hashed)] + np.uint64(1)) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    return np.unique(hashed)


def jaccard(first: _Shingles, second: _Shingles) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted sets of shingles, in [0, 1]."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def near_duplicates(
    conversations: Sequence[Sequence[Message]],
    threshold: float,
    *,
    kept: int = 0,
    exempt: Sequence[bool] = (),
) -> list[Copy]:
    """What to leave out, in order, so that no two conversations that stay are near-duplicates at `threshold` in (0, 1].

    The first of near-duplicates stays. The first `kept` conversations (the evaluations') all stay; a later one is
    compared with them without regard to system turns, and otherwise with them: a question asked of two personas
    makes two prompts. Two conversations that are both `exempt` are not compared.
    """
    exempted = list(exempt) or [False] * len(conversations)
    assert len(exempted) == len(conversations) >= kept and 0 < threshold <= 1, (len(exempted), kept, threshold)
    if all(exempted):
        return []
    sets, frequencies = _ranked([shingles(each[-1].content) for each in conversations])
    index: dict[int, list[int]] = {}
    copies: list[Copy] = []

    def copy_of(place: int, telling: Sequence[int]) -> Copy | None:
        for like in sorted({like for rank in telling for like in index.get(rank, ())}):
            if exempted[place] and exempted[like]:
                continue
            similarity = _similarity(sets[place], sets[like], threshold)
            if similarity >= threshold and _alike_before(
                conversations[place], conversations[like], threshold, with_system=like >= kept
            ):
                return Copy(place, like, similarity)
        return None

    for place, own in enumerate(sets):
        prefix = own[: len(own) - math.ceil(threshold * len(own) - 1e-9) + 1]
        telling = [rank for rank in prefix.tolist() if frequencies[rank] > 1]
        copy = copy_of(place, telling) if place >= kept else None
        if copy is not None:
            copies.append(copy)
            continue
        for rank in telling:
            index.setdefault(rank, []).append(place)
    return copies


def _ranked(sets: Sequence[_Shingles]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Each set as sorted ranks, the rarest shingle of all first, and how many sets hold each rank."""
    found, inverse, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    order = np.lexsort((found, counts))
    ranks = np.empty(len(found), dtype=np.int64)
    ranks[order] = np.arange(len(found))
    ends = np.cumsum([len(each) for each in sets])
    return [np.sort(each) for each in np.split(ranks[inverse], ends[:-1])], counts[order]


def _similarity(first: NDArray[np.int64], second: NDArray[np.int64], threshold: float) -> float:
    """Their Jaccard index, or 0 where their sizes alone keep it below the threshold."""
    small, large = sorted((len(first), len(second)))
    if small < threshold * large:
        return 0.0
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (small + large - common)


def _alike_before(
    first: Sequence[Message], second: Sequence[Message], threshold: float, *, with_system: bool
) -> bool:
    """Whether what comes before the last turns is alike: the turns, and `with_system` the system turns."""
    for roles in [("user", "assistant"), *([("system",)] if with_system else [])]:
        texts = [
            " ".join(turn.content for turn in each[:-1] if turn.role in roles) for each in (first, second)
        ]
        if texts[0] != texts[1] and jaccard(shingles(texts[0]), shingles(texts[1])) < threshold:
            return False
    return True
