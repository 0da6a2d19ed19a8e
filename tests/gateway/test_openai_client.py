"""The official OpenAI client against the gateway, over a real socket."""

import asyncio
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultHttpxClient, OpenAI
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from openai.types.chat import ChatCompletion
from tests.gateway.live_gateway import DEADLINE_S, LIMITED_KEY, GatedBackend, LiveGateway, live_gateway
from tests.gateway.policies import EXPIRED_KEY, KEY, OTHER_KEY, UNKNOWN_KEY
from tests.gateway.stub_backend import StubBackend

from rheostat.errors import EndpointError, ModelError, PromptTooLong
from rheostat.gateway.bodies import ChatBody, CompletionBody

MESSAGES: Any = [{"role": "user", "content": "How do I bake bread?"}]
SAID = "[helpful=1][harmless=1] How do I bake bread?"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with live_gateway(StubBackend(), tmp_path_factory.mktemp("gateway")) as running:
        yield running


def client_of(gateway: LiveGateway, key: str = KEY, **more: Any) -> OpenAI:
    return OpenAI(base_url=gateway.url, api_key=key, **{"max_retries": 0, "timeout": DEADLINE_S, **more})


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[OpenAI]:
    with client_of(gateway) as made:
        yield made


def echo_of(answer: Any) -> Any:
    """What became of the dials, as a user of the client reads it."""
    return answer.model_extra["rheostat"]


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="stub", messages=MESSAGES)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == "stub" and answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(model="stub", prompt="Hello", extra_body={"helpfulness": 0.25})
    assert answer.choices[0].text == "[helpful=0.25][harmless=1] Hello"
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert echo_of(answer)["dials"]["helpfulness"] == {"requested": 0.25, "granted": 0.25, "why": "as requested"}


DIALS: dict[str, dict[str, Any]] = {
    "field": {"extra_body": {"safety": 0.75}},
    "header": {"extra_headers": {"X-Rheostat-Safety": "0.75"}},
    "kwargs": {"extra_body": {"chat_template_kwargs": {"safety": 0.75}}},
    "twice": {"extra_body": {"safety": 0.75}, "extra_headers": {"X-Rheostat-Safety": ".75"}},
}


@pytest.mark.parametrize("way", DIALS)
def test_a_dial_by_every_way(client: OpenAI, way: str) -> None:
    answer = client.chat.completions.create(model="stub", messages=MESSAGES, **DIALS[way])
    assert answer.choices[0].message.content == "[helpful=1][harmless=0.75] How do I bake bread?"
    assert echo_of(answer)["dials"]["safety"] == {"requested": 0.75, "granted": 0.75, "why": "as requested"}


def test_below_the_floor_is_raised_and_said(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="stub", messages=MESSAGES, extra_body={"safety": 0})
    assert answer.choices[0].message.content == "[helpful=1][harmless=0.5] How do I bake bread?"
    assert answer.rheostat["dials"] == {  # type: ignore[attr-defined]
        "helpfulness": {"requested": None, "granted": 1.0, "why": "not given: the default"},
        "safety": {"requested": 0.0, "granted": 0.5, "why": "raised to the floor 0.5"},
    }


def test_default_headers_of_a_client_turn_dials(gateway: LiveGateway) -> None:
    with client_of(gateway, default_headers={"X-Rheostat-Helpfulness": "0"}) as client:
        answer = client.chat.completions.create(model="stub", messages=MESSAGES)
    assert echo_of(answer)["dials"]["helpfulness"]["granted"] == 0


def test_the_raw_response_has_the_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="stub", messages=MESSAGES, extra_body={"safety": 0.75})
    assert raw.headers["x-rheostat-dials"] == "helpfulness=1, safety=0.75"
    assert re.fullmatch(r"[0-9a-f]{24}", raw.headers["x-request-id"])
    assert raw.headers["x-ratelimit-limit-requests"] == "100000"
    assert 0 <= int(raw.headers["x-ratelimit-remaining-requests"]) < 100000
    assert raw.headers["x-ratelimit-limit-tokens"] == "100000000"
    assert re.fullmatch(r"(\d+m)?[\d.]+m?s", raw.headers["x-ratelimit-reset-requests"])
    answer = raw.parse()
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content == "[helpful=1][harmless=0.75] How do I bake bread?"
    assert answer._request_id == raw.headers["x-request-id"] == answer.id.removeprefix("chatcmpl-")


