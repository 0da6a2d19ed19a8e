"""Prompts from files, datasets or the pocket world: checked, without duplicates, evenly sampled.

A prompt's id is the hash of its conversation, and sampling and holding out go by hashes of the id: neither
the order of a file nor what else is in it changes where a prompt falls.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rheostat.config import SourceConfig, Sources
from rheostat.errors import InputError, PromptFileError
from rheostat.near_duplicates import near_duplicates
from rheostat.prompt_rows import Line
from rheostat.prompt_sources import kind_of_source, listed, read_source
from rheostat.records import Message, Prompt

CALIBRATION = "calibration"
"""The split on which dials are calibrated, and the stage that holds it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row of a prompt file that is no usable prompt."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source} line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Queue:
    """The prompts of one source in sampling order, and its share beside the other sources' while it lasts."""

    share: float
    prompts: tuple[Prompt, ...]
    is_templated: bool = False


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Usable prompts in sampling order (every prefix is an even sample), and what was left out.

    `duplicates` counts prompts equal to another but for case and white space; `available` counts the distinct
    prompts before the limit, which `queues` holds source by source.
    """

    prompts: tuple[Prompt, ...]
    skipped: tuple[Skipped, ...]
    duplicates: int
    available: int
    queues: tuple[Queue, ...]


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A prompt that was left out for another that it is like, at a Jaccard index of `similarity`.

    `is_leak`: the other is an evaluation's, else it is an earlier training prompt.
    """

    prompt: Prompt
    like: Prompt
    similarity: float
    is_leak: bool


