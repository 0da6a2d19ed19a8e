"""A client that leaves its answer unread is cut off, and nothing is held for it, in the system's buffers neither."""

import json
import socket
from collections.abc import AsyncGenerator

import pytest
from tests.gateway.served import served, service_over
from tests.gateway.stub_backend import StubBackend

from rheostat.gateway.backend import Ask, Piece, Usage
from rheostat.gateway.connection import ConnectionLimits

MEGABYTES = 16
BODY = json.dumps({"stream": True, "messages": [{"role": "user", "content": "Go on."}]}).encode()


class LongBackend(StubBackend):
    """Answers with more than the system's buffers take."""

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Usage, None]:
        try:
            for _ in range(MEGABYTES):
                yield Piece(0, "x" * 2**20)
            yield Piece(0, "", "stop")
            yield Usage(1, 1)
        finally:
            self.closed += 1


def test_an_unread_answer_ends_in_a_reset() -> None:
    """An orderly end would have the client read on what the system still holds for it."""
    backend = LongBackend()
    with (
        served(service_over(backend), connection_limits=ConnectionLimits(write_s=0.1)) as running,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", running.port))
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )
        assert client.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"
        running.wait_for(lambda: not running.service.under_way)
        with pytest.raises(ConnectionResetError):
            while client.recv(2**20):
                pass
        assert backend.closed == 1
        labels = {"route": "POST /v1/chat/completions", "status": "499", "tenant": "local"}
        metrics = running.service.telemetry.registry
        assert metrics.get_sample_value("rheostat_requests_total", labels) == 1
