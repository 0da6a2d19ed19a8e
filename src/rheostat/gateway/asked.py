"""What a request asks for: its conversation, and the dials that it turns by whichever way. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rheostat.gateway.bodies import TEMPERATURE, TOP_P, ChatBody, CommonBody, CompletionBody, shown
from rheostat.gateway.dials import HEADER, dial_value
from rheostat.gateway.refusals import Refusal
from rheostat.records import Message, Role

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: lower-case names."""

_HEADER = HEADER.encode()
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read: `dials` by name as they were given, in [0, 1]; None where nothing was said."""

    model: str | None
    messages: tuple[Message, ...]
    dials: Mapping[str, float]
    temperature: float
    top_p: float
    max_tokens: int | None
    samples: int
    seed: int | None
    stop: tuple[str, ...]
    streams: bool
    includes_usage: bool
    wants_scores: bool

    @property
    def has_system_turn(self) -> bool:
        """Whether the request brings a system turn."""
        return self.messages[0].role == "system"


def read_asked(body: ChatBody | CompletionBody, headers: Headers) -> Asked:
    """What a body and the headers ask for. Raises `Refusal` (400)."""
    if isinstance(body, ChatBody):
        messages = conversation(body)
        max_tokens = _one_of(max_tokens=body.max_tokens, max_completion_tokens=body.max_completion_tokens)
    else:
        messages, max_tokens = (
            (Message("user", checked_text(body.prompt, "prompt", may_be_blank=False)),),
            body.max_tokens,
        )
    if body.stream_options is not None and not body.stream:
        raise Refusal(
            400,
            "invalid_value",
            "stream_options: got some, allowed only with stream: true",
            "leave them out, or ask for a stream",
            param="stream_options",
        )
    return Asked(
        model=body.model,
        messages=messages,
        dials=requested_dials(body, headers),
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        top_p=TOP_P if body.top_p is None else body.top_p,
        max_tokens=max_tokens,
        samples=body.n or 1,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        streams=bool(body.stream),
        includes_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        wants_scores=bool(body.score),
    )


def requested_dials(body: CommonBody, headers: Headers) -> dict[str, float]:
    """The dials by name, out of the body's fields, `chat_template_kwargs` and headers.

    A dial given twice must have the same value. Raises `Refusal` (400).
    """
    found: dict[str, tuple[float, str]] = {}
    for name, value, way in _given(body, headers):
        if name in found and found[name][0] != value:
            other, other_way = found[name]
            raise Refusal(
                400,
                "dials_differ",
                f"{name}: got {other:g} by {other_way} and {value:g} by {way}, allowed is one value",
                "give each dial in one place",
                param=name,
            )
        found[name] = (value, way)
    return {name: value for name, (value, _) in found.items()}


def _given(body: CommonBody, headers: Headers) -> Iterable[tuple[str, float, str]]:
    own = type(body).model_fields
    for name in body.model_fields_set:
        if name in own and name not in _PLAIN and (value := getattr(body, name)) is not None:
            yield name, value, f"the field {name}"
    for name, value in (body.chat_template_kwargs or {}).items():
        if value is not None:
            yield name, value, f"chat_template_kwargs.{name}"
    for header, text in headers:
        if header.startswith(_HEADER):
            way = f"the header {header.decode('latin-1')}"
            yield (
                header[len(_HEADER) :].decode("latin-1").replace("-", "_"),
                _header_value(header, text, way),
                way,
            )


_PLAIN = frozenset(ChatBody.model_fields) | frozenset(CompletionBody.model_fields)


def _header_value(header: bytes, text: bytes, way: str) -> float:
    plain = text.decode("latin-1").strip(" \t")
    name = header[len(_HEADER) :].decode("latin-1")
    number: Any = float(plain) if _NUMBER.fullmatch(plain[:40]) and len(plain) <= 40 else plain
    return dial_value(name, number, way)


def conversation(body: ChatBody) -> tuple[Message, ...]:
    """The turns: a system turn at most once and first, the user's last. Raises `Refusal` (400)."""
    turns = []
    for place, turn in enumerate(body.messages):
        where = f"messages.{place}"
        role: Role = "system" if turn.role == "developer" else turn.role
        if role == "system" and place:
            raise Refusal(
                400,
                "misplaced_system_turn",
                f"{where}: got a {turn.role} turn, allowed is one, as the first turn",
                "join what it says to the first turn",
                param=f"{where}.role",
            )
        text = turn.content if isinstance(turn.content, str) else "".join(part.text for part in turn.content)
        turns.append(Message(role, checked_text(text, where, may_be_blank=role == "assistant")))
    if turns[-1].role != "user":
        raise Refusal(
            400,
            "last_turn_not_users",
            f"messages: got a last turn of the {turns[-1].role}, allowed is a user's",
            "end the conversation with what is to be answered",
            param="messages",
        )
    return tuple(turns)


def checked_text(text: str, where: str, *, may_be_blank: bool) -> str:
    """A text that a model can be given. Raises `Refusal` (400)."""
    if "\0" in text:
        raise Refusal(
            400,
            "invalid_text",
            f"{where}: got the character U+0000, allowed is text",
            "leave it out",
            param=where,
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refusal(
                400,
                "invalid_text",
                f"{where}: got half of a surrogate pair at character {error.start + 1}, allowed is text in UTF-8",
                "send it as UTF-8",
                param=where,
            ) from None
    if not may_be_blank and not text.strip():
        raise Refusal(
            400,
            "empty_text",
            f"{where}: got {shown(text)}, allowed is anything to respond to",
            "say something",
            param=where,
        )
    return text


def _one_of(**given: int | None) -> int | None:
    values = {name: value for name, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        said = " and ".join(f"{name} {value}" for name, value in values.items())
        raise Refusal(
            400, "values_differ", f"got {said}, allowed is one value", "give one of them", param=min(values)
        )
    return next(iter(values.values()), None)
