"""The levels that a caller gets: between floor and ceiling, whatever was asked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.policies import FORMAT

from rheostat.control import LEVELS, ControlFormat
from rheostat.errors import DialError
from rheostat.gateway.dials import BelowFloor, DialLimits, dial_value, grant
from rheostat.gateway.refusals import Refusal

NAMES = FORMAT.names
shares = st.floats(0, 1)
requests = st.dictionaries(st.sampled_from(NAMES), shares)


@dataclass(frozen=True)
class Case:
    """A model's dials, and what a tenant may do with them."""

    model: ControlFormat
    limits: DialLimits

    @property
    def allowed(self) -> ControlFormat:
        return self.limits.on(self.model)


@st.composite
def cases(draw: st.DrawFn, *, calibrated: bool = True) -> Case:
    levels: dict[str, tuple[float, ...]] = {}
    thresholds: dict[str, tuple[float, ...]] = {}
    floors: dict[str, float] = {}
    ceilings: dict[str, float] = {}
    defaults: dict[str, float] = {}
    for name in NAMES:
        chosen = draw(st.lists(st.sampled_from(LEVELS) | shares, min_size=1, max_size=6, unique=True))
        own = levels[name] = tuple(sorted(abs(level) for level in set(chosen)))
        if calibrated and draw(st.booleans()):
            thresholds[name] = tuple(sorted(draw(st.lists(shares, min_size=len(own) - 1, max_size=len(own) - 1))))
        low, default, high = sorted(draw(st.lists(st.sampled_from(own), min_size=3, max_size=3)))
        for bounds, level in ((floors, low), (ceilings, high), (defaults, default)):
            if draw(st.booleans()):
                bounds[name] = level
    model = ControlFormat(FORMAT.attributes, levels, thresholds=thresholds)
    return Case(model, DialLimits(floors, ceilings, defaults))


@settings(max_examples=120, deadline=None)
@given(cases(), requests)
def test_what_is_granted_is_a_level_of_the_model_between_floor_and_ceiling(
    case: Case, requested: Mapping[str, float]
) -> None:
    granted = grant(requested, case.limits, case.allowed)
    assert set(granted.control) == set(granted.dials) == set(NAMES)
    for name, level in granted.control.items():
        assert level in case.model.levels_of(name)
        assert case.limits.floors.get(name, 0) <= level <= case.limits.ceilings.get(name, 1)
        assert granted.dials[name].granted == level
        assert granted.dials[name].requested == requested.get(name)
        if name not in requested and name in case.limits.defaults:
            assert level == case.limits.defaults[name]


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(NAMES), st.lists(shares, min_size=2, max_size=8))
def test_who_asks_for_more_never_gets_less(case: Case, name: str, values: list[float]) -> None:
    levels = [grant({name: value}, case.limits, case.allowed).control[name] for value in sorted(values)]
    assert all(low <= high for low, high in pairwise(levels))


@settings(max_examples=80, deadline=None)
@given(cases(calibrated=False), requests)
def test_asking_for_what_was_granted_changes_nothing(case: Case, requested: Mapping[str, float]) -> None:
    control = grant(requested, case.limits, case.allowed).control
    again = grant(control, case.limits, case.allowed)
    assert again.control == control
    assert {report.why for report in again.dials.values()} == {"as requested"}


@settings(max_examples=80, deadline=None)
@given(cases(), requests)
def test_between_floor_and_ceiling_the_model_s_own_meaning_of_a_value_holds(
    case: Case, requested: Mapping[str, float]
) -> None:
    for name, value in requested.items():
        meant = case.model.quantise(name, value)
        floor, ceiling = case.limits.floors.get(name, 0.0), case.limits.ceilings.get(name, 1.0)
        if floor <= meant <= ceiling:
            assert grant(requested, case.limits, case.allowed).control[name] == meant


@settings(max_examples=80, deadline=None)
@given(cases())
def test_floors_and_ceilings_may_come_in_any_order_and_twice(case: Case) -> None:
    floors, ceilings = case.limits.floors, case.limits.ceilings
    held = case.model.with_floors(floors).with_ceilings(ceilings)
    assert case.model.with_ceilings(ceilings).with_floors(floors) == held
    assert held.with_floors(floors).with_ceilings(ceilings) == held


@settings(max_examples=80, deadline=None)
@given(cases(), requests)
def test_the_reason_says_what_happened(case: Case, requested: Mapping[str, float]) -> None:
    for name, report in grant(requested, case.limits, case.allowed).dials.items():
        if report.requested is None:
            assert report.why == "not given: the default"
        elif report.why.startswith("raised"):
            assert report.requested < report.granted == case.limits.floors[name]
        elif report.why.startswith("lowered"):
            assert report.requested > report.granted == case.limits.ceilings[name]
        elif report.why == "as requested":
            assert report.requested == report.granted
        else:
            assert report.why == ("by its calibration" if name in case.model.thresholds else "the nearest level")


