"""The endpoint against a real server that fails on purpose: asked again, bounded, in order, or given up clearly."""

import asyncio
import logging
import random
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.openai_double import HANG, Body, Reply, refuses, says, serving

from rheostat.endpoint import Answer, ChatRequest, Endpoint, EndpointOptions, merged
from rheostat.endpoint_faults import backoff, retry_after
from rheostat.errors import EndpointError

QUICK: dict[str, Any] = {"timeout_s": 5.0, "patience_s": 10.0, "backoff_s": 0.01, "backoff_limit_s": 0.05}


def options(url: str, **changes: Any) -> EndpointOptions:
    return EndpointOptions(base_url=url, model="m", **{**QUICK, **changes})


def ask(text: str, **more: Any) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": text}], 0.5, **more)


def content(body: Body) -> str:
    text: str = body["messages"][0]["content"]
    return text


def texts(answers: list[Answer]) -> list[str]:
    return [answer.choices[0].text for answer in answers]


def echo(body: Body, _: int) -> Reply:
    return says(f"<{content(body)}>")


PASSING = {
    "429 with Retry-After": refuses(429, retry_after="0.2"),
    "429 without": refuses(429),
    "500": refuses(500),
    "503 without JSON": Reply(b"<html>busy</html>", 503),
    "408": refuses(408),
    "a body cut off": Reply({"choices": [], "filler": "x" * 1000}, cut=True),
    "garbage": Reply(b'{"choices": [{"mess'),
    "not JSON at all": Reply(b"It works!", headers={"Content-Type": "text/html"}),
    "an error that says 200": Reply({"error": {"message": "provider down"}}),
    "no choices": Reply({"choices": []}),
    "a hang": Reply({}, wait_s=HANG),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_asked_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each request meets the fault once and is then answered; the log counts what happened."""
    with serving(lambda body, before: PASSING[name] if before == 0 else echo(body, before)) as server:
        endpoint = Endpoint(options(server.url, timeout_s=0.5 if name == "a hang" else 5.0))
        with caplog.at_level(logging.WARNING):
            assert texts(endpoint.chat([ask("a"), ask("b")])) == ["<a>", "<b>"]
    assert sorted(map(content, server.bodies())) == ["a", "a", "b", "b"]
    assert "2 requests answered, after faults: " in caplog.messages[-1]
    assert caplog.messages[-1].endswith("× 2")


def test_retry_after_is_waited_for() -> None:
    with serving(lambda body, before: refuses(429, retry_after="0.3") if before == 0 else echo(body, 0)) as server:
        Endpoint(options(server.url)).chat([ask("a")])
    first, second = (each.at for each in server.received)
    assert second - first >= 0.3


LASTING = {
    400: "this model's maximum context length is 96 tokens",
    401: "wrong key sk-secret",
    403: "not yours",
    404: "no model m",
    422: "n is not supported",
    501: "not here",
}


@pytest.mark.parametrize("status", LASTING)
def test_a_refusal_is_told_at_once_in_the_servers_words(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt; the key is not shown even where the server repeats it."""
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    with serving(lambda body, _: refuses(status, LASTING[status])) as server, pytest.raises(EndpointError) as caught:
        Endpoint(options(server.url, api_key_env="SOME_KEY", concurrency=1)).chat([ask("a"), ask("b")])
    assert len(server.received) == 1
    assert server.received[0].headers["authorization"] == "Bearer sk-secret"
    assert caught.value.status == status
    assert f"{server.url} (model m): answered {status}: " in caught.value.message
    assert LASTING[status].replace("sk-secret", "***") in caught.value.message
    assert "sk-secret" not in str(caught.value)
    expected = {401: "SOME_KEY", 403: "SOME_KEY", 404: "base_url"}.get(status, "docs/engines.md")
    assert expected in caught.value.hint


def test_an_empty_account_is_not_waited_for() -> None:
    reply = Reply({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429)
    with serving(lambda *_: reply) as server, pytest.raises(EndpointError, match="exceeded your quota"):
        Endpoint(options(server.url)).chat([ask("a")])
    assert len(server.received) == 1


def test_details_in_fastapis_shape_are_told() -> None:
    refused = pytest.raises(EndpointError, match="answered 422: .*field n")
    with serving(lambda *_: Reply({"detail": [{"msg": "field n"}]}, 422)) as server, refused:
        Endpoint(options(server.url)).chat([ask("a")])


def test_patience_ends() -> None:
    with serving(lambda *_: refuses(503, "loading")) as server:
        with pytest.raises(EndpointError, match=r"503: loading; given up after \d+ attempts in \d+ s") as caught:
            Endpoint(options(server.url, patience_s=0.2)).chat([ask("a")])
        attempts = len(server.received)
        with pytest.raises(EndpointError, match="given up after 1 attempts"):
            Endpoint(options(server.url, patience_s=0)).chat([ask("a")])
    assert attempts >= 3
    assert "finished shards are kept" in caught.value.hint


def test_a_wait_beyond_the_patience_is_not_begun() -> None:
    refused = pytest.raises(EndpointError, match="tomorrow; given up after 1 attempts")
    with serving(lambda *_: refuses(429, "tomorrow", retry_after="86400")) as server, refused:
        Endpoint(options(server.url)).chat([ask("a")])


def test_nobody_there_is_told_with_the_address() -> None:
    with serving(echo) as server:
        server.die()
        with pytest.raises(EndpointError, match=f"{server.url}.*no connection: .*given up"):
            Endpoint(options(server.url, patience_s=0.05)).chat([ask("a")])


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_never_more_than_so_many_at_a_time_and_in_order(concurrency: int) -> None:
    """24 requests whose answers overtake each other, some of them after a fault; the server counts them.

    The first so many are answered only once they are all there.
    """
    draw = random.Random(0)
    waits = {str(number): draw.uniform(0.002, 0.01) for number in range(24)}
    together = threading.Barrier(concurrency, timeout=10)

    def behaviour(body: Body, before: int) -> Reply:
        if int(content(body)) < concurrency and before == 0:
            together.wait()
        if before == 0 and int(content(body)) % 7 == 0:
            return refuses(500)
        return Reply(echo(body, before).body, wait_s=waits[content(body)])

    told: list[int] = []
    with serving(behaviour) as server:
        answers = Endpoint(options(server.url, concurrency=concurrency)).chat(
            [ask(text) for text in waits], progress=told.append
        )
    assert texts(answers) == [f"<{text}>" for text in waits]
    assert server.peak == concurrency
    assert sum(told) == 24


def test_a_server_that_dies_and_comes_back_is_waited_for() -> None:
    """Cut off after 10 of 30 answers and back on the same port: what was answered is not asked again."""
    answered: list[str] = []
    enough = threading.Event()

    def behaviour(body: Body, before: int) -> Reply:
        if len(answered) >= 10 and not enough.is_set():
            enough.set()
        if enough.is_set() and not back.is_set():
            return Reply({}, wait_s=HANG)
        answered.append(content(body))
        return echo(body, before)

    back = threading.Event()
    with serving(behaviour) as server:

        def restart() -> None:
            enough.wait(10)
            time.sleep(0.1)  # what was answered has reached the client
            server.die()
            time.sleep(0.1)
            back.set()
            server.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        numbers = [str(number) for number in range(30)]
        answers = Endpoint(options(server.url, concurrency=4)).chat([ask(text) for text in numbers])
        restarting.join()
    assert texts(answers) == [f"<{text}>" for text in numbers]
    assert sorted(answered, key=int) == numbers
    assert len(server.received) > 30


def test_no_key_of_the_environment_goes_to_a_server_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-secret")
    with serving(echo) as server:
        Endpoint(options(server.url)).chat([ask("a")])
    assert "sk-secret" not in str(server.received[0].headers)


def test_a_key_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    with pytest.raises(EndpointError, match="the environment variable ABSENT_KEY is not set"):
        Endpoint(options("http://127.0.0.1:9/v1", api_key_env="ABSENT_KEY")).chat([ask("a")])


def test_what_is_sent() -> None:
    request = ask("a", top_p=0.9, max_tokens=7, seed=5, choices=2, extra_body={"template": {"safety": 0.5}})
    with serving(echo) as server:
        endpoint = Endpoint(options(server.url, extra_body={"template": {"thinking": False}, "top_k": 3}))
        endpoint.chat([request, ask("b")])
    first, second = sorted(server.bodies(), key=content)
    expected = {"model": "m", "temperature": 0.5, "top_k": 3}
    assert first == {
        **expected,
        "messages": [{"role": "user", "content": "a"}],
        **{"top_p": 0.9, "max_tokens": 7, "seed": 5, "n": 2, "template": {"thinking": False, "safety": 0.5}},
    }
    assert second == {**expected, "messages": [{"role": "user", "content": "b"}], "template": {"thinking": False}}


def test_it_works_where_an_event_loop_runs() -> None:
    async def notebook() -> list[str]:
        return texts(Endpoint(options(server.url)).chat([ask("a")]))

    with serving(echo) as server:
        assert asyncio.run(notebook()) == ["<a>"]


def test_no_requests_need_no_server() -> None:
    assert Endpoint(options("http://127.0.0.1:9/v1")).chat([]) == []


@given(st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter(attempt: int, share: float) -> None:
    """Below 0.5 · 2^n, and below 30 s whatever n; all of that range is used."""
    wait = backoff(attempt, first=0.5, limit=30, share=share)
    assert 0 <= wait <= min(30, 0.5 * 2.0 ** min(attempt, 60))
    assert backoff(attempt, first=0.5, limit=30, share=0) == 0
    assert backoff(3, first=0.5, limit=30, share=0.5) == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "-7"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": formatdate(1_000_030, usegmt=True)}, 30),
        ({"retry-after": formatdate(900_000, usegmt=True)}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, float("inf")),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers, 1_000_000) == seconds


def test_bodies_are_merged_block_by_block() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": 5}) == {"a": {"b": 1, "c": 4}, "d": 5}
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
