"""Answers as OpenAI's API has them, whole and in chunks, with what became of the dials in `rheostat`. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from rheostat.control import level_text
from rheostat.gateway.backend import Ending, Outcome, Piece, Usage
from rheostat.gateway.dials import Grant
from rheostat.gateway.refusals import Refusal
from rheostat.records import Control

Kind = Literal["chat", "completion"]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What all parts of an answer have in common; `created` in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str
    grant: Grant

    def whole(self, texts: Sequence[str], finishes: Sequence[Ending], outcome: Outcome) -> bytes:
        """The answer to a request that does not stream."""
        choices = [
            self._choice(index, text, finish)
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        values = {
            **self._head("chat.completion" if self.kind == "chat" else "text_completion"),
            "choices": choices,
            "usage": usage_values(outcome.usage),
            "rheostat": {**self._dials(), **_extras(outcome)},
        }
        return to_json(values)

    def _choice(self, index: int, text: str, finish: Ending) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _dials(self) -> dict[str, Any]:
        return {"dials": {name: report.values() for name, report in self.grant.dials.items()}}

    def opening(self, samples: int) -> Iterator[bytes]:
        """The first chunks of a stream: the dials, and of a chat each answer's role."""
        echo = {"rheostat": self._dials()}
        if self.kind == "completion":
            yield self._chunk([], **echo)
            return
        for index in range(samples):
            yield self._chunk([_delta(index, {"role": "assistant", "content": ""}, None)], **echo)
            echo = {}

    def piece(self, sample: int, text: str) -> bytes:
        """A chunk of an answer's text."""
        return self._chunk([self._part(sample, text, None)])

    def end(self, sample: int, finish: Ending, outcome: Outcome | None) -> bytes:
        """The last chunk of an answer; of the last answer with the `outcome`."""
        extras = {} if outcome is None else _extras(outcome)
        return self._chunk([self._part(sample, "", finish)], **({"rheostat": extras} if extras else {}))

    def usage(self, usage: Usage) -> bytes:
        """The chunk that counts the tokens."""
        return self._chunk([], usage=usage_values(usage))

    def _part(self, sample: int, text: str, finish: Ending | None) -> dict[str, Any]:
        if self.kind == "chat":
            return _delta(sample, {"content": text} if text or finish is None else {}, finish)
        return {"index": sample, "text": text, "logprobs": None, "finish_reason": finish}

    def _chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        head = self._head("chat.completion.chunk" if self.kind == "chat" else "text_completion")
        return event({**head, "choices": choices, **more})


def _delta(index: int, delta: Mapping[str, Any], finish: Ending | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _extras(outcome: Outcome) -> dict[str, Any]:
    extras = {"guard": outcome.guard, "scores": outcome.scores if outcome.shows_scores else None}
    return {name: value for name, value in extras.items() if value is not None}


def usage_values(usage: Usage) -> dict[str, int]:
    """The tokens, and their sum."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def event(values: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(values) + b"\n\n"


def failed(refusal: Refusal) -> bytes:
    """The event that ends a stream that fails: an error in OpenAI's shape; no `[DONE]` follows."""
    return event(refusal.body())


def dials_header(control: Control) -> str:
    """The granted dials for `X-Rheostat-Dials`: `helpfulness=1, safety=0.75`."""
    return ", ".join(f"{name}={level_text(level)}" for name, level in control.items())


@dataclass(slots=True)
class Stream:
    """The chunks of a stream, in order: the end of its last answer waits for the outcome."""

    reply: Reply
    samples: int
    includes_usage: bool
    _ended: int = 0
    _last: tuple[int, Ending] | None = None

    def of_piece(self, piece: Piece) -> bytes:
        """What a piece sends; may be nothing."""
        chunk = self.reply.piece(piece.sample, piece.text) if piece.text else b""
        if piece.finish is not None:
            self._ended += 1
            if self._ended == self.samples:
                self._last = piece.sample, piece.finish
            else:
                chunk += self.reply.end(piece.sample, piece.finish, None)
        return chunk

    def of_outcome(self, outcome: Outcome) -> bytes:
        """What the whole answer sends at its end."""
        assert self._last is not None, "a backend says of each answer why it finished"
        end = self.reply.end(*self._last, outcome)
        return end + (self.reply.usage(outcome.usage) if self.includes_usage else b"") + DONE
