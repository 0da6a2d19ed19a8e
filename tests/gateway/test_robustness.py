"""What slow, rude, broken and numerous clients do to a gateway over real sockets: nothing that a good one notices."""

import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.gateway.attacks import CHAT, chat, request, text_of, turn
from tests.gateway.raw_client import Answered, answered, connect, read_all, send

ROOT = Path(__file__).parents[2]
GOOD = request(chat(("model", "stub")), key=None)
TE = b"Transfer-Encoding: chunked"
LARGEST_GROWTH_KB = 150 * 1024


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.gateway.stub_gateway"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as started:
        try:
            assert started.stdout is not None
            yield started, int(started.stdout.readline())
        finally:
            started.kill()


@pytest.fixture
def port(process: tuple[subprocess.Popen[bytes], int]) -> Iterator[int]:
    """The gateway's port; after the test a good client is answered as ever, and nothing is left in work."""
    started, found = process
    yield found
    assert started.poll() is None, "the gateway has died"
    assert answered(found, GOOD).status == 200
    assert is_soon(lambda: working(found) == 0), "work is left"


def is_soon(is_so: Callable[[], bool]) -> bool:
    """Whether something is so within half a minute; looks twenty times a second."""
    deadline = time.monotonic() + 30
    while not (found := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def got(port: int, path: str) -> bytes:
    """The body at an address."""
    return answered(
        port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    ).body


def working(port: int) -> int:
    """How many requests are in work."""
    return int(json.loads(got(port, "/health"))["in_work"])


def gone(port: int) -> float:
    """How many clients have gone before their answer was whole, so far."""
    lines = [line for line in got(port, "/metrics").decode().splitlines() if 'status="499"' in line]
    return sum(float(line.split()[-1]) for line in lines if "_total{" in line)


def is_refusal(answer: Answered) -> bool:
    """One 4xx in OpenAI's shape."""
    return len(answer.statuses) == 1 and 400 <= answer.statuses[0] < 500 and answer.is_openais_error


def json_request(body: bytes) -> bytes:
    return request(body, key=None)


MALFORMED = {
    "nothing": b"",
    "white space": b" \r\n" * 1000,
    "an open brace": b"{",
    "a deep list": b"[" * 10_000 + b"]" * 10_000,
    "a deep open list": b"[" * 100_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "deep turns": b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deep content": b'{"messages":[{"role":"user","content":'
    + b'[{"type":' * 5_000
    + b"1"
    + b"}]" * 5_000
    + b"}]}",
    "invalid UTF-8": b'{"messages": "\xff\xfe\xfd"}',
    "cut UTF-8": b'{"messages": "\xe2\x82',
    "NUL": b"\x00" * 1000,
    "a NUL in a text": b'{"mess\x00ages": 1}',
    "a huge number": b'{"messages": ' + b"9" * 500_000 + b"}",
    "a huge fraction": b'{"safety": 0.' + b"9" * 500_000 + b', "messages": []}',
    "a huge exponent": b'{"safety": 1e' + b"9" * 5_000 + b"}",
    "a huge seed": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 4_000 + b"}",
    "many keys": b"{" + b",".join(b'"k%d":0' % each for each in range(50_000)) + b"}",
    "many turns": b'{"messages":[' + b",".join([b'{"role":"x","content":""}'] * 30_000) + b"]}",
    "a key of 500 KB": b'{"' + b"k" * 500_000 + b'": 0}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a bare word": b"safety",
    "random bytes": bytes(range(256)) * 100,
    "XML": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>",
    "YAML": b"messages: &a [*a]",
    "two values": b"{} {}",
    "a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_a_400(port: int, name: str) -> None:
    answer = answered(port, json_request(MALFORMED[name]))
    assert answer.status == 400 and is_refusal(answer), answer.data[:500]
    assert len(answer.data) < 2_000, "what was sent comes back as a line at the most"


def test_bodies_of_ten_megabytes_are_a_413(port: int, process: tuple[subprocess.Popen[bytes], int]) -> None:
    """Announced or in chunks, eight at once: refused with words, and kept nowhere."""
    body = b'{"messages": "' + b"x" * 10 * 2**20 + b'"}'
    chunked = b"".join(b"10000\r\n" + b"x" * 65536 + b"\r\n" for _ in range(160)) + b"0\r\n\r\n"
    announced = json_request(body)
    in_chunks = request(chunked, key=None, framing=TE)
    before = resident_kb(process[0])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: answered(port, data), [announced, in_chunks] * 4))
    assert [each.status for each in answers] == [413] * 8, [each.data[:200] for each in answers]
    assert all(map(is_refusal, answers))
    assert resident_kb(process[0]) - before < LARGEST_GROWTH_KB


