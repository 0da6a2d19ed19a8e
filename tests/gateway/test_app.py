"""The HTTP API over real sockets: answers, streams, errors, and clients that misbehave."""

import asyncio
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from tests.gateway.policies import KEY
from tests.gateway.raw_client import connect, read_all
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import FORMAT, MODELS, StubBackend

from rheostat.errors import EndpointError, ModelError, PromptTooLong
from rheostat.gateway.app import build_app
from rheostat.gateway.audit import AuditLog
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.http_exchange import BodyLimits
from rheostat.gateway.keys import hash_key
from rheostat.gateway.policy_file import AuditBlock
from rheostat.gateway.policy_source import LocalSource, PolicySource
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.service import Service

CHAT = "/v1/chat/completions"
HELLO = {"model": "stub", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend()


@pytest.fixture
def gateway(backend: StubBackend) -> Iterator[Served]:
    with served(service_over(backend)) as running:
        yield running


@pytest.fixture
def client(gateway: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30, trust_env=False) as open_client:
        yield open_client


@pytest.fixture(scope="module")
def shared_gateway() -> Iterator[Served]:
    """For tests that look at nothing but what comes back."""
    with served(service_over(StubBackend())) as running:
        yield running


@pytest.fixture(scope="module")
def shared_client(shared_gateway: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_gateway.url, timeout=30, trust_env=False) as open_client:
        yield open_client


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return dict(found)


def events_of(text: str) -> list[Any]:
    return [
        event if (event := line.removeprefix("data: ")) == "[DONE]" else json.loads(event)
        for line in text.split("\n\n")
        if line
    ]


def ended(service: Service, status: int) -> float:
    """Chats that have ended with a status, by the metrics."""
    labels = {"route": f"POST {CHAT}", "status": str(status), "tenant": "local"}
    return service.telemetry.registry.get_sample_value("rheostat_requests_total", labels) or 0.0


# Answers


def test_a_chat_is_answered_with_its_dials_echoed(client: httpx.Client, backend: StubBackend) -> None:
    response = client.post(CHAT, json={**HELLO, "safety": 0.3})
    assert response.status_code == 200
    answer = response.json()
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "[helpful=1][harmless=0.25] one two three",
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    assert answer["rheostat"] == {
        "dials": {
            "helpfulness": {"requested": None, "granted": 1.0, "why": "not given: the default"},
            "safety": {"requested": 0.3, "granted": 0.25, "why": "the nearest level"},
        }
    }
    assert response.headers["x-rheostat-dials"] == "helpfulness=1, safety=0.25"
    assert answer["id"] == "chatcmpl-" + response.headers["x-request-id"]
    assert backend.asks[0].control == {"helpfulness": 1.0, "safety": 0.25}


def test_a_stream_says_role_and_dials_first_and_done_last(shared_client: httpx.Client) -> None:
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    with shared_client.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events_of(response.read().decode())
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["rheostat"]["dials"]["safety"]["granted"] == 1.0
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == "[helpful=1][harmless=1] one two three"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "stop"
    ]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 11
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_several_answers_stream_side_by_side(shared_client: httpx.Client) -> None:
    *chunks, _ = events_of(shared_client.post(CHAT, json={**HELLO, "n": 2, "stream": True}).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert (
            "".join(each["delta"].get("content", "") for each in mine)
            == "[helpful=1][harmless=1] one two three"
        )
        assert mine[-1]["finish_reason"] == "stop"


def test_a_completion_is_one_user_turn(client: httpx.Client, backend: StubBackend) -> None:
    body = {"prompt": "hello", "helpfulness": 0}
    whole = client.post("/v1/completions", json=body).json()
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == "[helpful=0][harmless=1] hello"
    *chunks, _ = events_of(client.post("/v1/completions", json={**body, "stream": True}).text)
    assert (
        "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        == whole["choices"][0]["text"]
    )
    assert [turn.role for turn in backend.asks[0].messages] == ["user"]


def test_openais_client_gets_answers_streams_and_errors(shared_gateway: Served) -> None:
    with openai.OpenAI(base_url=f"{shared_gateway.url}/v1", api_key="any", max_retries=0) as asking:
        assert [model.id for model in asking.models.list()] == ["stub"]
        answer = asking.chat.completions.create(**HELLO, extra_body={"safety": 0})  # type: ignore[call-overload]
        assert answer.choices[0].message.content == "[helpful=1][harmless=0] one two three"
        stream = asking.chat.completions.create(**HELLO, stream=True)  # type: ignore[call-overload]
        assert "".join(part.choices[0].delta.content or "" for part in stream).endswith("one two three")
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            asking.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="did you mean 'safety'"):
            asking.chat.completions.create(**HELLO, extra_body={"safty": 0})  # type: ignore[call-overload]


