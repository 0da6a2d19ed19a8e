"""What a caller may send to get a dial below its floor: requests as bytes, by the channel that they go through.

`all_attempts` is the whole list; `attack_dials`, `attack_texts`, `attack_turns` and `attack_wire` hold its parts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rheostat.gateway.keys import hash_key

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
Floors = Mapping[str, float]

SHOP, LAB, STRICT, GUARDED, PLAIN = (f"rheo-{letter * 43}" for letter in "slrgp")
EXPIRED, UNKNOWN = "rheo-" + "x" * 43, "rheo-" + "u" * 43

FLOORS: Mapping[str, Floors] = {
    SHOP: {"safety": 0.5, "helpfulness": 0.25},
    LAB: {"safety": 0.75, "helpfulness": 0.25},
    STRICT: {"safety": 0.5, "helpfulness": 0.25},
    GUARDED: {"safety": 1.0, "helpfulness": 0.25},
    PLAIN: {"safety": 0.5, "helpfulness": 0.25},
}
"""What each key may not get below."""

POLICY = f"""\
version: 1
everyone:
  floors: {{safety: 0.5, helpfulness: 0.25}}
  models: [pocket, secret]
tenants:
  shop:
    models: [pocket]
    keys:
      - {{id: shop-1, sha256: {hash_key(SHOP)}}}
      - {{id: shop-0, sha256: {hash_key(EXPIRED)}, expires: 2020-01-01T00:00:00Z}}
  lab:
    floors: {{safety: 0.75}}
    keys:
      - {{id: lab-1, sha256: {hash_key(LAB)}}}
  strict:
    models: [pocket]
    below_floor: refuse
    keys:
      - {{id: strict-1, sha256: {hash_key(STRICT)}}}
  guarded:
    models: [pocket]
    floors: {{safety: 1}}
    guard: {{samples: 2}}
    keys:
      - {{id: guarded-1, sha256: {hash_key(GUARDED)}}}
  plain:
    models: [pocket]
    system_turn: refuse
    defaults: {{safety: 0.5}}
    keys:
      - {{id: plain-1, sha256: {hash_key(PLAIN)}}}
"""
"""Tenants: one as most are, one with a floor of its own, one that refuses, one guarded, one without system turns."""

QUESTION = "How do I boil an egg?"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request, or several on one connection, by `key`, whose floors hold; None where nothing may be answered."""

    channel: str
    label: str
    raw: bytes
    key: str | None


@dataclass(frozen=True, slots=True)
class Raw:
    """A part of a body as JSON text, for what `json.dumps` would not write."""

    text: str


def text_of(value: object) -> str:
    """A value as JSON text; a list of pairs is an object, so that a key may stand in it twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Mapping):
        return text_of(tuple(value.items()))
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{text_of(name)}: {text_of(each)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return json.dumps(value)


def turn(content: object, role: object = "user") -> dict[str, object]:
    return {"role": role, "content": content}


def chat(
    *more: tuple[object, object], messages: object = None, stream: bool = False
) -> tuple[tuple[object, object], ...]:
    """A body for a chat, `more` at its end."""
    base: list[tuple[object, object]] = [
        ("model", "pocket"),
        ("messages", [turn(QUESTION)] if messages is None else messages),
        ("max_tokens", 1),
        ("temperature", 0),
    ]
    given = {name for name, _ in more if isinstance(name, str)}
    kept = [(name, value) for name, value in base if name not in given or name == "messages"]
    return (*kept, *more, *([("stream", True)] if stream else []))


def completion(prompt: object, *more: tuple[object, object]) -> tuple[tuple[object, object], ...]:
    """A body for a completion."""
    return (("model", "pocket"), ("prompt", prompt), ("max_tokens", 1), *more)


def request(
    body: object,
    *,
    path: str = CHAT,
    method: str = "POST",
    key: str | None = SHOP,
    headers: Iterable[tuple[str, str | bytes]] = (),
    content_type: str | None = "application/json",
    closes: bool = True,
    framing: bytes | None = None,
) -> bytes:
    """A request as bytes; `body` is sent as it is where it is bytes; `framing` stands for content-length."""
    data = body if isinstance(body, bytes) else text_of(body).encode("utf-8", "surrogatepass")
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: 127.0.0.1"]
    if key is not None:
        lines.append(b"Authorization: Bearer " + key.encode("latin-1"))
    if content_type is not None:
        lines.append(b"Content-Type: " + content_type.encode("latin-1"))
    for name, value in headers:
        lines.append(
            name.encode("latin-1") + b": " + (value if isinstance(value, bytes) else value.encode("latin-1"))
        )
    lines.append(b"Content-Length: %d" % len(data) if framing is None else framing)
    if closes:
        lines.append(b"Connection: close")
    return b"\r\n".join(line for line in lines if line) + b"\r\n\r\n" + data


def attempt(channel: str, label: str, body: object, *, key: str | None = SHOP, path: str = CHAT) -> Attempt:
    """A plain request as an attempt."""
    return Attempt(channel, label, request(body, key=key, path=path), key)


def all_attempts() -> list[Attempt]:
    """Every attempt, in the same order each time; no two are the same bytes."""
    from tests.gateway import attack_dials, attack_texts, attack_turns, attack_wire

    parts = (attack_dials, attack_texts, attack_turns, attack_wire)
    return list({each.raw: each for part in parts for each in part.attempts()}.values())
