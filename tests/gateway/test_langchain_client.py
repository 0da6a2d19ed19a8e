"""LangChain's `ChatOpenAI` against the gateway, over a real socket: a second client, as its users have it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from tests.gateway.live_gateway import DEADLINE_S, GatedBackend, LiveGateway, live_gateway
from tests.gateway.policies import KEY, OTHER_KEY, UNKNOWN_KEY
from tests.gateway.stub_backend import StubBackend

from rheostat.errors import ModelError

SAID = "[helpful=1][harmless=1] How do I bake bread?"
ASKED = "How do I bake bread?"


@pytest.fixture(scope="module", autouse=True)
def _no_tracing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
            patch.setenv(variable, "false")
        yield


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with live_gateway(StubBackend(), tmp_path_factory.mktemp("gateway")) as running:
        yield running


def model_of(gateway: LiveGateway, key: str = KEY, **more: Any) -> ChatOpenAI:
    given = {"model": "stub", "base_url": gateway.url, "api_key": key, "max_retries": 0, "timeout": DEADLINE_S}
    return ChatOpenAI(**{**given, **more})


def test_invoke(gateway: LiveGateway) -> None:
    answer = model_of(gateway).invoke(ASKED)
    assert answer.content == SAID
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "stub"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == (
        answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
    )


WAYS: dict[str, dict[str, Any]] = {
    "extra_body": {"extra_body": {"safety": 0.75}},
    "model_kwargs": {"model_kwargs": {"extra_headers": {"X-Rheostat-Safety": "0.75"}}},
    "default_headers": {"default_headers": {"X-Rheostat-Safety": "0.75"}},
    "chat_template_kwargs": {"extra_body": {"chat_template_kwargs": {"safety": 0.75}}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_dial_by_every_way(gateway: LiveGateway, way: str) -> None:
    model = model_of(gateway, **WAYS[way])
    said = "[helpful=1][harmless=0.75] How do I bake bread?"
    assert model.invoke(ASKED).content == said
    assert "".join(str(chunk.content) for chunk in model.stream(ASKED)) == said


def test_a_dial_of_one_call(gateway: LiveGateway) -> None:
    model = model_of(gateway, extra_body={"safety": 1})
    assert model.bind(extra_body={"safety": 0.5}).invoke(ASKED).content == f"[helpful=1][harmless=0.5] {ASKED}"
    assert model.invoke(ASKED, extra_body={"safety": 0}).content == f"[helpful=1][harmless=0.5] {ASKED}", "the floor"


def test_what_was_granted_is_read_from_the_headers(gateway: LiveGateway) -> None:
    """LangChain drops fields that it does not know, and keeps the headers where it is asked to."""
    answer = model_of(gateway, include_response_headers=True, extra_body={"safety": 0}).invoke(ASKED)
    assert answer.response_metadata["headers"]["x-rheostat-dials"] == "helpfulness=1, safety=0.5"
    assert answer.response_metadata["headers"]["x-request-id"]


def test_stream_counts_tokens(gateway: LiveGateway) -> None:
    chunks = list(model_of(gateway, stream_usage=True).stream(ASKED))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == SAID
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] > 0
    assert whole.response_metadata["finish_reason"] == "stop"


def test_batch(gateway: LiveGateway) -> None:
    answers = model_of(gateway).batch([f"Number {place}" for place in range(12)])
    assert [answer.content for answer in answers] == [f"[helpful=1][harmless=1] Number {place}" for place in range(12)]


def test_async(gateway: LiveGateway) -> None:
    async def run() -> None:
        model = model_of(gateway, extra_body={"helpfulness": 0})
        said = f"[helpful=0][harmless=1] {ASKED}"
        assert (await model.ainvoke(ASKED)).content == said
        assert [answer.content for answer in await model.abatch([ASKED, ASKED])] == [said, said]
        assert "".join([str(chunk.content) async for chunk in model.astream(ASKED)]) == said

    asyncio.run(run())


def test_a_chain_with_history(gateway: LiveGateway) -> None:
    """Turns go back as LangChain writes them, an answer's with whatever it keeps of it."""
    model = model_of(gateway)
    history: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage(ASKED)]
    history += [model.invoke(history), HumanMessage("And cake?")]
    assert model.invoke(history).content == "[helpful=1][harmless=1] And cake?"
    roles = [turn.role for turn in gateway.asks[-1].messages]
    assert roles == ["system", "user", "assistant", "user"]
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{what}")]) | model | StrOutputParser()
    assert chain.invoke({"what": "Tea?"}) == "[helpful=1][harmless=1] Tea?"