@settings(max_examples=80, deadline=None)
@given(cases(), requests)
def test_a_floor_that_refuses_grants_nothing_below_it(case: Case, requested: Mapping[str, float]) -> None:
    below: BelowFloor = "refuse"
    limits = DialLimits(case.limits.floors, case.limits.ceilings, case.limits.defaults, below)
    is_below = [name for name, value in requested.items() if value < limits.floors.get(name, 0)]
    if not is_below:
        assert grant(requested, limits, case.allowed) == grant(requested, case.limits, case.allowed)
        return
    with pytest.raises(Refusal) as caught:
        grant(requested, limits, case.allowed)
    assert (caught.value.status, caught.value.code) == (403, "below_floor")
    assert caught.value.param in is_below


def test_a_value_below_the_floor_is_raised_or_refused() -> None:
    limits = DialLimits(floors={"safety": 0.75})
    granted = grant({"safety": 0.2}, limits, limits.on(FORMAT)).dials["safety"]
    assert granted.values() == {"requested": 0.2, "granted": 0.75, "why": "raised to the floor 0.75"}
    refusing = DialLimits(floors={"safety": 0.75}, below_floor="refuse")
    with pytest.raises(Refusal, match=r"safety: got 0\.2, allowed is 0\.75 or more"):
        grant({"safety": 0.2}, refusing, refusing.on(FORMAT))


def test_a_calibrated_value_that_means_less_than_the_floor_is_raised_to_it() -> None:
    """From 0.9 on 0.75 is meant, from 0.95 on 1: 0.8 means 0.5, and the floor is 0.75."""
    calibrated = ControlFormat(FORMAT.attributes, thresholds={"safety": (0.1, 0.2, 0.9, 0.95)})
    limits = DialLimits(floors={"safety": 0.75})
    allowed = limits.on(calibrated)
    assert grant({"safety": 0.8}, limits, allowed).control["safety"] == 0.75
    assert grant({"safety": 0.95}, limits, allowed).control["safety"] == 1
    assert allowed.thresholds_of("safety") == (0.95,)


def test_limits_that_a_model_cannot_hold_are_never_dropped() -> None:
    only_helpfulness = ControlFormat(FORMAT.attributes[:1])
    for limits in (
        DialLimits(floors={"safety": 0.5}),
        DialLimits(ceilings={"safety": 0.5}),
        DialLimits(defaults={"safety": 0.5}),
    ):
        with pytest.raises(DialError, match="no dial 'safety'"):
            limits.on(only_helpfulness)
    for limits in (
        DialLimits(floors={"safety": 0.6}),
        DialLimits(floors={"safety": 0.75}, ceilings={"safety": 0.5}),
        DialLimits(floors={"safety": 0.75}, defaults={"safety": 0.5}),
        DialLimits(ceilings={"safety": 0.5}, defaults={"safety": 1.0}),
    ):
        with pytest.raises(DialError, match="allowed are its levels"):
            limits.on(FORMAT)


def test_the_model_s_own_default_is_moved_between_floor_and_ceiling() -> None:
    low = ControlFormat(FORMAT.attributes, defaults={"safety": 0.0, "helpfulness": 1.0})
    limits = DialLimits(floors={"safety": 0.5}, ceilings={"helpfulness": 0.25})
    assert grant({}, limits, limits.on(low)).control == {"helpfulness": 0.25, "safety": 0.5}


def test_an_unknown_dial_is_told_with_the_nearest() -> None:
    with pytest.raises(Refusal, match=r"there is no dial 'safty' \(did you mean 'safety'\?\)") as caught:
        grant({"safty": 0.2}, DialLimits(), FORMAT)
    assert (caught.value.status, caught.value.param) == (400, "safty")


def test_unknown_dials_fill_no_error_however_many_and_long() -> None:
    with pytest.raises(Refusal) as caught:
        grant({f"{number}{'x' * 100_000}": 0.2 for number in range(100)}, DialLimits(), FORMAT)
    assert len(str(caught.value.body())) < 1000


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.5, 1e-320, -0.0])
def test_numbers_from_0_to_1_are_dial_values(value: float) -> None:
    assert dial_value("safety", value, "safety") == value


DEEP: list[object] = []
for _ in range(10_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        True, False, None, "0.5", "", [0.5], {"safety": 1}, -0.1, 1.1, 2, -1, math.nan, math.inf, -math.inf,
        10**400, -(10**5000), "x" * 10**6, DEEP,
    ],
    ids=range(18),
)  # fmt: skip
def test_anything_else_is_none(value: object) -> None:
    with pytest.raises(Refusal, match="allowed is a number from 0 to 1") as caught:
        dial_value("safety", value, "chat_template_kwargs.safety")
    assert (caught.value.status, caught.value.param) == (400, "safety")
    assert caught.value.message.startswith("chat_template_kwargs.safety: got ") and len(caught.value.message) < 200
