"""Preference pairs and labelled responses, out of files in the usual shapes.

A pair's row has `chosen` and `rejected`: two texts with a `prompt`; two transcripts of HH ("\\n\\nHuman: …"); or two
lists of messages, with or without a `prompt`. A labelled row has a `label` and a response: `response`, `answer` or
`completion` with a `prompt`, `context`, `question` or `instruction`; or `messages` that end in the assistant's; or a
`text` alone.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rheostat.errors import InputError
from rheostat.plugins import Judged
from rheostat.records import Message, Role

Kind = Literal["pairs", "labels"]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz")
_PROMPTS = ("prompt", "context", "question", "instruction")
_RESPONSES = ("response", "answer", "completion")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses, the better one first."""

    chosen: Judged
    rejected: Judged


@dataclass(frozen=True, slots=True)
class Labelled:
    """A response that has the attribute or has it not."""

    item: Judged
    is_positive: bool


@dataclass(frozen=True, slots=True)
class RewardData:
    """The rows of a file: pairs or labelled responses, the other is empty; `digest` is of the file's bytes."""

    pairs: tuple[Pair, ...]
    labelled: tuple[Labelled, ...]
    broken: int
    digest: str

    @property
    def kind(self) -> Kind:
        """What the rows are."""
        return "pairs" if self.pairs else "labels"

    def __len__(self) -> int:
        return len(self.pairs) + len(self.labelled)

    def part(self, share: float, *, is_held_out: bool) -> "RewardData":
        """The rows held out, or the others: `share` of the conversations, by their content, which keeps equal prompts
        together and does not change when rows are added.
        """
        return RewardData(
            tuple(each for each in self.pairs if _is_held_out(each.chosen, share) == is_held_out),
            tuple(each for each in self.labelled if _is_held_out(each.item, share) == is_held_out),
            self.broken,
            self.digest,
        )

    def first(self, limit: int | None) -> "RewardData":
        """At most `limit` rows: those whose content's hash is lowest, an even sample of the file."""
        if limit is None or len(self) <= limit:
            return self
        pairs = sorted(self.pairs, key=lambda each: _hash(each.chosen, each.chosen.response))[:limit]
        labelled = sorted(self.labelled, key=lambda each: _hash(each.item, each.item.response))[:limit]
        return RewardData(tuple(pairs), tuple(labelled), self.broken, self.digest)


class _Broken(ValueError):
    """What is wrong with a row."""


def read(path: Path, *, kind: Kind | None = None, positive: str | None = None) -> RewardData:
    """The rows of a file; `positive` is the label that means the attribute, where labels are words.

    A row that cannot be used is left out and counted. Raises `InputError` where the file cannot be read, where no
    row can be used, or where labels are words and `positive` is none of them.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}", hint="give a file of rows") from error
    rows = list(_rows(path, data))
    chosen_kind: Kind = kind or ("pairs" if any("chosen" in row for row in rows) else "labels")
    if chosen_kind == "labels":
        _check_positive(path, rows, positive)
    pairs: list[Pair] = []
    labelled: list[Labelled] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            if chosen_kind == "pairs":
                pairs.append(_pair(row))
            else:
                labelled.append(_labelled(row, positive))
        except _Broken as error:
            problems.append(f"row {number}: {error}")
    if problems:
        _logger.warning("%s: %d broken rows left out, the first: %s", path, len(problems), problems[0])
    if not pairs and not labelled:
        raise InputError(
            f"{path}: got no {chosen_kind} in {len(rows)} rows, allowed is one or more"
            + (f" ({problems[0]})" if problems else ""),
            hint="pairs have `chosen` and `rejected`; labels have `response` (or `text`) and `label`",
        )
    return RewardData(
        tuple(pairs), tuple(labelled), len(problems), hashlib.sha256(data).hexdigest()[:16]
    )


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of "\\n\\nHuman: …\\n\\nAssistant: …" (Anthropic's HH); neighbours of one speaker become one turn."""
    pieces = _SPEAKER.split(text)
    turns: list[Message] = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{said.strip()}")
        else:
            turns.append(Message(role, said.strip()))
    return tuple(turns)


def _pair(row: Mapping[str, Any]) -> Pair:
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if missing:
        raise _Broken(f"it has no {missing[0]!r}")
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    if chosen == rejected:
        raise _Broken("chosen and rejected are the same")
    return Pair(chosen, rejected)


