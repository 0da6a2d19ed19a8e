"""The server: uvicorn within bounds, which drains before it ends."""

import asyncio
import gc
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from rheostat.errors import InputError
from rheostat.gateway.connection import ConnectionLimits, bounded
from rheostat.gateway.door import is_loopback_name
from rheostat.gateway.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OTHER_FILES = 640
"""File descriptors for what is no client: the servers behind, logs, models."""
_REFUSED_FILES = 4096
"""More of them, where they may be had, for a flood of connections that have been taken and not yet been refused."""


class GatewayServer(uvicorn.Server):
    """Serves until it is told to end (SIGTERM, SIGINT), lets requests under way finish, and returns.

    While they do, it goes on listening and refuses new ones, so that a balancer sees it; a second signal cuts them.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_s: float, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._service = service
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start what answers, and then serve. Raises `ModelError`, and `InputError` where the port is taken."""
        await self._service.start()
        try:
            await super().startup(sockets)
        except OSError as error:  # of two that have bound the port, the second learns of it when it listens
            await self._service.stop()
            raise InputError(
                f"cannot listen: {error.strerror or error}", hint="choose another --port"
            ) from None
        # What was loaded stays: to look through it again and again would stop all requests for a third of a second.
        gc.collect()
        gc.freeze()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, and then end."""
        drain = asyncio.ensure_future(self._service.drain(self._drain_s))
        while not drain.done():
            await asyncio.wait({drain}, timeout=0.1)
            if self.force_exit:
                self._service.cut_all()
        await super().shutdown(sockets)
        await self._service.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the serving and nothing else: they are not raised again afterwards, so the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in _SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the draining, another one cuts it short."""
        self.force_exit = self.should_exit
        self.should_exit = True


def build_server(
    app: Any,
    service: Service,
    *,
    limits: ConnectionLimits | None = None,
    drain_s: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
) -> GatewayServer:
    """The server of an application; it is run with sockets that `listen` made, and says when it serves."""
    config = uvicorn.Config(
        app,
        http=bounded(limits or ConnectionLimits()),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        backlog=512,
    )
    return GatewayServer(config, service, drain_s, on_ready)


def room_for(connections: int) -> int:
    """How many connections, at most `connections`, there are file descriptors for; this process' limit is raised."""
    wanted = connections + _OTHER_FILES + _REFUSED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - _OTHER_FILES))


def listen(host: str, port: int, *, only_loopback: bool) -> socket.socket:
    """A listening socket. Raises `InputError` for an address that may not be had, or that another process has."""
    if only_loopback and not is_loopback_name(host):
        raise InputError(
            f"--host: got {host}, allowed without --policy is a loopback address",
            hint="give --policy FILE with keys, or leave --host out",
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from None
    if only_loopback and not is_loopback_name(str(opened.getsockname()[0])):
        opened.close()
        raise InputError(f"--host: got {host}, which is no loopback address", hint="leave --host out")
    opened.setblocking(False)
    return opened