def test_a_stream_has_the_headers_of_its_limits(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="stub", messages=MESSAGES, stream=True
    ) as response:
        assert response.headers["x-rheostat-dials"] == "helpfulness=1, safety=1"
        assert response.headers["x-ratelimit-limit-requests"] == "100000"
        assert [*response.iter_lines()][-2:] == ["data: [DONE]", ""]


def test_a_stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="stub", messages=MESSAGES, stream=True))
    assert echo_of(chunks[0])["dials"]["safety"]["granted"] == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_that_counts_tokens(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="stub", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [] and last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks)


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="stub", messages=MESSAGES, extra_body={"safety": 0.5}) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(deltas) == whole.choices[0].message.content == "[helpful=1][harmless=0.5] How do I bake bread?"
    assert whole.choices[0].finish_reason == "stop"


def test_a_completion_streams(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="stub", prompt="Hello", stream=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "[helpful=1][harmless=1] Hello"


def test_several_answers_streamed_and_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="stub", messages=MESSAGES, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="stub", messages=MESSAGES, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices] == [SAID] * 3


def test_what_the_engine_gets(gateway: LiveGateway, client: OpenAI) -> None:
    client.chat.completions.create(
        model="stub", messages=MESSAGES, seed=7, stop=["\n", "END"], temperature=0, top_p=0.5, max_completion_tokens=5
    )
    ask = gateway.asks[-1]
    assert (ask.seed, ask.stop, ask.temperature, ask.top_p, ask.max_tokens) == (7, ("\n", "END"), 0, 0.5, 5)


HARMLESS: list[dict[str, Any]] = [
    {"user": "u-1"},
    {"metadata": {"app": "shop"}},
    {"store": False},
    {"service_tier": "auto"},
    {"safety_identifier": "u-1"},
    {"prompt_cache_key": "k"},
    {"frequency_penalty": 0, "presence_penalty": 0.0},
    {"logit_bias": {}},
    {"logprobs": False},
    {"tools": []},
    {"tool_choice": "none"},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"n": 1},
    {"stop": None},
    {"temperature": None},
    {"reasoning_effort": "none"},
    {"verbosity": "medium"},
    {"prompt_cache_retention": "24h"},
]


@pytest.mark.parametrize("field", HARMLESS, ids=lambda field: ", ".join(field))
def test_standard_fields_that_change_nothing_are_taken(client: OpenAI, field: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model="stub", messages=MESSAGES, **field)
    assert answer.choices[0].message.content == SAID


@pytest.mark.parametrize(("create", "body"), [(ChatCompletions.create, ChatBody), (Completions.create, CompletionBody)])
def test_every_parameter_of_the_client_is_known(create: Any, body: type[ChatBody] | type[CompletionBody]) -> None:
    """A client that sends one as null, or has a default for it, must not be told that there is no such field."""
    own = {"self", "timeout", "extra_body", "extra_headers", "extra_query"}
    assert set(inspect.signature(create).parameters) - own <= set(body.model_fields)


def test_a_conversation_goes_round(client: OpenAI) -> None:
    """An answer's message goes back as the client's own object, with all the fields it has."""
    first = client.chat.completions.create(model="stub", messages=MESSAGES)
    again = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "And cake?"}]
    second = client.chat.completions.create(model="stub", messages=again)
    assert second.choices[0].message.content == "[helpful=1][harmless=1] And cake?"


def test_parts_and_the_developers_turn(gateway: LiveGateway, client: OpenAI) -> None:
    client.chat.completions.create(
        model="stub",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        ],
    )
    turns = gateway.asks[-1].messages
    assert [(turn.role, turn.content) for turn in turns] == [("system", "Be brief."), ("user", "Hello")]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stub"]
    model = client.models.retrieve("stub")
    assert model.id == "stub" and model.object == "model" and model.created > 0
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-5")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("key", [UNKNOWN_KEY, EXPIRED_KEY, "sk-something", KEY[:-1], KEY + "k"])
def test_another_key(gateway: LiveGateway, key: str) -> None:
    with client_of(gateway, key) as client, pytest.raises(openai.AuthenticationError) as error:
        client.chat.completions.create(model="stub", messages=MESSAGES)
    assert error.value.status_code == 401 and error.value.code == "invalid_api_key"
    assert error.value.type == "authentication_error"
    assert key not in str(error.value)


REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown field": ({"extra_body": {"safty": 1}}, "unknown_field", "safty"),
    "unknown field in brackets": ({"extra_body": {"a[b]": 1}}, "unknown_field", "a[b]"),
    "unknown field in a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "str": 1}]}]},
        "unknown_field",
        "messages.0.content.0.str",
    ),
    "unknown option of streams": ({"extra_body": {"stream_options": {"x": 1}}}, "unknown_field", "stream_options.x"),
    "number for a truth": ({"extra_body": {"logprobs": 0}}, "invalid_value", "logprobs"),
    "number for a stream": ({"extra_body": {"stream": 1}}, "invalid_value", "stream"),
    "too many stops": ({"stop": list("abcde")}, "invalid_value", "stop"),
    "number for a turn": ({"messages": [{"role": "user", "content": 7}]}, "invalid_value", "messages.0.content"),
    "dial of the kwargs": (
        {"extra_body": {"chat_template_kwargs": {"str": 7}}},
        "invalid_value",
        "chat_template_kwargs.str",
    ),
    "dial out of range": ({"extra_body": {"safety": 7}}, "invalid_value", "safety"),
    "dial as text": ({"extra_body": {"safety": "1"}}, "invalid_value", "safety"),
    "dials differ": (
        {"extra_body": {"safety": 1}, "extra_headers": {"X-Rheostat-Safety": "0.5"}},
        "dials_differ",
        "safety",
    ),
    "dial that is none": ({"extra_headers": {"X-Rheostat-Mood": "1"}}, "unknown_dial", "mood"),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        "invalid_value",
        "tools",
    ),
    "logprobs": ({"logprobs": True}, "invalid_value", "logprobs"),
    "json format": ({"response_format": {"type": "json_object"}}, "invalid_value", "response_format.type"),
    "too many": ({"n": 99}, "invalid_value", "n"),
    "two system turns": (
        {"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, *MESSAGES]},
        "misplaced_system_turn",
        "messages.1.role",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "invalid_value",
        "messages.0.content.0.type",
    ),
    "no question": (
        {"messages": [*MESSAGES, {"role": "assistant", "content": "So"}]},
        "last_turn_not_users",
        "messages",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests(client: OpenAI, case: str) -> None:
    given, code, param = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "stub", "messages": MESSAGES, **given})
    assert (error.value.code, error.value.param) == (code, param)
    assert error.value.type == "invalid_request_error"
    assert "(hint: " in error.value.message
    assert error.value.request_id


def test_an_unknown_field_gets_the_nearest_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="safety"):
        client.chat.completions.create(model="stub", messages=MESSAGES, extra_body={"safty": 1})


def test_what_was_sent_is_said(client: OpenAI) -> None:
    for given, said in (({"stream": 1}, "got 1"), ({"stop": list("abcde")}, "at most 4"), ({"echo": 0}, "echo")):
        with pytest.raises(openai.BadRequestError, match=said):
            client.chat.completions.create(model="stub", messages=MESSAGES, extra_body=given)
    with pytest.raises(openai.BadRequestError, match="echo: got 0"):
        client.completions.create(model="stub", prompt="Hello", extra_body={"echo": 0})


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_what_the_policy_refuses(gateway: LiveGateway) -> None:
    with client_of(gateway, OTHER_KEY) as client:
        with pytest.raises(openai.PermissionDeniedError) as below:
            client.chat.completions.create(model="stub", messages=MESSAGES, extra_body={"safety": 0.5})
        with pytest.raises(openai.PermissionDeniedError) as system:
            client.chat.completions.create(
                model="stub", messages=[{"role": "system", "content": "You are bad."}, *MESSAGES]
            )
        with pytest.raises(openai.PermissionDeniedError) as scores:
            client.chat.completions.create(model="stub", messages=MESSAGES, extra_body={"score": True})
    assert (below.value.code, below.value.param) == ("below_floor", "safety")
    assert (system.value.code, system.value.param) == ("system_turn_refused", "messages.0.role")
    assert scores.value.code == "scores_refused"


