"""A gateway over a stub backend, served on a free loopback port by a thread of this process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rheostat.gateway.admission import Admission
from rheostat.gateway.app import build_app
from rheostat.gateway.backend import Backend
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.http_exchange import BodyLimits
from rheostat.gateway.limits import RateLimits
from rheostat.gateway.policy_source import CallerSource, LocalSource
from rheostat.gateway.server import GatewayServer, build_server, listen
from rheostat.gateway.service import Audit, Guard, Service
from rheostat.gateway.telemetry import Telemetry


def service_over(
    backend: Backend,
    *,
    callers: CallerSource | None = None,
    audit: Audit | None = None,
    guard: Guard | None = None,
    in_work: int = 64,
    queue: int = 256,
    timeout_s: float = 60.0,
) -> Service:
    """A service over a stub; without `callers` everyone is the local tenant and no key is needed."""
    formats = {name: model.control_format for name, model in backend.models.items()}
    return Service(
        backend=backend,
        callers=callers or LocalSource(formats, key=None),
        limits=RateLimits(),
        admission=Admission(in_work=in_work, queue=queue),
        telemetry=Telemetry(),
        audit=audit,
        guard=guard,
        timeout_s=timeout_s,
    )


@dataclass(frozen=True)
class Served:
    """A gateway that serves."""

    port: int
    service: Service
    server: GatewayServer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, work: Any) -> Any:
        """The result of a coroutine, run in the gateway's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Returns when something of the gateway is so; asserts that it is within half a minute."""

        async def look() -> None:
            async with asyncio.timeout(30):
                while not is_so():
                    await asyncio.sleep(0.005)

        self.run(look())

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.handle_exit(15, None)


@contextmanager
def served(
    service: Service,
    *,
    connection_limits: ConnectionLimits | None = None,
    body_limits: BodyLimits | None = None,
    drain_s: float = 5.0,
    app: Any = None,
) -> Iterator[Served]:
    """Serves until the block ends."""
    opened = listen("127.0.0.1", 0, only_loopback=True)
    application = build_app(service, body_limits=body_limits) if app is None else app
    server = build_server(application, service, limits=connection_limits, drain_s=drain_s)
    loops: list[asyncio.AbstractEventLoop] = []
    is_up = threading.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.ensure_future(server.serve([opened]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        is_up.set()
        await task

    factory = server.config.get_loop_factory()

    def work() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve())

    port = opened.getsockname()[1]
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert is_up.wait(30), "the gateway did not come up"
    try:
        yield Served(port, service, server, loops[0], thread)
    finally:
        server.handle_exit(15, None)
        thread.join(30)
        opened.close()
        assert not thread.is_alive(), "the gateway did not stop"