@dataclass(frozen=True, slots=True)
class Distinct:
    """Training prompts in sampling order, and those left out because they are nearly another."""

    prompts: tuple[Prompt, ...]
    near_duplicates: tuple[NearDuplicate, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Prompts divided in two."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


Mix = Literal["size", "even"]


def read_prompts(
    sources: Sources,
    *,
    split: str,
    limit: int | None = None,
    strict: bool = False,
    mix: Mix = "size",
) -> PromptSet:
    """The prompts of one or several sources (docs/prompts.md).

    A broken row is skipped and counted; with `strict` it is a `PromptFileError`. Several sources are interleaved
    in proportion to their weights, where one has a weight, or else to their sizes, or `even`: one of each in turn
    until the smaller ones end. Raises `PromptFileError` where nothing usable is left.
    """
    blocks = listed(sources)
    weighted = any(block.weight is not None for block in blocks)
    skipped: list[Skipped] = []
    known: set[str] = set()
    duplicates = 0
    queues: list[Queue] = []
    for block in blocks:
        reader = _Reader(block, split, known, strict=strict)
        prompts = reader.read()
        known |= {_same(prompt.messages) for prompt in prompts}
        skipped += reader.skipped
        duplicates += reader.duplicates
        share = (block.weight or 1.0) if weighted else float(len(prompts)) if mix == "size" else 1.0
        queues.append(Queue(share, tuple(prompts), kind_of_source(block) == "pocket"))
    if not known:
        raise PromptFileError(
            f"there is no usable prompt in {', '.join(block.source for block in blocks) or 'no source'}"
            + (f"; the first of {len(skipped)} problems: {skipped[0]}" if skipped else ""),
            hint='give a file with prompts, in .jsonl a line each: {"prompt": "..."}',
        )
    ordered = interleave(queues)
    return PromptSet(tuple(ordered[:limit]), tuple(skipped), duplicates, len(ordered), tuple(queues))


def interleave(queues: Sequence[Queue]) -> list[Prompt]:
    """The prompts of all queues, each prefix an even sample of them by their shares while none has ended.

    The k-th prompt of a queue, from 0, stands at (k + 1/2) / share: the order in which the method of Sainte-Laguë
    gives out seats.
    """
    placed = [
        ((place + 0.5) / queue.share, number, prompt)
        for number, queue in enumerate(queues)
        for place, prompt in enumerate(queue.prompts)
    ]
    return [prompt for _, _, prompt in sorted(placed, key=lambda each: each[:2])]


def distinct(
    pool: PromptSet, evaluation: Sequence[PromptSet], held_out: Sequence[Prompt], threshold: float | None
) -> Distinct:
    """The training prompts of a pool: none of `held_out` or an evaluation's, nor, at `threshold`, nearly one of them.

    Of training prompts that are nearly each other the first in sampling order stays. What is left keeps the shares of
    its sources. Prompts that come from templates (the pocket world's) are not compared with each other.
    """
    judged = [*held_out, *(prompt for each in evaluation for prompt in each.prompts)]
    judged_ids = {prompt.id for prompt in judged}
    if threshold is None:
        return Distinct(tuple(prompt for prompt in interleave(pool.queues) if prompt.id not in judged_ids), ())
    templated = {
        prompt.id
        for each in (pool, *evaluation)
        for queue in each.queues
        if queue.is_templated
        for prompt in queue.prompts
    }
    compared = [*judged, *(prompt for prompt in interleave(pool.queues) if prompt.id not in judged_ids)]
    copies = near_duplicates(
        [prompt.messages for prompt in compared],
        threshold,
        kept=len(judged),
        exempt=[prompt.id in templated for prompt in compared],
    )
    found = tuple(
        NearDuplicate(compared[copy.index], compared[copy.of], copy.similarity, copy.of < len(judged))
        for copy in copies
    )
    left_out = {each.prompt.id for each in found}
    kept = [
        replace(queue, prompts=tuple(prompt for prompt in queue.prompts if prompt.id not in left_out))
        for queue in pool.queues
    ]
    return Distinct(tuple(prompt for prompt in interleave(kept) if prompt.id not in judged_ids), found)


def split_held_out(prompts: Sequence[Prompt], share: float) -> HeldOut:
    """Hold out about `share` in (0, 1) of the prompts, each by its own content, whatever the others are.

    Where that would leave one side empty, the nearest prompt changes sides. Raises `InputError` for fewer
    than two prompts.
    """
    if len(prompts) < 2:
        raise InputError(
            f"got {len(prompts)} prompt, of which none can be held out; allowed are 2 or more",
            hint="give more prompts, or held-out ones of their own (prompts.optimization)",
        )
    places = {prompt.id: _unit("held out", prompt.id) for prompt in prompts}
    ranked = sorted(places.values())
    bound = share
    if ranked[0] >= share:
        bound = ranked[1]
    elif ranked[-1] < share:
        bound = ranked[-1]
    return HeldOut(
        tuple(prompt for prompt in prompts if places[prompt.id] >= bound),
        tuple(prompt for prompt in prompts if places[prompt.id] < bound),
    )


def prompt_id(messages: Sequence[Message]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a conversation."""
    return _digest(json.dumps([list(message) for message in messages], ensure_ascii=False))[:16]


class _Reader:
    """Reads the prompts of one source, and counts what is none or stands elsewhere already."""

    def __init__(self, source: SourceConfig, split: str, known: set[str], *, strict: bool) -> None:
        self.skipped: list[Skipped] = []
        self.duplicates = 0
        self._source = source
        self._split = split
        self._known = known
        self._strict = strict

    def read(self) -> list[Prompt]:
        """The prompts in sampling order, within the source's limit."""
        limit, kind = self._source.limit, kind_of_source(self._source)
        prompts: list[Prompt] = []
        for prompt in self._distinct():
            prompts.append(prompt)
            if limit is None:
                continue
            if kind in ("hub", "pocket") and len(prompts) == limit:
                break
            if kind not in ("hub", "pocket") and len(prompts) >= 2 * limit + 1000:
                prompts = sorted(prompts, key=_place)[:limit]  # what a large source holds in memory
        return (prompts if kind == "pocket" else sorted(prompts, key=_place))[:limit]

    def _distinct(self) -> Iterator[Prompt]:
        own: set[str] = set()
        for line in read_source(self._source):
            if line.problem is not None:
                self._skip(line, line.problem)
                continue
            key = _same(line.messages)
            if key in self._known or key in own:
                self.duplicates += 1
                continue
            own.add(key)
            yield Prompt(prompt_id(line.messages), line.messages, self._split, self._source.source)

    def _skip(self, line: Line, problem: str) -> None:
        self.skipped.append(Skipped(self._source.source, line.number, problem))
        if self._strict:
            raise PromptFileError(
                str(self.skipped[-1]), hint="mend it, or read without strict: it is then skipped and counted"
            )


def _place(prompt: Prompt) -> tuple[float, str]:
    return _unit("sample", prompt.id), prompt.id


def _same(messages: Sequence[Message]) -> str:
    plain = [[message.role, " ".join(message.content.split()).casefold()] for message in messages]
    return _digest(json.dumps(plain, ensure_ascii=False))


def _unit(purpose: str, identity: str) -> float:
    """A number in [0, 1) that depends on the id, and for each purpose in another way."""
    return int(_digest(f"{purpose}:{identity}")[:13], 16) / 16.0**13


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
