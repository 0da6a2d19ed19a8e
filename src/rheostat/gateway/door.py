"""What every request and response passes: a request's id, headers against a browser's mischief, the Host check.

Pure ASGI, around the whole application.
"""

import ipaddress
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from rheostat.gateway.http_exchange import HeaderList, Receive, Scope, Send
from rheostat.gateway.refusals import Refusal

_POLICY = (
    b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
_ALWAYS: HeaderList = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
"""On every response that does not bring its own."""


@dataclass(frozen=True, slots=True)
class Door:
    """Wraps the application; with `only_loopback_names` a request's Host must name this machine.

    That check keeps a web page out whose own name was made to point here (DNS rebinding), where no policy asks for keys.
    """

    app: Any
    only_loopback_names: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(12)

        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                given = {name.lower() for name, _ in headers}
                own = [each for each in _ALWAYS if each[0] not in given]
                message["headers"] = [*headers, *own, (b"x-request-id", state["request_id"].encode())]
            await send(message)

        if self.only_loopback_names and not is_loopback_name(host_of(scope["headers"])):
            await send_refusal(
                send_on,
                Refusal(
                    403,
                    "wrong_host",
                    "got a Host that does not name this machine, allowed are localhost and loopback addresses",
                    "use http://127.0.0.1, or a policy file with keys to serve others",
                ),
            )
            return
        await self.app(scope, receive, send_on)


async def send_refusal(send: Send, refusal: Refusal) -> None:
    """An error as a whole response."""
    body = to_json(refusal.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
