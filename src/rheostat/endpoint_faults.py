"""What can go wrong between a client and a server: what it is, whether it may pass, how long to wait. Pure."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheostat.endpoint import EndpointOptions

_PASSING = {408, 409, 425, 429}
_LASTING = {501, 505}
_NO_QUOTA = "insufficient_quota"
"""OpenAI's code of a 429 that no waiting helps."""

_SHOWN = 300
_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """One attempt that gave no answer; `kind` is its short name, `retry_after` the seconds that the server asks for."""

    kind: str
    message: str
    hint: str
    may_pass: bool
    status: int | None = None
    retry_after: float = 0.0


def backoff(attempt: int, *, first: float, limit: float, share: float) -> float:
    """Seconds before attempt `attempt + 2`: full jitter, `share` in [0, 1) of min(`limit`, `first` · 2^attempt).

    Full jitter rather than equal steps, so that clients which a fault has put in step fall out of it.
    """
    return share * min(limit, first * 2.0 ** min(attempt, _DOUBLINGS))


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that `Retry-After` (seconds, or a date: RFC 9110) or `retry-after-ms` asks for; 0 without one.

    `now` is the time of day, in seconds since the epoch. What cannot be read asks for nothing.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if value is None:
            return 0.0
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - now)
    except ValueError:
        return 0.0


def describe(error: Exception, options: "EndpointOptions") -> Fault:
    """The fault behind what the client raised."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _refusal(error, options)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Fault("time-out", f"no answer within {options.timeout_s:g} s", "raise timeout_s", may_pass=True)
    cause = error.__cause__ or error
    return Fault("no connection", f"no connection: {cause or type(cause).__name__}", "", may_pass=True)


def unreadable(body: str) -> Fault:
    """An answer whose body is no chat completion."""
    words = " ".join(body.split())[:_SHOWN]
    return Fault("unreadable", f"answered what is no chat completion: {words!r}", "check base_url", may_pass=True)


def _refusal(error: Any, options: "EndpointOptions") -> Fault:
    status: int = error.status_code
    may_pass = status in _PASSING or (status >= 500 and status not in _LASTING)
    return Fault(
        str(status),
        f"answered {status}: {_words(error)}",
        _hint(status, options),
        may_pass=may_pass and error.code != _NO_QUOTA,
        status=status,
        retry_after=retry_after(error.response.headers, time.time()),
    )


def _words(error: Any) -> str:
    """The server's own message: OpenAI's shape, FastAPI's `detail`, or the body as it is."""
    body = error.body
    message = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, Mapping) else None
    text = " ".join(str(message or error.response.text).split())
    return text[:_SHOWN] or "(no message)"


def _hint(status: int, options: "EndpointOptions") -> str:
    if status in (401, 403):
        where = options.api_key_env
        return (
            f"check the key in the environment variable {where}"
            if where
            else "if the server wants a key, name the environment variable that holds it in api_key_env"
        )
    if status == 404:
        return "check base_url (most end in /v1) and the model's name: GET base_url/models lists those that are served"
    if status == 429:
        return "the account has no quota left"
    return "the server takes no such request: what each server takes is in docs/engines.md"
