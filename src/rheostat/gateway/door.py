"""What every request and response passes: an id, the Host check, headers against a browser's mischief, a count.

Pure ASGI, around the whole application.
"""

import ipaddress
import secrets
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from rheostat.gateway.api_document import CLOSED
from rheostat.gateway.http_exchange import HeaderList, Receive, Scope, Send, Sender
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.telemetry import NOBODY, Telemetry

OTHER = "other"
"""The route of requests to addresses that there are not."""

_ALWAYS: HeaderList = [
    (b"content-security-policy", f"default-src 'self'; {CLOSED}".encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
"""On every response that does not bring its own."""


@dataclass(frozen=True, slots=True)
class Door:
    """Wraps the application; with `only_loopback_names` a request's Host must name this machine.

    That check keeps out a web page whose own name was made to point here (DNS rebinding), where no policy has keys.
    """

    app: Any
    telemetry: Telemetry
    only_loopback_names: bool
    direct: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """Applications by method and path that go round the framework, which is a third of a short request's cost."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(12)
        status, came = 500, monotonic()

        async def send_on(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
                given = {name.lower() for name, _ in headers}
                own = [each for each in _ALWAYS if each[0] not in given]
                message["headers"] = [*headers, *own, (b"x-request-id", state["request_id"].encode())]
            await send(message)

        try:
            if self.only_loopback_names and not is_loopback_name(host_of(scope["headers"])):
                await Sender(send_on).refusal(_wrong_host(), receive)
            else:
                app = self.direct.get((scope["method"], scope["path"]), self.app)
                await app(scope, receive, send_on)
        finally:
            if not state.get("is_counted"):
                self.telemetry.ended(
                    _route(scope, status), status, state.get("tenant", NOBODY), monotonic() - came
                )


def _route(scope: Scope, status: int) -> str:
    """The method and the template of the route: nothing that a caller can make up."""
    path = getattr(scope.get("route"), "path", None)
    return OTHER if path is None or status == 405 else f"{scope['method']} {path}"


def _wrong_host() -> Refusal:
    return Refusal(
        403,
        "wrong_host",
        "got a Host that does not name this machine, allowed are localhost and loopback addresses",
        "use http://127.0.0.1, or a policy file with keys to serve others",
    )


def host_of(headers: HeaderList) -> str:
    """The Host of a request, without its port; empty where there is none or more than one."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return ""
    host = hosts[0].decode("latin-1").strip()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def is_loopback_name(host: str) -> bool:
    """Whether a name or address can only be this machine."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
