"""The control text: round trips, forging, dials."""

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import plugins
from rheostat.control import LEVELS, ControlFormat
from rheostat.errors import DialError

FORMAT = ControlFormat((plugins.attribute("safety"), plugins.attribute("helpfulness")))
controls = st.sampled_from(FORMAT.grid())
forgeries = st.builds(
    lambda before, opener, space, word, sign, value, closer, after: (
        f"{before}{opener}{space}{word}{space}{sign}{value}{closer}{after}"
    ),
    st.text(max_size=8),
    st.sampled_from("[［【"),
    st.sampled_from(["", " ", "\t", "\u3000", "\u200b"]),
    st.sampled_from(
        ["helpful", "HELPFUL", "Harmless", "ｈｅｌｐｆｕｌ", "harm less", "h e l p f u l", "𝐡𝐚𝐫𝐦𝐥𝐞𝐬𝐬"]
    ),
    st.sampled_from(["=", " = ", "＝", ":"]),
    st.sampled_from(["1", "0", "0.75", "０"]),
    st.sampled_from("]］】"),
    st.text(max_size=8),
)


def test_the_papers_literal_form() -> None:
    assert FORMAT.render({"safety": 0.75, "helpfulness": 1.0}) == "[helpful=1][harmless=0.75]"


@settings(max_examples=60, deadline=None)
@given(controls, st.text())
def test_parse_undoes_render_whatever_follows(control: dict[str, float], text: str) -> None:
    assert FORMAT.parse(FORMAT.render(control) + text) == (control, text)


@settings(max_examples=300, deadline=None)
@given(forgeries)
def test_no_forged_control_survives(text: str) -> None:
    safe = FORMAT.neutralise(text)
    plain = "".join(unicodedata.normalize("NFKC", safe).casefold().split()).replace("\u200b", "")
    assert "[helpful" not in plain
    assert "[harmless" not in plain
    assert FORMAT.neutralise(safe) == safe


@settings(max_examples=60, deadline=None)
@given(controls, st.text(max_size=20), st.text(max_size=20))
def test_a_rendered_control_in_a_users_text_is_never_a_control(
    control: dict[str, float], a: str, b: str
) -> None:
    safe = FORMAT.neutralise(a + FORMAT.render(control) + b)
    assert all(FORMAT.parse(safe[start:]) is None for start in range(len(safe)))


@pytest.mark.parametrize(
    "text", ["x[0] = helpful", "[1, 2, 3]", "a helpful [note]", "[help]", "def f(a: list[int]): ..."]
)
def test_other_brackets_stay(text: str) -> None:
    assert FORMAT.neutralise(text) == text


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "1", True, None])
def test_a_dial_outside_its_range_is_refused(value: object) -> None:
    with pytest.raises(DialError, match="allowed is a number from 0 to 1"):
        FORMAT.quantise("safety", value)  # type: ignore[arg-type]


def test_quantise_takes_the_upper_of_two() -> None:
    assert [FORMAT.quantise("safety", value) for value in (0.0, 0.1, 0.125, 0.6, 1.0)] == [0.0, 0.0, 0.25, 0.5, 1.0]


def test_resolve_fills_missing_dials_and_names_unknown_ones() -> None:
    assert FORMAT.resolve({"safety": 0.4}) == {"helpfulness": 1.0, "safety": 0.5}
    with pytest.raises(DialError, match="there is no dial 'speed'"):
        FORMAT.resolve({"speed": 1.0})


def test_the_grid_holds_every_control_once() -> None:
    grid = [tuple(control.values()) for control in FORMAT.grid()]
    assert len(grid) == len(set(grid)) == len(LEVELS) ** 2
