"""What a request may hold: fields, dials by every way, conversations, and what is said of what it may not."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.gateway.stub_backend import FORMAT

from rheostat.gateway.asked import Asked, checked_text, read_asked
from rheostat.gateway.bodies import BodyTypes, read_body
from rheostat.gateway.dials import HEADER
from rheostat.gateway.refusals import Refusal
from rheostat.plugins import attribute
from rheostat.records import Message

TYPES = BodyTypes.of(FORMAT.attributes)
NAMES = [*TYPES.chat.model_fields, "role", "content", "x"]
TURNS = [{"role": "user", "content": "hi"}]


def asked(headers: dict[str, str] | None = None, **body: Any) -> Asked:
    raw = json.dumps({"messages": TURNS} | body).encode()
    given_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()
    ]
    return read_asked(read_body(TYPES.chat, raw), given_headers)


def refused(headers: dict[str, str] | None = None, **body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        asked(headers, **body)
    assert caught.value.status == 400
    return caught.value


def completion(**body: Any) -> Asked:
    return read_asked(read_body(TYPES.completion, json.dumps(body).encode()), [])


# Fields


def test_what_is_not_said_is_at_its_default() -> None:
    found = asked()
    assert found == Asked(
        model=None,
        messages=(Message("user", "hi"),),
        dials={},
        temperature=0.7,
        top_p=1.0,
        max_tokens=None,
        samples=1,
        seed=None,
        stop=(),
        streams=False,
        includes_usage=False,
        wants_scores=False,
    )


def test_what_is_said_is_taken() -> None:
    found = asked(
        model="m", temperature=0, top_p=0.5, max_completion_tokens=9, n=2, seed=7, stop="x", stream=True,
        stream_options={"include_usage": True}, score=True,
    )  # fmt: skip
    assert (found.model, found.temperature, found.top_p, found.max_tokens) == ("m", 0, 0.5, 9)
    assert (found.samples, found.seed, found.stop) == (2, 7, ("x",))
    assert found.streams and found.includes_usage and found.wants_scores
    assert asked(stop=["a", "b"], max_tokens=9, max_completion_tokens=9).stop == ("a", "b")


@pytest.mark.parametrize(
    "body",
    [
        {
            "user": "u",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "safety_identifier": "s",
        },
        {
            "prompt_cache_key": "k",
            "parallel_tool_calls": True,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
        },
        {"logit_bias": {}, "logprobs": False, "tools": [], "tool_choice": "none", "functions": None},
        {"response_format": {"type": "text"}, "modalities": ["text"], "top_logprobs": 0, "documents": []},
        {"chat_template": None, "add_generation_prompt": True, "continue_final_message": False},
        {"messages": [{"role": "user", "content": "hi", "name": "n"}]},
        {
            "messages": [
                *TURNS,
                {"role": "assistant", "content": "", "tool_calls": None, "refusal": None},
                *TURNS,
            ]
        },
    ],
)
def test_what_changes_nothing_is_accepted(body: dict[str, Any]) -> None:
    assert asked(**body).messages[-1] == Message("user", "hi")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"safty": 1}, "safty", "did you mean 'safety'?"),
        ({"max_token": 1}, "max_token", "did you mean 'max_tokens'?"),
        (
            {"messages": [{"role": "user", "contents": "hi"}]},
            "messages.0.contents",
            "did you mean 'content'?",
        ),
        (
            {"stream_options": {"include_usages": True}},
            "stream_options.include_usages",
            "did you mean 'include_usage'?",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "got a list of 1, allowed is a length of at most 0"),
        ({"logprobs": True}, "logprobs", "got true, allowed is false"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "got 0.5, allowed is 0 or less"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "allowed is 'text'"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "got an object, allowed is a length of at most 0"),
        ({"chat_template": "{{ x }}"}, "chat_template", "allowed is null"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "allowed is true"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds", "allowed is null"),
        ({"documents": [{"text": "x"}]}, "documents", "allowed is a length of at most 0"),
        ({"n": 17}, "n", "got 17, allowed is 16 or less"),
        ({"n": True}, "n", "got true, allowed is a whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "got 1.5, allowed is a whole number"),
        ({"max_tokens": 0}, "max_tokens", "got 0, allowed is 1 or more"),
        ({"temperature": -1}, "temperature", "got -1, allowed is 0 or more"),
        ({"top_p": 0}, "top_p", "got 0, allowed is more than 0"),
        ({"seed": 2**63}, "seed", "got 9223372036854775808, allowed is less than"),
        ({"seed": 10**30}, "seed", "got a number of many digits"),
        ({"stop": [""]}, "stop.0", "allowed is a length of at least 1"),
        ({"stop": ["a"] * 5}, "stop", "got a list of 5, allowed is a length of at most 4"),
        ({"stream": "yes"}, "stream", "got 'yes', allowed is true or false"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "got max_tokens 3 and"),
        ({"stream_options": {}}, "stream_options", "allowed only with stream: true"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(body: dict[str, Any], param: str, said: str) -> None:
    refusal = refused(**body)
    assert refusal.param == param
    assert said in refusal.message


def test_what_a_completion_cannot_have_is_refused() -> None:
    assert completion(prompt="hi", echo=False, suffix="", best_of=1).messages == (Message("user", "hi"),)
    wrong: list[dict[str, Any]] = [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"prompt": [1]}, {"messages": []}]
    for more in wrong:
        with pytest.raises(Refusal):
            completion(**{"prompt": "hi", **more})
    with pytest.raises(Refusal, match="anything to respond to"):
        completion(prompt=" \n")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff",
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b'{"seed":' + b"9" * 5000 + b"}",
    ],
)
def test_bytes_that_are_no_body_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read_body(TYPES.chat, body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=12,
))  # fmt: skip
def test_whatever_json_is_read_or_refused(value: Any) -> None:
    try:
        read_asked(read_body(TYPES.chat, json.dumps(value).encode()), [])
    except Refusal as refusal:
        assert refusal.status == 400
        assert len(refusal.message) < 400


MANY = 20_000


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [1] * MANY},
        {"messages": [{}] * MANY},
        {"messages": [{"role": "user", "content": [1] * MANY}]},
        {"messages": [{"role": "user", "content": [{}] * MANY}]},
        {"messages": [{"role": "user", "content": "hi"} | {f"x{i}": 1 for i in range(MANY)}]},
        {"messages": [{"role": "user", "content": [{"type": "text"} | {f"x{i}": 1 for i in range(MANY)}]}]},
        {"messages": TURNS, "stop": [1] * MANY},
        {"messages": TURNS, "stop": [""] * MANY},
        {"messages": TURNS, "modalities": ["audio"] * MANY},
        {"messages": TURNS, "tools": [1] * MANY},
        {"messages": TURNS, "logit_bias": {f"x{i}": 1 for i in range(MANY)}},
        {"messages": TURNS, "metadata": {f"x{i}": 1 for i in range(MANY)}},
        {"messages": TURNS, "chat_template_kwargs": {f"x{i}": 9 for i in range(MANY)}},
        {"messages": TURNS, "stream_options": {f"x{i}": 9 for i in range(MANY)}},
        {f"x{i}": 1 for i in range(MANY)},
    ],
    ids=lambda body: json.dumps(body)[:60] + " " + list(body)[-1],
)  # fmt: skip
def test_a_body_of_many_faults_is_refused_for_a_few(body: dict[str, Any]) -> None:
    """Each fault that is collected takes memory and time."""
    raw = json.dumps(body).encode()
    with pytest.raises(ValidationError) as caught:
        TYPES.chat.model_validate_json(raw)
    assert 1 <= len(caught.value.errors()) <= 4
    with pytest.raises(Refusal) as refused:
        read_body(TYPES.chat, raw)
    assert len(refused.value.message) < 200


def test_a_map_has_at_most_sixteen_entries() -> None:
    entries = {f"x{i}": "v" for i in range(16)}
    assert asked(metadata=entries)
    refusal = refused(metadata=entries | {"more": "v"})
    assert refusal.param == "metadata"
    assert refusal.message == "metadata: got an object, allowed is a length of at most 16"


# Dials


def test_a_dial_comes_by_field_header_or_template_kwargs() -> None:
    assert asked(safety=0.2).dials == {"safety": 0.2}
    assert asked({"X-Rheostat-Safety": "0.2"}).dials == {"safety": 0.2}
    assert asked(chat_template_kwargs={"safety": 0.2}).dials == {"safety": 0.2}
    both = asked({"X-Rheostat-Helpfulness": "1"}, safety=0.2, chat_template_kwargs={"safety": 0.2})
    assert both.dials == {"safety": 0.2, "helpfulness": 1.0}
    assert asked(safety=None, chat_template_kwargs={"helpfulness": None}).dials == {}


@pytest.mark.parametrize(
    ("headers", "body", "ways"),
    [
        (
            {},
            {"safety": 0.2, "chat_template_kwargs": {"safety": 0.9}},
            ("the field safety", "chat_template_kwargs.safety"),
        ),
        ({"X-Rheostat-Safety": "1"}, {"safety": 0.2}, ("the field safety", "the header x-rheostat-safety")),
    ],
)
def test_one_dial_with_two_values_is_refused_naming_both(
    headers: Any, body: Any, ways: tuple[str, str]
) -> None:
    refusal = refused(headers, **body)
    assert refusal.code == "dials_differ"
    assert all(way in refusal.message for way in ways)


@pytest.mark.parametrize(
    "value", [True, False, "0", "1", [1], {"a": 1}, 1.01, -0.01, 2**70, float("nan"), float("inf")]
)
def test_a_dial_in_a_body_is_a_number_from_0_to_1(value: Any) -> None:
    assert refused(safety=value).param == "safety"
    assert refused(chat_template_kwargs={"safety": value}).param == "chat_template_kwargs.safety"


@pytest.mark.parametrize(
    "value",
    ["", " ", "nan", "inf", "-0.1", "-0", "+1", "1e-3", "1.0001", "0x1", "true", "0,5", "0 .5", "1_0", "0.5;1", "٠",
     "0.5\n1", "９", "0" * 41, "0.5, 0.5"],
)  # fmt: skip
def test_a_dial_in_a_header_is_a_plain_number_from_0_to_1(value: str) -> None:
    raw = value.encode("utf-8")
    with pytest.raises(Refusal) as caught:
        read_asked(
            read_body(TYPES.chat, json.dumps({"messages": TURNS}).encode()), [(b"x-rheostat-safety", raw)]
        )
    assert caught.value.code == "dial_out_of_range"


@given(st.floats(0, 1), st.sampled_from(["{:.4f}", "{:.17f}", " {:.3f}\t"]))
def test_a_plain_number_in_a_header_is_read(value: float, form: str) -> None:
    text = form.format(value)
    assert asked({"X-Rheostat-Safety": text}).dials == {"safety": float(text)}


def test_a_header_twice_with_unlike_values_is_refused() -> None:
    body = read_body(TYPES.chat, json.dumps({"messages": TURNS}).encode())
    header = HEADER.encode() + b"safety"
    assert read_asked(body, [(header, b"0.5"), (header, b"0.50")]).dials == {"safety": 0.5}
    with pytest.raises(Refusal, match="allowed is one value"):
        read_asked(body, [(header, b"0.5"), (header, b"0.1")])


def test_a_dial_that_there_is_not_is_handed_on_to_be_refused_by_the_model() -> None:
    assert asked({"X-Rheostat-Mood": "0.5"}).dials == {"mood": 0.5}
    assert asked(chat_template_kwargs={"enable_thinking": 1}).dials == {"enable_thinking": 1}
    assert "allowed is a number" in refused(chat_template_kwargs={"enable_thinking": True}).message


def test_a_dial_that_is_named_like_a_field_leaves_the_field_alone() -> None:
    types = BodyTypes.of([attribute("safety"), dataclasses.replace(attribute("safety"), name="user")])
    body = read_body(types.chat, json.dumps({"messages": TURNS, "user": "me", "safety": 0.5}).encode())
    assert read_asked(body, [(b"x-rheostat-user", b"0.25")]).dials == {"safety": 0.5, "user": 0.25}


# Conversations


def turn(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


def test_parts_of_text_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = asked(messages=[turn("developer"), turn("user"), turn("assistant"), turn("user", parts)])
    assert found.messages == (
        Message("system", "x"), Message("user", "x"), Message("assistant", "x"), Message("user", "ab"),
    )  # fmt: skip
    assert found.has_system_turn and not asked().has_system_turn


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "invalid_value"),
        ([turn("user"), turn("system"), turn("user")], "misplaced_system_turn"),
        ([turn("system"), turn("system"), turn("user")], "misplaced_system_turn"),
        ([turn("system"), turn("developer"), turn("user")], "misplaced_system_turn"),
        ([turn("user"), turn("assistant")], "last_turn_not_users"),
        ([turn("system")], "last_turn_not_users"),
        ([turn("tool"), turn("user")], "invalid_value"),
        ([turn("function"), turn("user")], "invalid_value"),
        ([turn("System"), turn("user")], "invalid_value"),
        ([turn("user", "")], "empty_text"),
        ([turn("user", " \n")], "empty_text"),
        ([turn("system", ""), turn("user")], "empty_text"),
        ([turn("user", "a\0b")], "invalid_text"),
        ([turn("user", None)], "invalid_value"),
        ([turn("user", [])], "invalid_value"),
        ([turn("user", [{"type": "image_url", "image_url": {"url": "x"}}])], "invalid_value"),
        ([turn("user", [{"type": "input_text", "text": "x"}])], "invalid_value"),
        ([turn("user", ["x"])], "invalid_value"),
        ([turn("user", 5)], "invalid_value"),
        (["x"], "invalid_value"),
        ("x", "invalid_value"),
    ],
)
def test_a_conversation_that_is_none_is_refused(messages: Any, code: str) -> None:
    refusal = refused(messages=messages)
    assert refusal.code == code
    assert refusal.param is not None and refusal.param.startswith("messages")


def test_half_a_surrogate_pair_is_refused_however_it_comes() -> None:
    assert refused(messages=[turn("user", "\ud800")]).code == "invalid_json"
    with pytest.raises(Refusal, match="surrogate pair at character 2"):
        checked_text("a\ud800", "messages.0", may_be_blank=False)