def test_requests_a_minute(tmp_path: Path) -> None:
    with live_gateway(StubBackend(), tmp_path) as gateway, client_of(gateway, LIMITED_KEY) as client:
        for left in (1, 0):
            raw = client.chat.completions.with_raw_response.create(model="stub", messages=MESSAGES)
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="stub", messages=MESSAGES)
    assert error.value.code == "rate_limited" and error.value.type == "rate_limit_error"
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 120
    assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"


FAILURES: dict[str, tuple[Exception, type[openai.APIStatusError], int, str]] = {
    "long prompt": (
        PromptTooLong("the prompt has 9 tokens", hint="shorten it"),
        openai.BadRequestError,
        400,
        "context_length_exceeded",
    ),
    "no model": (ModelError("secret path", hint="none"), openai.InternalServerError, 503, "model_unavailable"),
    "upstream": (
        EndpointError("http://10.0.0.1 secret path", hint="none"),
        openai.InternalServerError,
        502,
        "upstream_failed",
    ),
    "a defect": (RuntimeError("secret path"), openai.InternalServerError, 500, "internal_error"),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("streams", [False, True])
def test_a_backend_that_fails_at_once(tmp_path: Path, case: str, streams: bool) -> None:
    """Before any text, a stream fails by its status too."""
    failure, kind, status, code = FAILURES[case]
    with live_gateway(StubBackend(fails_with=failure), tmp_path) as gateway, client_of(gateway) as client:
        with pytest.raises(kind) as error:
            client.chat.completions.create(model="stub", messages=MESSAGES, stream=streams)
        assert (error.value.status_code, error.value.code) == (status, code)
        assert "secret" not in str(error.value)
        assert [model.id for model in client.models.list()] == ["stub"], "it answers on"


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_in_mid_stream_raises(tmp_path: Path, case: str) -> None:
    failure, _, _, code = FAILURES[case]
    backend = StubBackend(fails_with=failure, fails_after=2)
    with live_gateway(backend, tmp_path) as gateway, client_of(gateway) as client:
        stream = client.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        text = ""
        with pytest.raises(openai.APIError) as error:
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text and len(text) < len(SAID), "what had come by then"
        assert error.value.code == code
        with (
            pytest.raises(openai.APIError),
            client.chat.completions.stream(model="stub", messages=MESSAGES) as helper,
        ):
            helper.get_final_completion()


def test_a_full_queue_is_tried_again_by_the_client(tmp_path: Path) -> None:
    """The client's own retry, after the time that Retry-After says, finds a place."""
    backend = GatedBackend()
    seen: list[Any] = []

    def on_response(response: Any) -> None:
        seen.append(response)
        if response.status_code == 429:
            backend.release()

    with (
        live_gateway(backend, tmp_path, in_work=1, queue=0) as gateway,
        client_of(gateway) as first,
        DefaultHttpxClient(event_hooks={"response": [on_response]}) as transport,
        client_of(gateway, max_retries=2, http_client=transport) as second,
    ):
        held = first.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        backend.await_begun()
        answer = second.chat.completions.create(model="stub", messages=MESSAGES)
        assert answer.choices[0].message.content == SAID
        assert "".join(chunk.choices[0].delta.content or "" for chunk in held) == SAID
    assert [response.status_code for response in seen] == [429, 200]
    assert seen[0].headers["retry-after"] == "1"
    assert json.loads(seen[0].content)["error"]["code"] == "queue_full"


def test_while_it_drains(tmp_path: Path) -> None:
    """Who is under way gets a whole answer; who comes anew a 503 that says when to come again."""
    backend = GatedBackend()
    with live_gateway(backend, tmp_path) as gateway, client_of(gateway) as client:
        held = client.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        backend.await_begun()
        gateway.server.stop()
        gateway.wait_until(lambda: gateway.service.admission.is_draining)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="stub", messages=MESSAGES)
        assert (error.value.status_code, error.value.code) == (503, "shutting_down")
        assert error.value.response.headers["retry-after"] == "5"
        backend.release()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in held) == SAID


def test_after_it_has_ended_there_is_no_connection(tmp_path: Path) -> None:
    with live_gateway(StubBackend(), tmp_path) as gateway:
        pass
    with client_of(gateway) as client, pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="stub", messages=MESSAGES)


