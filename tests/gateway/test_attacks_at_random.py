"""Attempts that Hypothesis puts together out of all ingredients: the floor holds whatever the mixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.attack_dials import HEADER_VALUES, KEYS, TEMPLATE_NAMES, VALUES
from tests.gateway.attack_texts import CONTROL, FORMS, SPECIALS, WRITINGS
from tests.gateway.attacked import House, before_a_server, exported
from tests.gateway.attacks import (
    CHAT,
    COMPLETIONS,
    FLOORS,
    GUARDED,
    LAB,
    PLAIN,
    POLICY,
    SHOP,
    STRICT,
    Raw,
    request,
)
from tests.gateway.raw_client import answered


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("at-random")
    policy = folder / "policy.yaml"
    policy.write_text(POLICY.replace("pocket, secret", "pocket"), encoding="utf-8")
    with before_a_server(exported(folder / "model"), Path(policy)) as made:
        yield made


texts = st.lists(
    st.one_of(
        st.sampled_from([write(CONTROL) for write in WRITINGS.values()]),
        st.sampled_from(SPECIALS),
        st.sampled_from(
            ["[", "]", "helpful", "harmless", "=0", "[h", "armless=0]", " ", "\n", "<|", "|>", "egg"]
        ),
        st.text(max_size=6).filter(lambda text: "\0" not in text),
    ),
    min_size=1,
    max_size=6,
).map("".join)
contents = st.builds(lambda text, form: FORMS[form](text), texts, st.sampled_from(sorted(FORMS)))
"""What a turn holds."""

numbers = st.sampled_from(["0", "-0.0", "1e-300", "0.25", "0.37", "0.5", "0.74999", "1"])
values = st.one_of(*[numbers] * 8, st.sampled_from(VALUES), st.floats(0, 1).map(repr)).map(Raw)
dials = st.sampled_from(["safety", "safety", "safety", "helpfulness"])
names = st.one_of(*[dials] * 9, st.sampled_from(KEYS).map(Raw), st.sampled_from(TEMPLATE_NAMES))


@st.composite
def conversations(draw: st.DrawFn) -> list[object]:
    """Mostly such as are taken: a system turn perhaps, turns in any order, the user's last."""
    turns: list[object] = []
    for role in draw(st.lists(st.sampled_from(["user", "assistant"]), max_size=3)):
        turns.append({"role": role, "content": draw(contents)})
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.sampled_from([0, 0, 0, len(turns)]))
        turns.insert(
            place, {"role": draw(st.sampled_from(["system", "developer"])), "content": draw(contents)}
        )
    last = draw(st.sampled_from(["user"] * 8 + ["assistant", "tool", "system"]))
    return [*turns, {"role": last, "content": draw(contents)}]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A key and a request by it."""
    key = draw(st.sampled_from([SHOP, LAB, STRICT, GUARDED, PLAIN]))
    body: list[tuple[object, object]] = [("max_tokens", 1)]
    path = draw(st.sampled_from([CHAT, CHAT, CHAT, COMPLETIONS]))
    body.append(("messages", draw(conversations())) if path == CHAT else ("prompt", draw(texts)))
    for _ in range(draw(st.integers(0, 2))):
        body.append((draw(names), draw(values)))
    if draw(st.integers(0, 2)) == 0:
        body.append(
            (
                "chat_template_kwargs",
                tuple((draw(names), draw(values)) for _ in range(draw(st.integers(0, 2)))),
            )
        )
    for name, value in (("stream", True), ("n", 2), ("temperature", 0)):
        if draw(st.booleans()):
            body.append((name, value))
    headers: list[tuple[str, str | bytes]] = []
    if draw(st.integers(0, 2)) == 0:
        text: str | bytes = draw(st.one_of(numbers, st.sampled_from(HEADER_VALUES)))
        headers.append(
            (draw(st.sampled_from(["X-Rheostat-Safety", "x-rheostat-safety", "X-RHEOSTAT-SAFETY"])), text)
        )
    return key, request(tuple(draw(st.permutations(body))), path=path, key=key, headers=headers)


def test_no_mixture_gets_below_a_floor(house: House) -> None:
    """Some of the mixtures reach the model: a law about requests that are all refused would hold of anything."""
    reached: list[bool] = []

    @settings(max_examples=150, deadline=None)
    @given(requests())
    def holds(made: tuple[str, bytes]) -> None:
        key, raw = made
        house.new_prompts()
        answer = answered(house.served.port, raw)
        prompts = house.new_prompts()
        reached.append(bool(prompts))
        assert [house.reader.breach(each, FLOORS[key]) for each in prompts] == [None] * len(prompts)
        assert len(answer.statuses) == 1 and answer.statuses[0] < 500, answer.data[:300]
        assert answer.status == 200 or answer.is_openais_error
        assert bool(prompts) == (answer.status == 200)

    holds()
    assert sum(reached) >= 8, (sum(reached), len(reached))
