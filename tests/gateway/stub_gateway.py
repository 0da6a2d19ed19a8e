"""A gateway over a stub in a process of its own, to measure what it costs: it prints its port."""

from tests.gateway.served import service_over
from tests.gateway.stub_backend import StubBackend

from rheostat.gateway.app import build_app
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.http_exchange import BodyLimits
from rheostat.gateway.server import build_server, listen, room_for

REQUEST_S = 2.0
CONNECTIONS = 1100


def main() -> None:
    """Serves with short deadlines."""
    service = service_over(StubBackend(), in_work=32, queue=64)
    limits = ConnectionLimits(request_s=REQUEST_S, write_s=REQUEST_S, connections=room_for(CONNECTIONS))
    app = build_app(service, body_limits=BodyLimits(seconds=REQUEST_S))
    with listen("127.0.0.1", 0, only_loopback=True) as opened:
        server = build_server(app, service, limits=limits, drain_s=1)
        opened.listen(1024)
        print(opened.getsockname()[1], flush=True)  # noqa: T201  # how the test learns the port
        server.run([opened])


if __name__ == "__main__":
    main()
