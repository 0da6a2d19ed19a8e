"""What a connection takes for a request's head, and what ends with it, over real sockets."""

import json
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.gateway import attack_wire
from tests.gateway.attacks import POLICY, chat, request
from tests.gateway.live_gateway import GatedBackend, LiveGateway, live_gateway
from tests.gateway.policies import KEY
from tests.gateway.raw_client import answered, connect, read_all, send
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import FORMAT, StubBackend

from rheostat.gateway.backend import ServedModel
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.http_exchange import BodyLimits
from rheostat.gateway.server import room_for

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
AUTHORIZATION = f"Authorization: Bearer {KEY}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def body(**more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Go on."}], **more}).encode()


def whole(data: bytes, headers: bytes = b"") -> bytes:
    return HEAD + headers + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def chunked(trailers: bytes, headers: bytes = b"", *, extension: bytes = b"", size: int = 50) -> bytes:
    data = body()
    parts = [data[place : place + size] for place in range(0, len(data), size)]
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return HEAD + CHUNKED + headers + b"\r\n" + framed + b"0\r\n" + trailers + b"\r\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[LiveGateway]:
    """A gateway with keys."""
    with live_gateway(StubBackend(), tmp_path) as running:
        yield running


@pytest.fixture
def open_house() -> Iterator[Served]:
    """A gateway that asks for no key."""
    with served(service_over(StubBackend())) as running:
        yield running


FILES = Path("/proc/self/fd")
CLOSING = b"Connection: close\r\n"
TRAILERS = {
    "alone": b"X-Rheostat-Safety: 0.25\r\n",
    "behind an empty one": b"X-Empty:\r\nX-Rheostat-Safety: 0.25\r\n",
    "before an empty one": b"X-Rheostat-Safety: 0.25\r\nX-Empty:\r\n",
}


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("name", TRAILERS)
def test_a_dial_in_a_trailer_is_none(open_house: Served, name: str, is_late: bool) -> None:
    raw = chunked(TRAILERS[name], CLOSING)
    place = raw.index(b"0\r\nX-") if is_late else len(raw)
    with connect(open_house.port) as client:
        send(client, raw[:place])
        if is_late:
            time.sleep(0.05)
            send(client, raw[place:])
        answer = read_all(client)
    assert answer.status == 200
    assert b'"requested":0.25' not in answer.data.replace(b" ", b""), answer.data
    header = chunked(b"", CLOSING + TRAILERS["alone"])
    assert b'"requested":0.25' in answered(open_house.port, header).data.replace(b" ", b"")


def test_a_trailer_is_no_header_of_the_next_request(open_house: Served) -> None:
    for trailers in TRAILERS.values():
        answer = answered(open_house.port, chunked(trailers) + whole(body(), CLOSING))
        assert answer.statuses == [200, 200]
        assert b'"requested":0.25' not in answer.data.replace(b" ", b"")


def test_a_key_in_a_trailer_is_none(house: LiveGateway) -> None:
    assert answered(house.server.port, chunked(AUTHORIZATION, CLOSING)).status == 401
    assert answered(house.server.port, chunked(b"", CLOSING + AUTHORIZATION)).status == 200


def test_a_body_in_the_smallest_chunks_is_taken() -> None:
    few = ConnectionLimits(header_bytes=200)
    with (
        served(service_over(StubBackend()), connection_limits=few) as running,
        connect(running.port) as client,
    ):
        raw = chunked(b"A: b\r\n", CLOSING, size=1)
        for place in range(0, len(raw), 100):
            send(client, raw[place : place + 100])
            time.sleep(0.002)
        assert read_all(client).status == 200


def test_no_trailer_of_the_attacks_asks_for_a_dial(tmp_path: Path) -> None:
    """By what the model got, under a policy with floors: a dial that a trailer asked for would be seen above them."""
    backend = StubBackend(models={"pocket": ServedModel("pocket", FORMAT, 1024)})
    attempts = list(attack_wire.trailed_dials())
    with live_gateway(backend, tmp_path, tenants=POLICY.replace("pocket, secret", "pocket")) as running:
        answers = [answered(running.server.port, each.raw) for each in attempts]
        plain = answered(running.server.port, request(chat()))
    assert plain.status == 200 and [each.status for each in answers] == [200] * len(attempts)
    assert len({str(each.control) for each in backend.asks}) == 1 and len(backend.asks) == len(attempts) + 1
    assert all(re.findall(rb'"requested":([^,]+)', each.data) == [b"null"] * 2 for each in answers)


