"""What the gateway says no with: one exception, and its body as OpenAI's API has it. Pure."""

from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not answered: HTTP `status`, a stable `code`, what is wrong, and what to do about it.

    `param` names the field at fault; `retry_after_s` is sent as `Retry-After` where asking again may help.
    """

    status: int
    code: str
    message: str
    hint: str
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def type(self) -> str:
        """OpenAI's kind of error, by status: its clients choose their exception by the status alone."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`, the hint at the end of the message."""
        return {
            "error": {
                "message": f"{self.message} (hint: {self.hint})",
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go with it; seconds to wait are rounded up, to one at least."""
        headers = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, ceil(self.retry_after_s))))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.status == 504:  # OpenAI's clients would ask, and wait, twice more
            headers.append((b"x-should-retry", b"false"))
        return headers

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"
