"""The shapes of a row: each by hand, the first that counts, answers dropped, turns kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.prompt_rows import COLUMNS, PROMPT_COLUMNS, RowProblem, conversation
from rheostat.records import Message

USER = Message("user", "one")
TURNS = (USER, Message("assistant", "two"), Message("user", "three"))
ROLES = [{"role": role, "content": content} for role, content in TURNS]
SHAREGPT = [{"from": "human" if role == "user" else "gpt", "value": content} for role, content in TURNS]
TRANSCRIPT = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": " one "}, (USER,)),
        ({"prompt": ROLES}, TURNS),
        ({"prompt": TRANSCRIPT + "\n\nAssistant:"}, TURNS),
        ({"prompt": "Human: one"}, (Message("user", "Human: one"),)),
        ({"messages": ROLES}, TURNS),
        ({"messages": [*ROLES, {"role": "assistant", "content": None}]}, TURNS),
        ({"messages": [*ROLES, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}, TURNS),
        ({"conversation": ROLES}, TURNS),
        ({"conversations": SHAREGPT}, TURNS),
        ({"conversations": [*SHAREGPT, {"from": "gpt", "value": "four"}], "id": 7}, TURNS),
        ({"conversations": SHAREGPT, "system": "s"}, (Message("system", "s"), *TURNS)),
        ({"instruction": " one ", "input": " two "}, (Message("user", "one\n\ntwo"),)),
        ({"instruction": "one", "input": " ", "context": "two", "response": "x"}, (Message("user", "one\n\ntwo"),)),
        ({"instruction": "one", "input": None, "output": "x"}, (USER,)),
        ({"question": "one", "answer": "x"}, (USER,)),
        ({"query": "one", "system_prompt": "s", "response": "x"}, (Message("system", "s"), USER)),
        ({"question": "one", "system_prompt": ""}, (USER,)),
        ({"chosen": TRANSCRIPT + "\n\nAssistant: good", "rejected": TRANSCRIPT + "\n\nAssistant: bad"}, TURNS),
        ({"chosen": TRANSCRIPT}, TURNS),
        ({"rejected": [*ROLES, {"role": "assistant", "content": "bad"}]}, TURNS),
        ({"transcript": "\n\nHuman: one\n\nAssistant: two"}, (USER,)),
        ({"prompt": "one", "chosen": ROLES, "rejected": ROLES}, (USER,)),
        ({"prompt": "x", "messages": ROLES}, TURNS),
        ({"prompt": None, "question": "one"}, (USER,)),
    ],
)
def test_shapes_by_hand(row: dict[str, Any], expected: tuple[Message, ...]) -> None:
    assert conversation(row) == expected


@pytest.mark.parametrize("value", ["one", [{"role": "user", "content": "one"}], "\n\nHuman: one\n\nAssistant: x"])
def test_a_column_of_ones_own(value: object) -> None:
    """Whatever shape it holds; the usual columns beside it do not count."""
    assert conversation({"Frage": value, "prompt": "other", "system": "s"}, "Frage") == (USER,)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(RowProblem, match="it has the keys 'prompt', allowed are Frage"):
        conversation({"prompt": "x"}, "Frage")


@given(
    st.dictionaries(
        st.sampled_from(COLUMNS),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=8) | st.sampled_from([TRANSCRIPT, "\n\nHuman:"]),
            lambda each: st.lists(each, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), each, max_size=4),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.none() | st.sampled_from(PROMPT_COLUMNS),
)
def test_any_row_is_a_waiting_conversation_or_refused(row: dict[str, object], column: str | None) -> None:
    """Never another exception; and what is accepted ends with the user and alternates."""
    try:
        turns = conversation(row, column)
    except RowProblem as problem:
        assert str(problem)
        return
    spoken = [turn.role for turn in turns if turn.role != "system"]
    assert spoken[::2] == ["user"] * len(spoken[::2]) and len(spoken) % 2 == 1
    assert all(turn.content == turn.content.strip() != "" for turn in turns)