ENDLESS = {
    "many trailers": (b"a: b\r\n" * 10_000, b"0\r\n"),
    "one trailer": (b"x" * 60_000, b"0\r\na: "),
    "one trailer's name": (b"x" * 60_000, b"0\r\n"),
    "a chunk's extension": (b"x" * 60_000, b"1;"),
    "chunks' extensions": ((b"1;" + b"x" * 100 + b"\r\na\r\n") * 600, b""),
}


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_behind_a_head_is_cut(house: LiveGateway, name: str, has_key: bool) -> None:
    """Within a few of the bounds, whether the request has been answered or not."""
    again, first = ENDLESS[name]
    sent = 0
    before = resident_kb()
    with connect(house.server.port) as client:
        send(client, HEAD + CHUNKED + (AUTHORIZATION if has_key else b"") + b"\r\n" + first)
        client.settimeout(0.2)
        while sent < 64 * 2**20 and send(client, again):
            sent += len(again)
        client.settimeout(10)
        answer = read_all(client)
    assert sent < 64 * 2**20, "all was taken"
    assert resident_kb() - before < 40 * 1024
    assert answer.statuses in ([], [431] if has_key else [401]), answer.data[:500]


def test_too_large_trailers_are_refused_in_words(house: LiveGateway) -> None:
    with connect(house.server.port) as client:
        send(client, HEAD + CHUNKED + AUTHORIZATION + b"\r\n0\r\n")
        time.sleep(0.05)
        send(client, b"a: b\r\n" * 6_000)
        answer = read_all(client)
    assert answer.statuses == [431] and answer.is_openais_error, answer.data[:500]


def resident_kb() -> int:
    """Resident memory of this process, in kB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(each for each in status.read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1])


FLOOD = 800


def test_a_flood_of_connections_is_refused_within_few_descriptors() -> None:
    """Ever so many are refused at once; a client that was there before gets its answers all the while."""
    if not FILES.exists():
        pytest.skip("needs /proc")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 4096:
        pytest.skip("needs 4,096 open files")
    few = ConnectionLimits(connections=10)
    with (
        ExitStack() as stack,
        served(service_over(StubBackend()), connection_limits=few) as running,
        connect(running.port) as good,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        assert is_answered(good)
        before = open_files()
        most, clients = 0, []
        for place in range(FLOOD):
            clients.append(stack.enter_context(connect(running.port)))
            most = max(most, open_files() - before - len(clients))
            assert place % 50 or is_answered(good)
        answers = [read_all(each) for each in clients[9:]]
    assert most <= 10 + 100 + 150, most
    assert all(each.statuses == [503] and each.is_openais_error for each in answers)


def test_a_flood_is_given_descriptors_of_its_own() -> None:
    """Where the system allows them, and no connection is promised that has none."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 8192:
        pytest.skip("needs 8,192 open files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        assert room_for(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000 + 4096
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("behind", [[], [True], [True, False], [True, True]])
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_with_requests_behind_ends_its_work(
    streams: bool, behind: list[bool], is_reset: bool
) -> None:
    """The backend's answer is ended and a 499 counted, whether what is behind the request is whole or not."""
    backend = GatedBackend()
    more = b"".join(whole(body())[: None if is_whole else -9] for is_whole in behind)
    with served(service_over(backend)) as running:
        try:
            with connect(running.port) as client:
                send(client, whole(body(stream=streams)))
                backend.await_begun()
                send(client, more)
                time.sleep(0.05)
                if is_reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            running.wait_for(lambda: backend.closed == 1 and not running.service.under_way)
            assert len(backend.asks) == 1
            ended = [line for line in metrics(running.port) if line.startswith("rheostat_requests_total{")]
            assert [line.split()[-1] for line in ended if 'status="499"' in line] == ["1.0"], ended
        finally:
            backend.release()


@pytest.mark.parametrize("cut", [-5, 60])
def test_a_stalled_request_does_not_cut_the_answer_before_it(cut: int) -> None:
    """In its body or in its head: its deadline waits for the answer before it, and then is kept."""
    backend = GatedBackend()
    few = ConnectionLimits(request_s=0.2)
    with (
        served(service_over(backend), connection_limits=few, body_limits=BodyLimits(seconds=0.4)) as running,
        connect(running.port) as client,
    ):
        try:
            send(client, whole(body()))
            backend.await_begun()
            send(client, whole(body())[:cut])
            time.sleep(0.8)
        finally:
            backend.release()
        assert read_all(client).statuses == [200, 408]


def metrics(port: int) -> list[str]:
    """Lines of the metrics."""
    raw = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return answered(port, raw).body.decode().splitlines()


def is_answered(opened: socket.socket) -> bool:
    """Whether a request on an open connection is."""
    opened.sendall(whole(body()))
    found = b""
    while b'"rheostat"' not in found:
        more = opened.recv(2**16)
        if not more:
            return False
        found += more
    return found.startswith(b"HTTP/1.1 200 ")


def open_files() -> int:
    """Open descriptors of this process."""
    return len(list(FILES.iterdir()))