def test_dials_tell_what_the_caller_may_turn(shared_client: httpx.Client) -> None:
    found = shared_client.get("/v1/dials").json()
    assert (found["scores"], found["system_turn"]) == (False, True)
    assert [dial["name"] for dial in found["models"][0]["dials"]] == ["helpfulness", "safety"]
    dial = found["models"][0]["dials"][1]
    assert dial["levels"] == [0, 0.25, 0.5, 0.75, 1]
    assert (dial["floor"], dial["ceiling"], dial["default"]) == (0, 1, 1)
    assert (dial["low"], dial["high"]) == ("unsafe", "safe")


def test_models_are_listed_and_found(shared_client: httpx.Client) -> None:
    assert shared_client.get("/v1/models/stub").json()["id"] == "stub"
    assert error_of(shared_client.get("/v1/models/other"))["code"] == "model_not_found"


def test_docs_load_nothing_from_elsewhere(shared_client: httpx.Client) -> None:
    page = shared_client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text and "https://" not in page.text
    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
    assert shared_client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_every_response_has_its_guarding_headers(shared_client: httpx.Client) -> None:
    for path in ("/", "/health", "/nowhere", "/v1/models", "/metrics"):
        headers = shared_client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'"), path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-request-id"]
        assert "access-control-allow-origin" not in headers


# Refusals


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b"{}", 400, "missing_field"),
        (b'{"prompt": "x", "messages": []}', 400, "unknown_field"),
    ],
)
def test_a_body_that_is_none_is_refused(
    shared_client: httpx.Client, body: bytes, status: int, code: str
) -> None:
    response = shared_client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (status, code)


