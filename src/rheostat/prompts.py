"""Prompts from files or from the pocket world: checked, without duplicates, evenly sampled.

A prompt's id is the hash of its conversation, and sampling and holding out go by hashes of the id: neither
the order of a file nor what else is in it changes where a prompt falls.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rheostat import pocket
from rheostat.errors import InputError, PromptFileError
from rheostat.pocket.corpus import Split
from rheostat.prompt_files import Line, check_file, read_lines
from rheostat.records import Message, Prompt

POCKET = "pocket:"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row of a prompt file that is no usable prompt."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source} line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Usable prompts in sampling order (every prefix is an even sample), and what was left out.

    `duplicates` counts prompts equal to another but for case and white space; `available` counts the distinct
    prompts before the limit.
    """

    prompts: tuple[Prompt, ...]
    skipped: tuple[Skipped, ...]
    duplicates: int
    available: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Prompts divided in two."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


Mix = Literal["size", "even"]


def read_prompts(
    sources: str | Sequence[str],
    *,
    split: str,
    limit: int | None = None,
    strict: bool = False,
    mix: Mix = "size",
) -> PromptSet:
    """The prompts of one or several sources: files, or `pocket:train|optimization|generalization`.

    A broken row is skipped and counted; with `strict` it is a `PromptFileError`. Several sources are
    interleaved in proportion to their sizes, or `even`: one of each in turn until the smaller ones end. Raises
    `PromptFileError` where nothing usable is left.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    skipped: list[Skipped] = []
    keys: set[str] = set()
    duplicates = 0
    queues: list[list[Prompt]] = []
    for source in names:
        queue = []
        for line in _lines(source):
            if line.problem is not None:
                skipped.append(Skipped(source, line.number, line.problem))
                if strict:
                    raise PromptFileError(
                        str(skipped[-1]),
                        hint="mend it, or read without strict: it is then skipped and counted",
                    )
                continue
            key = _same(line.messages)
            if key in keys:
                duplicates += 1
                continue
            keys.add(key)
            queue.append(Prompt(prompt_id(line.messages), line.messages, split, source))
        if not source.startswith(POCKET):
            queue.sort(key=lambda prompt: (_unit("sample", prompt.id), prompt.id))
        queues.append(queue)
    if not keys:
        raise PromptFileError(
            f"there is no usable prompt in {', '.join(names) or 'no source'}"
            + (f"; the first of {len(skipped)} problems: {skipped[0]}" if skipped else ""),
            hint='give a file with prompts, in .jsonl a line each: {"prompt": "..."}',
        )
    ordered = _interleave(queues, mix)
    return PromptSet(tuple(ordered[:limit]), tuple(skipped), duplicates, len(ordered))


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


def check_source(source: str) -> None:
    """Raises `PromptFileError` where a source is no file that can be opened and no split of the pocket world."""
    if source.startswith(POCKET):
        _pocket_split(source)
    else:
        check_file(Path(source))


def _lines(source: str) -> Iterator[Line]:
    if not source.startswith(POCKET):
        yield from read_lines(Path(source))
        return
    for number, prompt in enumerate(pocket.prompts(_pocket_split(source)), start=1):
        yield Line(number, (Message("user", prompt.text),))


def _pocket_split(source: str) -> Split:
    splits: dict[str, Split] = {
        "train": "train",
        "optimization": "optimization",
        "generalization": "generalization",
    }
    name = source.removeprefix(POCKET)
    if name not in splits:
        raise PromptFileError(
            f"got {source!r}, allowed are {', '.join(POCKET + each for each in splits)}", hint="name one"
        )
    return splits[name]


def _same(messages: Sequence[Message]) -> str:
    plain = [[message.role, " ".join(message.content.split()).casefold()] for message in messages]
    return _digest(json.dumps(plain, ensure_ascii=False))


def _interleave(queues: Sequence[Sequence[Prompt]], mix: Mix) -> list[Prompt]:
    placed = [
        ((place + 0.5) / (len(queue) if mix == "size" else 1), number, prompt)
        for number, queue in enumerate(queues)
        for place, prompt in enumerate(queue)
    ]
    return [prompt for _, _, prompt in sorted(placed, key=lambda each: each[:2])]


def _unit(purpose: str, identity: str) -> float:
    """A number in [0, 1) that depends on the id, and for each purpose in another way."""
    return int(_digest(f"{purpose}:{identity}")[:13], 16) / 16.0**13


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