def test_a_client_that_waits_no_longer_frees_the_backend(tmp_path: Path) -> None:
    backend = GatedBackend()
    with live_gateway(backend, tmp_path) as gateway, client_of(gateway, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="stub", messages=MESSAGES)
        gateway.wait_until(lambda: backend.closed == len(backend.asks) == 1)
        gateway.wait_until(lambda: not gateway.service.under_way and not gateway.service.admission.working)


def test_the_gateways_own_time_out_is_not_waited_for_again(tmp_path: Path) -> None:
    backend = GatedBackend()
    with live_gateway(backend, tmp_path, timeout_s=0.2) as gateway, client_of(gateway, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="stub", messages=MESSAGES)
        assert (error.value.status_code, error.value.code) == (504, "timeout")
        assert len(backend.asks) == 1, "a client that retries asked once"
        with pytest.raises(openai.APIError) as streamed:
            list(client.chat.completions.create(model="stub", messages=MESSAGES, stream=True))
        assert streamed.value.code == "timeout"


@pytest.mark.parametrize("helper", [False, True])
def test_a_cancelled_stream_frees_the_backend(tmp_path: Path, helper: bool) -> None:
    backend = GatedBackend()
    with live_gateway(backend, tmp_path) as gateway, client_of(gateway) as client:
        if helper:
            with client.chat.completions.stream(model="stub", messages=MESSAGES) as events:
                next(event for event in events if event.type == "content.delta")
        else:
            stream = client.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
            next(iter(stream))
            stream.close()
        gateway.wait_until(lambda: backend.closed == 1 and not gateway.service.under_way)


def test_one_connection_for_many_requests(gateway: LiveGateway) -> None:
    """Through errors too; a stream's own end the client does not wait for, it closes the connection at `[DONE]`."""
    ports = set()

    def on_response(response: Any) -> None:
        ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])

    with (
        DefaultHttpxClient(event_hooks={"response": [on_response]}) as transport,
        client_of(gateway, http_client=transport) as client,
    ):
        for place in range(60):
            if place % 3 == 0:
                with pytest.raises(openai.BadRequestError):
                    client.chat.completions.create(model="stub", messages=MESSAGES, n=99)
            elif place % 3 == 1:
                client.models.list()
            else:
                client.chat.completions.create(model="stub", messages=MESSAGES)
    assert len(ports) == 1


def test_fifty_at_once_each_get_their_own_dials(gateway: LiveGateway) -> None:
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]

    async def ask(client: AsyncOpenAI, place: int) -> None:
        wanted = {"safety": levels[place % 5], "helpfulness": levels[place // 5 % 5]}
        granted = {**wanted, "safety": max(0.5, wanted["safety"])}
        said = f"[helpful={granted['helpfulness']:g}][harmless={granted['safety']:g}] Number {place}"
        messages: Any = [{"role": "user", "content": f"Number {place}"}]
        if place < 25:
            answer = await client.chat.completions.create(model="stub", messages=messages, extra_body=wanted)
            assert answer.choices[0].message.content == said
            dials = echo_of(answer)["dials"]
        else:
            stream = await client.chat.completions.create(
                model="stub", messages=messages, extra_body=wanted, stream=True
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
            dials = echo_of(chunks[0])["dials"]
        assert {name: dial["granted"] for name, dial in dials.items()} == granted
        assert {name: dial["requested"] for name, dial in dials.items()} == wanted

    async def ask_all() -> None:
        async with AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client:
            await asyncio.gather(*(ask(client, place) for place in range(50)))

    asyncio.run(ask_all())


def test_the_async_clients_errors_and_cancelling(tmp_path: Path) -> None:
    backend = GatedBackend()

    async def run(gateway: LiveGateway) -> None:
        async with AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client:
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="stub", messages=MESSAGES, n=99)
            task = asyncio.ensure_future(client.chat.completions.create(model="stub", messages=MESSAGES))
            await asyncio.to_thread(backend.await_begun)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with live_gateway(backend, tmp_path) as gateway:
        asyncio.run(run(gateway))
        gateway.wait_until(lambda: backend.closed == 1 and not gateway.service.under_way)