def _side(row: Mapping[str, Any], name: str) -> Judged:
    value = row[name]
    prompt = _prompt(row)
    if isinstance(value, str):
        if prompt is None and _SPEAKER.match(value):
            return _ending_in_a_response(transcript(value), name)
        return Judged(prompt or (Message("user", ""),), value.strip())
    return _ending_in_a_response((*(prompt or ()), *_messages(value, name)), name)


def _labelled(row: Mapping[str, Any], positive: str | None) -> Labelled:
    label = row.get("label")
    if label is None:
        raise _Broken("it has no 'label'")
    word = str(label)
    is_positive = word == positive if positive is not None else _TRUTHS[word.removesuffix(".0").lower()]
    response = next((row[name] for name in _RESPONSES if isinstance(row.get(name), str)), None)
    prompt = _prompt(row)
    if response is not None:
        return Labelled(Judged(prompt or (Message("user", ""),), response.strip()), is_positive)
    if isinstance(row.get("text"), str):
        text = row["text"]
        if _SPEAKER.match(text):
            return Labelled(_ending_in_a_response(transcript(text), "text"), is_positive)
        return Labelled(Judged(prompt or (Message("user", ""),), text.strip()), is_positive)
    if row.get("messages") is not None:
        messages = _messages(row["messages"], "messages")
        return Labelled(_ending_in_a_response(messages, "messages"), is_positive)
    raise _Broken("it has no response, text or messages")


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    for name in _PROMPTS:
        value = row.get(name)
        if isinstance(value, str):
            if _SPEAKER.match(value):
                turns = transcript(value)
                return turns[:-1] if turns[-1] == Message("assistant", "") else turns
            return (Message("user", value.strip()),)
        if value is not None:
            return _messages(value, name)
    return None


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _Broken(f"{name}: it is neither text nor a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise _Broken(f"{name}: a message is an object with role and content")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise _Broken(f"{name}: got the role {turn.get('role')!r}, allowed are system, user, assistant")
        turns.append(Message(cast(Role, turn["role"]), turn["content"].strip()))
    return tuple(turns)


def _ending_in_a_response(turns: Sequence[Message], name: str) -> Judged:
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role != "user":
        raise _Broken(f"{name}: it does not end in a user's turn and the assistant's")
    return Judged(tuple(turns[:-1]), turns[-1].content)


def _check_positive(path: Path, rows: Sequence[Mapping[str, Any]], positive: str | None) -> None:
    values = sorted({str(row["label"]) for row in rows if row.get("label") is not None})
    shown = ", ".join(values[:8]) or "none"
    if positive is not None and positive not in values:
        raise InputError(
            f"--positive: got {positive!r}, allowed are the labels of {path.name}: {shown}",
            hint="name the label that means more of the attribute",
        )
    if positive is None and not {value.removesuffix(".0").lower() for value in values} <= set(_TRUTHS):
        raise InputError(
            f"{path}: got the labels {shown}, and it is not said which one means more of the attribute",
            hint=f"say it: --positive {values[0]}",
        )


def _rows(path: Path, data: bytes) -> Iterator[Mapping[str, Any]]:
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputError(
            f"{path}: got a file of kind {path.suffix!r}, allowed are {', '.join(SUFFIXES)}",
            hint="convert it to .jsonl, a row a line",
        )
    try:
        if name.endswith(".gz"):
            data = gzip.decompress(data)
            name = name.removesuffix(".gz")
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            rows: list[Any] = pq.read_table(pa.BufferReader(data)).to_pylist()
        elif name.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        elif name.endswith(".jsonl"):
            rows = [json.loads(line) for line in data.decode("utf-8").splitlines() if line.strip()]
        else:
            rows = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: it cannot be read: {error}", hint="mend it, or write it again") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: got {type(rows).__name__}, allowed is a list of rows", hint="write a list")
    for row in rows:
        yield row if isinstance(row, Mapping) else {}


def _is_held_out(item: Judged, share: float) -> bool:
    return int(_hash(item, "")[:8], 16) < share * 2**32


def _hash(item: Judged, more: str) -> str:
    text = json.dumps([list(item.messages), more], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