def test_content_in_parts_and_names(gateway: LiveGateway) -> None:
    turns = [HumanMessage([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], name="ann")]
    assert model_of(gateway).invoke(turns).content == "[helpful=1][harmless=1] Hello"
    assert model_of(gateway).invoke([HumanMessage("a"), AIMessage(""), HumanMessage("b")]).content == (
        "[helpful=1][harmless=1] b"
    )


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"max_tokens": 3},
    {"max_completion_tokens": 3},
    {"seed": 7},
    {"stop": ["END"]},
    {"n": 2},
    {"top_p": 0.5},
    {"frequency_penalty": 0.0, "presence_penalty": 0.0},
    {"logprobs": False},
    {"service_tier": "default"},
    {"store": False},
    {"metadata": {"app": "shop"}},
    {"model_kwargs": {"user": "u-1"}},
    {"streaming": True},
    {"verbosity": "medium"},
    {"reasoning_effort": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options))
def test_options_of_the_client(gateway: LiveGateway, options: dict[str, Any]) -> None:
    answer = model_of(gateway, **options).invoke(ASKED)
    assert SAID.startswith(str(answer.content)) and answer.content


@pytest.mark.filterwarnings("ignore:.*response_format.*:UserWarning")
def test_what_needs_tools_is_refused(gateway: LiveGateway) -> None:
    model = model_of(gateway)
    tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="tools"):
        model.bind_tools([tool]).invoke(ASKED)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        model.with_structured_output(
            {"title": "Answer", "type": "object", "properties": {}}, method="json_schema"
        ).invoke(ASKED)


def test_errors(gateway: LiveGateway) -> None:
    with pytest.raises(openai.AuthenticationError):
        model_of(gateway, UNKNOWN_KEY).invoke(ASKED)
    with pytest.raises(openai.NotFoundError):
        model_of(gateway, model="gpt-5").invoke(ASKED)
    with pytest.raises(openai.BadRequestError, match="safety"):
        model_of(gateway, extra_body={"safety": 7}).invoke(ASKED)
    strict = model_of(gateway, OTHER_KEY)
    with pytest.raises(openai.PermissionDeniedError, match="system turn"):
        strict.invoke([SystemMessage("You are bad."), HumanMessage(ASKED)])
    with pytest.raises(openai.PermissionDeniedError, match="allowed is 0.75 or more"):
        strict.invoke(ASKED, extra_body={"safety": 0.25})
    assert strict.invoke(ASKED).content == SAID


def test_an_error_in_mid_stream_raises(tmp_path: Path) -> None:
    backend = StubBackend(fails_with=ModelError("it broke", hint="none"), fails_after=2)
    with live_gateway(backend, tmp_path) as gateway, pytest.raises(openai.APIError, match="cannot answer"):
        list(model_of(gateway).stream(ASKED))


def test_a_stream_that_is_left_frees_the_backend(tmp_path: Path) -> None:
    backend = GatedBackend()
    with live_gateway(backend, tmp_path) as gateway:
        stream = model_of(gateway).stream(ASKED)
        assert isinstance(next(stream), AIMessageChunk)
        stream.close()  # type: ignore[attr-defined]
        gateway.wait_until(lambda: backend.closed == 1 and not gateway.service.under_way)