def test_a_body_in_chunks_without_end_is_cut_off(port: int) -> None:
    with connect(port) as opened:
        send(opened, request(b"", key=None, framing=TE))
        sent = 0
        while send(opened, b"10000\r\n" + b"x" * 65536 + b"\r\n"):
            sent += 65536
            assert sent < 2**30, "a gigabyte was taken"
            if select.select([opened], [], [], 0)[0]:
                break
        assert read_all(opened).status in (413, None)


def test_slow_clients_are_sent_away_and_good_ones_answered_meanwhile(port: int) -> None:
    """Two hundred begin a request and send a byte now and then: each gets its 408 in time all the same."""
    heads = [
        GOOD[:30],
        b"P",
        request(b"", key=None, framing=TE),
        request(b"", key=None, framing=b"Content-Length: 500"),
    ]
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(200)]
        for place, opened in enumerate(slow):
            send(opened, heads[place % len(heads)])
        waiting = set(slow)
        ends = 0
        while waiting:
            assert answered(port, GOOD).status == 200
            ready, _, _ = select.select(list(waiting), [], [], 0.2)
            for opened in ready:
                answer = read_all(opened)
                assert answer.status in (408, 400) and is_refusal(answer), answer.data[:200]
                waiting.discard(opened)
                ends += 1
            for opened in list(waiting)[::7]:
                send(opened, b"1" if opened.fileno() % 2 else b"a")
        assert ends == 200


