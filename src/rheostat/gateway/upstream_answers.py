"""What a server behind answers, read strictly: nothing that is cut off or malformed passes for an answer. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from rheostat.gateway.backend import Ending, Piece, Usage
from rheostat.gateway.event_stream import Event
from rheostat.gateway.text_stream import StopTexts
from rheostat.records import Finish

DONE = b"[DONE]"
_FINISHES: Mapping[str, Finish] = {"stop": "stop", "length": "length"}
_SHOWN = 200


class BrokenAnswer(Exception):
    """An answer that is none: what was got."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one event, or a whole answer, holds."""

    pieces: Sequence[Piece]
    usage: Usage | None


def read_event(event: Event) -> Part:
    """The pieces and the usage of one event of a stream. Raises `BrokenAnswer` for an error or no chunk at all."""
    values = _object(event.data, "an event")
    if event.name == "error" or values.get("error") is not None:
        raise BrokenAnswer(f"an error in the middle of its answer: {_words(values)}")
    pieces: list[Piece] = []
    for choice in _choices(values):
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            raise BrokenAnswer(f"a choice without delta: {_shown(event.data)}")
        pieces.append(_piece(choice, delta, len(pieces)))
    return Part(pieces, _usage(values))


def read_whole(body: bytes) -> Part:
    """The answers and the usage of a chat completion. Raises `BrokenAnswer` where it is none, or one has no end."""
    values = _object(body, "a body")
    if values.get("error") is not None:
        raise BrokenAnswer(f"an error for an answer: {_words(values)}")
    pieces: list[Piece] = []
    for choice in _choices(values):
        message = choice.get("message")
        if not isinstance(message, dict):
            raise BrokenAnswer(f"a choice without message: {_shown(body)}")
        pieces.append(_piece(choice, message, len(pieces)))
        if pieces[-1].finish is None:
            raise BrokenAnswer("an answer without finish_reason, which may be cut off")
    if not pieces:
        raise BrokenAnswer(f"a body without choices: {_shown(body)}")
    return Part(pieces, _usage(values))


def error_words(body: bytes) -> str:
    """The server's own message in the body of an error: OpenAI's shape, FastAPI's `detail`, or the body as it is."""
    try:
        values = json.loads(body)
    except ValueError:
        values = None
    return _words(values) if isinstance(values, dict) else _shown(body)


@dataclass(slots=True)
class Answers:
    """The answers to one request to the server: `samples` of the ask, by the server's index of the choice."""

    samples: Sequence[int]
    stops: Sequence[str]
    _texts: list[list[str]] = field(default_factory=list)
    finishes: dict[int, Ending] = field(default_factory=dict)
    usage: Usage | None = None
    _begun: set[int] = field(default_factory=set)
    _cutters: list[StopTexts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._texts = [[] for _ in self.samples]
        self._cutters = [StopTexts(self.stops) for _ in self.samples]

    def take(self, part: Part) -> Iterator[Piece]:
        """The pieces of a part, by the ask's samples, ended by the stop texts. Raises `BrokenAnswer`."""
        self.usage = part.usage or self.usage
        for piece in part.pieces:
            index = piece.sample
            if index >= len(self.samples):
                continue  # more than was asked for
            self._begun.add(index)
            if index in self.finishes:
                if piece.text and not self._cutters[index].is_met:
                    raise BrokenAnswer("text after the end of an answer")
                continue
            yield from self._taken(index, piece)

    def _taken(self, index: int, piece: Piece) -> Iterator[Piece]:
        cutter = self._cutters[index]
        text, finish = cutter.add(piece.text), piece.finish
        if cutter.is_met:
            finish = "stop"
        elif finish is not None:
            text += cutter.end()
        if finish is not None:
            self.finishes[index] = finish
        if text or finish is not None:
            self._texts[index].append(text)
            yield Piece(self.samples[index], text, finish)

    def text(self, index: int) -> str:
        """What has come of an answer."""
        return "".join(self._texts[index])

    @property
    def are_cut(self) -> bool:
        """Whether all have ended, and one of them here: what the server still says is not wanted."""
        return len(self.finishes) == len(self.samples) and any(each.is_met for each in self._cutters)

    @property
    def missing(self) -> list[int]:
        """The samples that the server has not begun: it takes no notice of `n`."""
        return [sample for index, sample in enumerate(self.samples) if index not in self._begun]

    @property
    def unended(self) -> int:
        """How many have begun and not ended."""
        return len(self._begun) - len(self.finishes)


def _piece(choice: Mapping[str, Any], text_of: Mapping[str, Any], place: int) -> Piece:
    text, finish, index = text_of.get("content"), choice.get("finish_reason"), choice.get("index", place)
    if not isinstance(text, str | None) or not isinstance(index, int) or index < 0:
        raise BrokenAnswer(f"a choice that cannot be read: {_shown(json.dumps(choice).encode())}")
    if finish is not None and finish not in _FINISHES:
        raise BrokenAnswer(f"an answer that ended by {finish!r}")
    return Piece(index, text or "", None if finish is None else _FINISHES[finish])


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        values = from_json(data)
    except ValueError:
        raise BrokenAnswer(f"{what} that is no JSON: {_shown(data)}") from None
    if not isinstance(values, dict):
        raise BrokenAnswer(f"{what} that is no object: {_shown(data)}")
    return values


def _choices(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = values.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise BrokenAnswer(f"something without choices: {_shown(json.dumps(values).encode())}")
    return choices


def _usage(values: Mapping[str, Any]) -> Usage | None:
    usage = values.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    return Usage(prompt, completion)


def _words(values: Mapping[str, Any]) -> str:
    error = values.get("error") or values.get("detail") or values.get("message") or values
    if isinstance(error, dict):
        error = error.get("message") or error
    return _shown(str(error).encode())


def _shown(data: bytes) -> str:
    return " ".join(data[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN] or "(nothing)"
