"""What sources of prompts give, before a run: counts, what is left out and why, lengths, samples."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rheostat.config import Sources
from rheostat.errors import InputError
from rheostat.prompts import NearDuplicate, PromptSet, distinct, read_prompts
from rheostat.records import Message

SHOWN = 3
"""Broken rows and near-duplicates that are shown as examples."""

_LONGEST = 300
"""Characters of a turn that are shown."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The prompts of one or several sources, and those among them that are nearly another (none where not asked)."""

    found: PromptSet
    near_duplicates: tuple[NearDuplicate, ...]


def overview(sources: Sources, *, near_duplicates: float | None) -> Overview:
    """Read sources as a run would; `near_duplicates` is the threshold in (0, 1], None looks for none.

    Raises `InputError` for another threshold, `PromptFileError` for sources that cannot be read.
    """
    if near_duplicates is not None and not 0 < near_duplicates <= 1:
        raise InputError(
            f"near-duplicates: got {near_duplicates}, allowed is a number above 0 up to 1", hint="0.85, for example"
        )
    found = read_prompts(sources, split="train")
    return Overview(found, distinct(found, [], [], near_duplicates).near_duplicates)


def in_lines(each: Overview, *, samples: int) -> Iterator[str]:
    """An overview for people, with the first `samples` prompts in sampling order."""
    found = each.found
    yield (
        f"{found.available} usable prompts ({len(found.skipped)} broken rows skipped, {found.duplicates} duplicates "
        f"left out); of these, {len(each.near_duplicates)} near-duplicates"
    )
    sources = Counter(prompt.source for prompt in found.prompts)
    if len(sources) > 1:
        yield from (f"  {count} of {source}" for source, count in sources.items())
    turns = Counter(len(prompt.messages) for prompt in found.prompts)
    yield "turns: " + ", ".join(f"{count} in {turns[count]} prompts" for count in sorted(turns))
    lengths = sorted(sum(len(turn.content) for turn in prompt.messages) for prompt in found.prompts)
    yield (
        f"characters: {lengths[len(lengths) // 2]} in the middle, {lengths[int(len(lengths) * 0.95)]} at 95 %, "
        f"{lengths[-1]} at most"
    )
    if found.skipped:
        yield f"skipped, the first of {len(found.skipped)}:"
        yield from (f"  {skipped}" for skipped in found.skipped[:SHOWN])
    if each.near_duplicates:
        yield f"near-duplicates, the first of {len(each.near_duplicates)}:"
        for copy in each.near_duplicates[:SHOWN]:
            yield f"  {copy.similarity:.2f} {_shown(copy.prompt.text)}"
            yield f"    of {_shown(copy.like.text)}"
    for prompt in found.prompts[:samples]:
        yield f"prompt {prompt.id}:"
        yield from (f"  {line}" for line in _turns(prompt.messages))


def _turns(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield f"{message.role}: {_shown(message.content)}"


def _shown(text: str) -> str:
    """A text on one line, cut where it is long; what a terminal would obey is spelt out."""
    cut = text[:_LONGEST] + ("…" if len(text) > _LONGEST else "")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