def test_a_form_is_refused(client: httpx.Client, backend: StubBackend) -> None:
    """A page of any site can send one here, with JSON as its text."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = client.post(CHAT, content=json.dumps(HELLO), headers={"content-type": kind})
        assert (response.status_code, error_of(response)["code"]) == (415, "not_json")
    assert not backend.asks


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8750", "127.0.0.1.evil.example", "", "localhost.evil"]
)
def test_a_host_that_is_not_this_machine_is_refused(shared_client: httpx.Client, host: str) -> None:
    response = shared_client.post(CHAT, json=HELLO, headers={"host": host})
    assert response.status_code in (400, 403)
    assert "error" in response.json()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8750", "127.1.2.3"])
def test_a_loopback_name_is_served(shared_client: httpx.Client, host: str) -> None:
    assert shared_client.get("/v1/models", headers={"host": host}).status_code == 200


def test_addresses_and_methods_that_there_are_not_are_errors_in_openais_shape(
    shared_client: httpx.Client,
) -> None:
    assert error_of(shared_client.get("/v2"))["code"] == "not_found"
    response = shared_client.get(CHAT)
    assert (response.status_code, error_of(response)["code"]) == (405, "wrong_method")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (PromptTooLong("a prompt of 9 tokens", hint="shorten it"), 400, "context_length_exceeded"),
        (
            EndpointError("http://10.0.0.1:8000 said 500", hint="look there", status=500),
            502,
            "upstream_failed",
        ),
        (
            EndpointError("http://10.0.0.1:8000 is slow", hint="look there", status=504),
            504,
            "upstream_timeout",
        ),
        (EndpointError("http://10.0.0.1:8000 is busy", hint="look there", status=429), 503, "upstream_busy"),
        (ModelError("/srv/model is gone", hint="put it back"), 503, "model_unavailable"),
        (Refusal(429, "queue_full", "full", "wait", retry_after_s=1.2), 429, "queue_full"),
    ],
)
def test_what_fails_before_the_first_piece_is_a_status(
    client: httpx.Client, backend: StubBackend, fault: Exception, status: int, code: str
) -> None:
    backend.fails_with = fault
    for streams in (False, True):
        response = client.post(CHAT, json={**HELLO, "stream": streams})
        found = error_of(response)
        assert (response.status_code, found["code"]) == (status, code)
        assert "10.0.0.1" not in found["message"] and "/srv" not in found["message"]
        if status == 429:
            assert response.headers["retry-after"] == "2"


def test_what_fails_in_mid_stream_is_an_error_event_and_the_end(
    client: httpx.Client, backend: StubBackend
) -> None:
    backend.fails_with, backend.fails_after = EndpointError("gone", hint="x"), 2
    *chunks, last = events_of(client.post(CHAT, json={**HELLO, "stream": True}).text)
    assert last["error"]["code"] == "upstream_failed"
    assert len(chunks) == 3
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 502


@pytest.mark.parametrize("fails_after", [0, 2])
def test_a_fault_of_our_own_shows_nothing_of_itself(
    client: httpx.Client, backend: StubBackend, caplog: pytest.LogCaptureFixture, fails_after: int
) -> None:
    backend.fails_with, backend.fails_after = ZeroDivisionError("secret-detail"), fails_after
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    streamed = client.post(CHAT, json={**HELLO, "stream": True})
    assert '"code":"internal_error"' in streamed.text
    assert "secret-detail" not in response.text + streamed.text
    assert "secret-detail" in caplog.text


def test_a_request_that_takes_too_long_gets_504(backend: StubBackend) -> None:
    backend.gate = asyncio.Event()
    with (
        served(service_over(backend, timeout_s=0.1)) as gateway,
        httpx.Client(base_url=gateway.url) as client,
    ):
        assert error_of(client.post(CHAT, json=HELLO))["code"] == "timeout"
        *_, last = events_of(client.post(CHAT, json={**HELLO, "stream": True}).text)
        assert last["error"]["code"] == "timeout"
        assert backend.closed == 2


# Policy


def policy_source(tmp_path: Path, more: str = "") -> PolicySource:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\neveryone: {floors: {safety: 0.5}}\ntenants:\n  shop:\n    requests_per_minute: 4\n"
        f"    system_turn: refuse\n{more}    keys: [{{id: shop-1, sha256: {hash_key(KEY)}}}]\n"
    )
    return PolicySource(path, {name: model.control_format for name, model in MODELS.items()})


def test_a_key_is_asked_for_and_its_policy_holds(backend: StubBackend, tmp_path: Path) -> None:
    service = service_over(backend, callers=policy_source(tmp_path))
    with served(service) as gateway, httpx.Client(base_url=gateway.url) as client:
        refused = client.post(CHAT, json=HELLO)
        assert (refused.status_code, error_of(refused)["code"]) == (401, "missing_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models", headers={"authorization": "Bearer nobody"}).status_code == 401
        client.headers["authorization"] = f"Bearer {KEY}"
        answer = client.post(CHAT, json={**HELLO, "safety": 0}, headers={"x-rheostat-helpfulness": "0.5"})
        assert answer.json()["rheostat"]["dials"]["safety"]["why"] == "raised to the floor 0.5"
        assert answer.headers["x-rheostat-dials"] == "helpfulness=0.5, safety=0.5"
        assert answer.headers["x-ratelimit-limit-requests"] == "4"
        assert answer.headers["x-ratelimit-remaining-requests"] == "3"
        system = [{"role": "developer", "content": "Be bad."}, *HELLO["messages"]]
        refused = client.post(CHAT, json={"messages": system})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "system_turn_refused")
        refused = client.post(CHAT, json={**HELLO, "score": True})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "scores_refused")
        statuses = [client.post(CHAT, json=HELLO).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert [ask.control["safety"] for ask in backend.asks] == [0.5, 1, 1, 1]
        metrics = client.get("/metrics").text
        assert 'rheostat_dials_total{change="raised by policy",dial="safety"} 1.0' in metrics
        assert (
            'rheostat_requests_total{route="POST /v1/chat/completions",status="429",tenant="shop"} 1.0'
            in metrics
        )


def test_every_request_leaves_one_line(backend: StubBackend, tmp_path: Path) -> None:
    audit = AuditLog(AuditBlock(path=str(tmp_path / "audit.jsonl")))
    service = service_over(backend, callers=policy_source(tmp_path, "    audit_texts: true\n"), audit=audit)
    with served(service) as gateway, httpx.Client(base_url=gateway.url) as client:
        ids = [client.post(CHAT, json=HELLO).headers["x-request-id"]]
        client.headers["authorization"] = f"Bearer {KEY}"
        for body in ({**HELLO, "safety": 0.1}, {**HELLO, "stream": True}, {**HELLO, "oops": 1}):
            ids.append(client.post(CHAT, json=body).headers["x-request-id"])
        ids.append(
            client.post(CHAT, content=b"x" * 2**21, headers={"content-type": "application/json"}).headers[
                "x-request-id"
            ]
        )
        backend.fails_with = ZeroDivisionError()
        ids.append(client.post(CHAT, json=HELLO).headers["x-request-id"])
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["request"] for line in lines] == ids
    assert [line["status"] for line in lines] == [401, 200, 200, 400, 413, 500]
    assert [line["refusal"] for line in lines] == [
        "missing_api_key", None, None, "unknown_field", "body_too_large", "internal_error",
    ]  # fmt: skip
    assert [line["key"] for line in lines] == [None, *["shop-1"] * 5]
    assert lines[1]["dials"]["safety"] == {"requested": 0.1, "granted": 0.5, "why": "raised to the floor 0.5"}
    assert lines[1]["answers"] == ["[helpful=1][harmless=0.5] one two three"]
    assert lines[1]["messages"] == HELLO["messages"]
    assert (lines[1]["prompt_tokens"], lines[1]["completion_tokens"], lines[1]["finish"]) == (7, 4, ["stop"])
    assert lines[2]["stream"] and lines[2]["first_token_ms"] > 0


# Clients that misbehave


def head(body: bytes = b"", *, path: str = CHAT, more: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
        % (path.encode(), more, size)
    )


def has_asks(backend: StubBackend, count: int) -> bool:
    return len(backend.asks) == count


def test_a_client_that_goes_ends_its_work(backend: StubBackend, tmp_path: Path) -> None:
    backend.gate = asyncio.Event()
    audit = AuditLog(AuditBlock(path=str(tmp_path / "audit.jsonl")))
    with served(service_over(backend, audit=audit)) as gateway:
        for streams in (True, False):
            body = json.dumps({**HELLO, "stream": streams}).encode()
            with connect(gateway.port) as connection:
                connection.sendall(head(body) + body)
                gateway.wait_for(functools.partial(has_asks, backend, 2 - streams))
                if streams:
                    assert b"three" not in connection.recv(65536)
            gateway.wait_for(lambda: not gateway.service.under_way)
            assert backend.closed == 2 - streams
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["status"], line["refusal"]) for line in lines] == [(499, "client_gone")] * 2


def test_a_client_that_goes_while_it_sends_leaves_its_line(backend: StubBackend, tmp_path: Path) -> None:
    audit = AuditLog(AuditBlock(path=str(tmp_path / "audit.jsonl")))
    with served(service_over(backend, audit=audit)) as gateway:
        with connect(gateway.port) as connection:
            connection.sendall(head(length=100) + b'{"mess')
            gateway.wait_for(lambda: len(gateway.service.under_way) == 1)
        gateway.wait_for(lambda: not gateway.service.under_way)
        gateway.wait_for(lambda: audit.lines == 1)
    audit.close()
    assert not backend.asks


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_without_reading_it_all(
    shared_gateway: Served, chunked: bool
) -> None:
    with connect(shared_gateway.port) as connection:
        if chunked:
            start = head(more=b"transfer-encoding: chunked\r\n").replace(b"content-length: 0\r\n", b"")
            connection.sendall(start)
            for _ in range(10):
                connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
        else:
            connection.sendall(head(length=10 * 2**20) + b" " * 10 * 2**20)
        answer = read_all(connection)
    assert answer.status == 413
    assert b'"code":"body_too_large"' in answer.body


def test_a_body_that_does_not_come_is_408(backend: StubBackend) -> None:
    with (
        served(service_over(backend), body_limits=BodyLimits(seconds=0.1)) as gateway,
        connect(gateway.port) as connection,
    ):
        connection.sendall(head(length=100) + b"{")
        answer = read_all(connection)
    assert answer.status == 408
    assert b'"code":"body_timeout"' in answer.body


def test_headers_that_do_not_come_are_408(backend: StubBackend) -> None:
    limits = ConnectionLimits(request_s=0.1)
    with served(service_over(backend), connection_limits=limits) as gateway:
        with connect(gateway.port) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: ")
            assert read_all(connection).status == 408
        with connect(gateway.port) as connection:
            assert read_all(connection).data == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx : y\r\n\r\n",
    ],
)
def test_what_is_no_sound_http_is_400_and_the_end(shared_gateway: Served, request_bytes: bytes) -> None:
    with connect(shared_gateway.port) as connection:
        connection.sendall(request_bytes)
        answer = read_all(connection)
    assert answer.statuses == [400]


def test_connections_beyond_the_bound_get_503(backend: StubBackend) -> None:
    with served(service_over(backend), connection_limits=ConnectionLimits(connections=20)) as gateway:
        kept = [connect(gateway.port) for _ in range(20)]
        gateway.wait_for(lambda: len(gateway.server.server_state.connections) == 20)
        with connect(gateway.port) as connection:
            answer = read_all(connection)
        assert answer.status == 503 and b"retry-after: 2\r\n" in answer.data
        for each in kept:
            each.close()
        gateway.wait_for(lambda: not gateway.server.server_state.connections)
        assert httpx.get(f"{gateway.url}/health").status_code == 200


def test_four_hundred_clients_at_once_are_answered_or_told_to_come_again(backend: StubBackend) -> None:
    backend.gate = asyncio.Event()
    service = service_over(backend, in_work=8, queue=50)
    body = json.dumps(HELLO).encode()
    with served(service) as gateway:
        clients = [connect(gateway.port) for _ in range(400)]
        for each in clients:
            each.sendall(head(body, more=b"connection: close\r\n") + body)
        gateway.wait_for(lambda: service.admission.working == 8 and service.admission.waiting == 50)
        gateway.wait_for(lambda: ended(service, 429) == 342)
        gateway.loop.call_soon_threadsafe(backend.gate.set)
        statuses = [read_all(each).status for each in clients]
        for each in clients:
            each.close()
    assert (statuses.count(200), statuses.count(429)) == (58, 342)


# The end


def test_draining_finishes_what_is_under_way_and_refuses_what_is_new(backend: StubBackend) -> None:
    backend.gate = asyncio.Event()
    body = json.dumps({**HELLO, "stream": True}).encode()
    with served(service_over(backend), drain_s=30) as gateway, connect(gateway.port) as connection:
        connection.sendall(head(body) + body)
        gateway.wait_for(lambda: len(backend.asks) == 1)
        gateway.stop()
        gateway.wait_for(lambda: gateway.service.admission.is_draining)
        refused = httpx.post(gateway.url + CHAT, json=HELLO)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        health = httpx.get(f"{gateway.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        gateway.loop.call_soon_threadsafe(backend.gate.set)
        assert b"data: [DONE]" in read_all(connection).data
        gateway.thread.join(30)
        assert not gateway.thread.is_alive() and not backend.is_started


def test_what_outlasts_the_draining_is_cut_with_an_error(backend: StubBackend) -> None:
    backend.gate = asyncio.Event()
    body = json.dumps({**HELLO, "stream": True}).encode()
    with served(service_over(backend), drain_s=0.1) as gateway, connect(gateway.port) as connection:
        connection.sendall(head(body) + body)
        gateway.wait_for(lambda: len(backend.asks) == 1)
        gateway.stop()
        answer = read_all(connection).data
    assert b'"code":"shutting_down"' in answer and answer.endswith(b"0\r\n\r\n")
    assert backend.closed == 1


def test_health_says_what_fails(client: httpx.Client, backend: StubBackend) -> None:
    assert client.get("/health").json()["status"] == "ok"
    backend.unwell = EndpointError("http://10.0.0.1 is gone", hint="x")
    response = client.get("/health")
    assert (response.status_code, response.json()["model"]["status"]) == (503, "failing")
    assert "10.0.0.1" not in response.text


def test_health_says_where_the_policy_file_is_not_watched(backend: StubBackend, tmp_path: Path) -> None:
    source = policy_source(tmp_path)
    with served(service_over(backend, callers=source)) as gateway:
        assert httpx.get(f"{gateway.url}/health").json()["policy"]["status"] == "ok"
        asyncio.run_coroutine_threadsafe(source.stop(), gateway.loop).result(10)
        answer = httpx.get(f"{gateway.url}/health")
        assert (answer.status_code, answer.json()["policy"]["status"]) == (200, "failing")


@pytest.mark.parametrize(("on_failure", "status"), [("serve", 200), ("stop", 503)])
def test_health_fails_for_the_audit_log_where_that_stops_service_and_as_long(
    backend: StubBackend, tmp_path: Path, on_failure: Literal["serve", "stop"], status: int
) -> None:
    """No request comes after the fault, as behind a balancer that heeds the 503: the health of later is its own."""
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    log = AuditLog(AuditBlock(path=str(path), on_failure=on_failure))
    with served(service_over(backend, audit=log)) as gateway, httpx.Client(base_url=gateway.url) as client:
        assert client.post(CHAT, json=HELLO).status_code == status
        for _ in range(2):
            response = client.get("/health")
            assert (response.status_code, response.json()["audit"]["status"]) == (status, "failing")
        path.unlink()
        path.touch()
        response = client.get("/health")
        assert (response.status_code, response.json()["audit"]["status"]) == (200, "ok")
    log.close()
    assert json.loads(path.read_text())["lost"] == 1


def test_only_the_callers_own_models_are_his(backend: StubBackend, tmp_path: Path) -> None:
    backend.models = {**MODELS, "other": replace(MODELS["stub"], name="other")}
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"version: 1\ntenants: {{shop: {{models: [other], keys: [{{id: a, sha256: {hash_key(KEY)}}}]}}}}\n"
    )
    source = PolicySource(path, {"stub": FORMAT, "other": FORMAT})
    service, headers = service_over(backend, callers=source), {"authorization": f"Bearer {KEY}"}
    with served(service) as gateway, httpx.Client(base_url=gateway.url, headers=headers) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["other"]
        assert client.post(CHAT, json=HELLO).status_code == 404
        assert client.post(CHAT, json={"messages": HELLO["messages"]}).json()["model"] == "other"


def test_a_key_of_this_process_opens_alone(backend: StubBackend) -> None:
    source = LocalSource({"stub": FORMAT}, key=KEY)
    with served(service_over(backend, callers=source)) as gateway:
        assert httpx.get(f"{gateway.url}/v1/dials").status_code == 401
        assert (
            httpx.get(f"{gateway.url}/v1/dials", headers={"authorization": f"bearer {KEY}"}).status_code
            == 200
        )
        assert httpx.get(f"{gateway.url}/").status_code == 200


def test_an_origin_that_is_allowed_may_ask_and_no_other(backend: StubBackend) -> None:
    service = service_over(backend)
    app = build_app(service, allow_origins=["https://example.org"])
    with served(service, app=app) as gateway, httpx.Client(base_url=gateway.url) as client:
        for origin, is_allowed in (("https://example.org", True), ("https://evil.example", False)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            preflight = client.options(CHAT, headers=headers)
            answer = client.post(CHAT, json=HELLO, headers={"origin": origin})
            assert answer.status_code == 200
            for response in (preflight, answer):
                assert (response.headers.get("access-control-allow-origin") == origin) == is_allowed