def test_a_thousand_connections_cost_little_and_leave_room(
    port: int, process: tuple[subprocess.Popen[bytes], int]
) -> None:
    """Most say nothing at all; fifty of them ask, among the others, and are answered; the silent ones are let go."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most[1] != resource.RLIM_INFINITY and most[1] < 2048:
        pytest.skip("needs 2,048 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most[0], 2048), most[1]))
    before = resident_kb(process[0])
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, most)
        opened = [stack.enter_context(connect(port)) for _ in range(1000)]
        asking = opened[::20]
        for each in asking:
            send(each, GOOD)
        statuses = [read_all(each).status for each in asking]
        assert set(statuses) <= {200, 429} and statuses.count(200) >= 30, statuses
        growth = resident_kb(process[0]) - before
        silent = [each for each in opened if each not in set(asking)]
        assert all(read_all(each).statuses in ([], [408]) for each in silent)
    assert growth < LARGEST_GROWTH_KB, f"{growth} kB"


def test_more_connections_than_allowed_are_refused_with_words(port: int) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most[1] != resource.RLIM_INFINITY and most[1] < 2048:
        pytest.skip("needs 2,048 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most[0], 2048), most[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, most)
        opened = [stack.enter_context(connect(port)) for _ in range(1200)]
        answers = [read_all(each) for each in opened]
    refused = [each for each in answers if each.data]
    assert 503 in {each.status for each in refused} <= {503, 408}, {each.status for each in refused}
    assert all(each.is_openais_error for each in refused)


def test_streams_that_nobody_reads_end(port: int) -> None:
    """Sixteen answers of a megabyte to each of four clients, unread: the gateway gives them up, and its work ends."""
    words = " ".join(["x" * 900] * 1000)
    more = (("model", "stub"), ("n", 16), ("max_tokens", 1000))
    raw = request(chat(*more, messages=[turn(words)], stream=True), key=None)
    before = gone(port)
    with ExitStack() as stack:
        for _ in range(4):
            opened = stack.enter_context(connect(port))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            send(opened, raw)
        assert is_soon(lambda: gone(port) == before + 4)
        assert working(port) == 0


@pytest.mark.parametrize(
    ("half", "statuses"),
    [(GOOD, [200]), (GOOD[:-20], []), (GOOD[:40], []), (b"", [])],
    ids=["whole", "cut body", "cut head", "nothing"],
)
def test_a_client_that_closes_its_side_is_answered_if_it_has_asked_and_else_let_go(
    port: int, half: bytes, statuses: list[int]
) -> None:
    with connect(port) as opened:
        send(opened, half)
        opened.shutdown(socket.SHUT_WR)
        assert read_all(opened).statuses == statuses


def test_clients_that_break_off_leave_no_work(port: int) -> None:
    """A hundred reset their connection, in the middle of a request or of an answer, in no order."""
    words = " ".join(["x" * 900] * 1000)
    more = (("model", "stub"), ("n", 4), ("max_tokens", 1000))
    long = request(chat(*more, messages=[turn(words)], stream=True), key=None)
    for place in range(100):
        with connect(port) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if place % 10 == 0:
                send(opened, long)
                opened.recv(1000)
            else:
                send(opened, GOOD[: place * 5])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "x"])
def test_a_compressed_body_is_refused_in_words(port: int, coding: str) -> None:
    """Decompressing would let a body of a kilobyte become one of a gigabyte."""
    answer = answered(port, request(chat(), key=None, headers=[("Content-Encoding", coding)]))
    assert answer.status == 415 and b"encoded_body" in answer.body, answer.data[:300]


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    bodies = [
        chat(("model", "stub"), ("max_tokens", 50), messages=[turn(f"number {each}")]) for each in range(50)
    ]
    raw = b"".join(request(each, key=None, closes=place == 49) for place, each in enumerate(bodies))
    answer = answered(port, raw)
    assert answer.statuses == [200] * 50
    places = [answer.data.find(b'number %d"' % each) for each in range(50)]
    assert -1 not in places and places == sorted(places)


GARBAGE = {
    "HTTP/0.9": b"GET /\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50),
    "bytes": bytes(range(256)) * 300,
    "a NUL": b"\x00",
    "line ends": b"\r\n" * 1000 + b"x y z\r\n\r\n",
    "no version": b"POST /v1/chat/completions\r\n\r\n",
    "a bare header": b"Host: x\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "a huge method": b"X" * 100_000,
    "a SOCKS greeting": b"\x05\x01\x00",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_http_is_refused_or_let_go(port: int, name: str) -> None:
    answer = answered(port, GARBAGE[name])
    assert not answer.data or is_refusal(answer), answer.data[:300]


def _with_headers(*lines: bytes) -> bytes:
    return GOOD.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n", 1)


LARGE_HEADS = {
    "10,000 headers": _with_headers(*[b"X-%d: y" % each for each in range(10_000)]),
    "10,000 dials": _with_headers(*[b"X-Rheostat-%d: 0" % each for each in range(10_000)]),
    "60 headers of a kilobyte, and no end": _with_headers(
        *[b"X-%d: " % each + b"y" * 1000 for each in range(60)]
    ).partition(b"\r\n\r\n")[0],
    "a header of a megabyte": _with_headers(b"X: " + b"y" * 2**20),
    "a name of a megabyte": _with_headers(b"y" * 2**20 + b": x"),
    "a key of 100 KB": _with_headers(b"Authorization: Bearer " + b"k" * 100_000),
    "an address of 100 KB": request(chat(), key=None, path=CHAT + "?" + "q" * 100_000),
    "an address of many parts": request(chat(), key=None, path="/a" * 50_000),
}


@pytest.mark.parametrize("name", LARGE_HEADS)
def test_a_large_head_is_a_431(port: int, name: str) -> None:
    answer = answered(port, LARGE_HEADS[name])
    assert answer.status == 431 and is_refusal(answer), answer.data[:300]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "BREW"])
def test_a_body_with_another_method_is_refused(port: int, method: str) -> None:
    answer = answered(port, GOOD.replace(b"POST", method.encode(), 1))
    assert is_refusal(answer), answer.data[:300]


def test_a_get_with_a_body_is_answered(port: int) -> None:
    raw = request(text_of(chat()).encode(), key=None, method="GET", path="/v1/models")
    assert answered(port, raw).status == 200


def resident_kb(process: subprocess.Popen[bytes]) -> int:
    """Resident memory of a process, in kB."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(each for each in status.read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1])
