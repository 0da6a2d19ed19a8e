"""The policy file: read whole or refused whole, with every problem told and no key repeated."""

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.policies import (
    EXPIRED_KEY,
    FORMAT,
    KEY,
    MODELS,
    OTHER_KEY,
    POLICY,
    UNKNOWN_KEY,
    at,
    policy,
)

from rheostat.control import LEVELS, ControlFormat
from rheostat.errors import ConfigError
from rheostat.gateway.keys import hash_key, new_key
from rheostat.gateway.policy import local_tenant, read_policy
from rheostat.gateway.policy_source import PolicySource

HASH = hash_key(KEY)
BARE = f"version: 1\ntenants:\n  a: {{keys: [{{id: k, sha256: {HASH}}}]}}\n"
COARSE = ControlFormat(FORMAT.attributes, levels={"safety": (0.5, 1.0), "helpfulness": (0.0, 1.0)})
ONE_DIAL = ControlFormat(FORMAT.attributes[:1])
TWO = {"pocket": FORMAT, "coarse": COARSE}


def of_a(text: str) -> str:
    """A policy file whose tenant `a` has these keys too."""
    return BARE.replace("{keys", f"{{{text}, keys")


def problems(text: str, models: Mapping[str, ControlFormat] = MODELS) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read_policy(text, models, name="p")
    return tuple(problem.removeprefix("p: ") for problem in caught.value.problems)


def test_a_tenant_is_everyone_s_limits_and_its_own_made_one() -> None:
    found = policy(
        """
        version: 1
        everyone:
          floors: {safety: 0.5, helpfulness: 0.25}
          ceilings: {helpfulness: 0.75}
          defaults: {safety: 1, helpfulness: 0.5}
          system_turn: refuse
          requests_per_minute: 100
          tokens_per_minute: 1000
          scores: true
          audit_texts: true
          guard: {samples: 4}
        tenants:
          plain: {}
          own:
            floors: {safety: 0.75, helpfulness: 0}
            ceilings: {helpfulness: 1}
            defaults: {helpfulness: 0.75}
            below_floor: refuse
            system_turn: allow
            requests_per_minute: 10
            tokens_per_minute: 9999
            max_tokens: 7
            scores: false
            audit_texts: false
            guard: {samples: 2, refusal: No.}
        """
    )
    plain, own = found.tenants["plain"], found.tenants["own"]
    assert plain.limits.floors == {"safety": 0.5, "helpfulness": 0.25}
    assert own.limits.floors == {"safety": 0.75, "helpfulness": 0.25}
    assert own.limits.ceilings == {"helpfulness": 0.75}
    assert own.dials["pocket"].levels_of("helpfulness") == (0.25, 0.5, 0.75)
    assert own.limits.defaults == {"safety": 1, "helpfulness": 0.75}
    assert (plain.limits.below_floor, own.limits.below_floor) == ("raise", "refuse")
    assert not plain.allows_system_turn and not own.allows_system_turn
    assert (plain.requests_per_minute, own.requests_per_minute) == (100, 10)
    assert (plain.tokens_per_minute, own.tokens_per_minute) == (1000, 1000)
    assert (plain.max_tokens, own.max_tokens) == (None, 7)
    assert (plain.allows_scores, own.allows_scores) == (True, False)
    assert (plain.audits_texts, own.audits_texts) == (True, False)
    assert plain.guard and own.guard and (plain.guard.samples, own.guard.samples) == (4, 2)


def test_what_everyone_is_refused_no_tenant_allows_itself() -> None:
    found = policy(f"{of_a('scores: true, below_floor: raise')}everyone: {{scores: false, below_floor: refuse}}\n")
    assert not found.tenants["a"].allows_scores and found.tenants["a"].limits.below_floor == "refuse"


bounds = st.dictionaries(st.sampled_from(FORMAT.names), st.sampled_from(LEVELS))


@settings(max_examples=60, deadline=None)
@given(bounds, bounds, bounds, bounds)
def test_a_tenant_only_narrows(
    floors: dict[str, float], ceilings: dict[str, float], own_floors: dict[str, float], own_ceilings: dict[str, float]
) -> None:
    everyone = f"everyone: {{floors: {floors}, ceilings: {ceilings}}}\n".replace("'", "")
    text = of_a(f"floors: {own_floors}, ceilings: {own_ceilings}".replace("'", "")) + everyone
    try:
        found = policy(text)
    except ConfigError as error:
        assert all("above the ceiling" in problem for problem in error.problems)
        return
    for name in FORMAT.names:
        levels = found.tenants["a"].dials["pocket"].levels_of(name)
        low = max(floors.get(name, 0), own_floors.get(name, 0))
        high = min(ceilings.get(name, 1), own_ceilings.get(name, 1))
        assert levels == tuple(level for level in LEVELS if low <= level <= high)


def test_whose_key_it_is() -> None:
    found = policy()
    caller = found.caller(KEY, datetime.now(UTC))
    assert caller and (caller.tenant.name, caller.key_id) == ("shop", "shop-1")
    other = found.caller(OTHER_KEY, datetime.now(UTC))
    assert other and other.tenant.name == "lab"
    for nobody in (UNKNOWN_KEY, EXPIRED_KEY, HASH, "", "rheo-", KEY + " ", "é"):
        assert found.caller(nobody, datetime.now(UTC)) is None, nobody


def test_a_key_opens_nothing_from_its_expiry_on() -> None:
    found = policy(BARE.replace("id: k", "id: k, expires: 2027-01-31T01:00:00+01:00"))
    moment = at("2027-01-31T00:00:00")
    assert found.caller(KEY, moment - timedelta(microseconds=1))
    assert found.caller(KEY, moment) is None


def test_both_keys_open_while_one_replaces_the_other() -> None:
    found = policy(BARE.replace("}]", f"}}, {{id: l, sha256: {hash_key(OTHER_KEY).upper()}}}]"))
    callers = [found.caller(key, datetime.now(UTC)) for key in (KEY, OTHER_KEY)]
    assert [caller and caller.key_id for caller in callers] == ["k", "l"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got None, allowed is a block of keys"),
        ("- 1", "got [1], allowed is a block of keys"),
        ("version: 1", "tenants: missing, and it has no default"),
        ("version: 2\ntenants: {a: {}}", "version: got 2; input should be less than or equal to 1"),
        ("version: true\ntenants: {a: {}}", "version: got True; input should be a whole number"),
        ("version: 1\ntenants: {}", "tenants: got {}; allowed are 1 or more"),
        ("version: 1\ntenants: {1: {}}", "tenants.1: got 1; input should be text"),
        ("version: 1\ntenants: {a: }", "tenants.a: got None; input should be a block of keys"),
        (BARE + "tenants: {}", "it is not YAML: line 4, column 1: the key 'tenants' stands twice"),
        (of_a("floors: {safety: 1, safety: 0}"), "it is not YAML: line 3, column 27: the key 'safety' stands twice"),
        ("a: &a [1]\nb: *a", "it is not YAML: line 2, column 4: aliases (*a) are not taken here; write it out"),
        ("[" * 5000, "it is nested too deeply"),
        ("a: 2027-13-45", "it holds a value that cannot be read: month must be in 1..12"),
        (f"a: {'9' * 5000}", "it holds a value that cannot be read: Exceeds the limit (4300 digits) for integer string "
         "conversion: value has 5000 digits"),
        ("a: !!python/object/apply:os.system [x]", "it is not YAML: line 1, column 4: could not determine a "
         "constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        (of_a("floors: {safety: yes}"), "tenants.a.floors.safety: got True; input should be a number"),
        (of_a("floors: {safety: no}"), "tenants.a.floors.safety: got False; input should be a number"),
        (of_a("floors: {safety: '0.5'}"), "tenants.a.floors.safety: got '0.5'; input should be a number"),
        (of_a("floors: {safety: .nan}"), "tenants.a.floors.safety: got nan; input should be a finite number"),
        (of_a("floors: {safety: -1}"), "tenants.a.floors.safety: got -1; input should be greater than or equal to 0"),
        (of_a("floors: {safety: }"), "tenants.a.floors.safety: got None; input should be a number"),
        (of_a("floors: 0.5"), "tenants.a.floors: got 0.5; input should be a block of keys"),
        (of_a("requests_per_minute: true"), "tenants.a.requests_per_minute: got True; input should be a whole number"),
        (of_a("requests_per_minute: 0"),
         "tenants.a.requests_per_minute: got 0; input should be greater than or equal to 1"),
        (of_a("max_tokens: 1e3"), "tenants.a.max_tokens: got '1e3'; input should be a whole number"),
        (of_a("scores: 1"), "tenants.a.scores: got 1; input should be true or false"),
        (of_a("below_floor: yes"), "tenants.a.below_floor: got True; input should be 'raise' or 'refuse'"),
        (of_a("guard: yes"), "tenants.a.guard: got True; input should be a block of keys"),
        (of_a("models: []"), "tenants.a.models: got []; allowed are 1 or more"),
        (of_a("models: [pokcet]"),
         "tenants.a.models: got 'pokcet' (did you mean 'pocket'?), allowed are pocket"),
        (of_a("floors: {safty: 1}"), "tenants.a.floors.safty: the model pocket has no such dial (did you mean "
         "'safety'?); it has helpfulness, safety"),
        (of_a("ceilings: {safety: 0.3}"),
         "tenants.a.ceilings.safety: got 0.3, allowed are the levels of the model pocket: 0, 0.25, 0.5, 0.75, 1"),
        (of_a("floors: {safety: 0.75}, ceilings: {safety: 0.5}"),
         "tenants.a: safety: got the floor 0.75 above the ceiling 0.5"),
        (of_a("floors: {safety: 0.75}, defaults: {safety: 0.5}"),
         "tenants.a: safety: got the default 0.5, allowed is from the floor 0.75 to the ceiling 1"),
        (BARE.replace("id: k", "id: k, expires: 2027-01-31"),
         "tenants.a.keys.0.expires: got 2027-01-31, allowed is a moment with its time zone, as 2027-01-31T00:00:00Z"),
        (BARE.replace("id: k", "id: k, expires: 2027-01-31T00:00:00"), "tenants.a.keys.0.expires: got "
         "2027-01-31T00:00:00, allowed is a moment with its time zone, as 2027-01-31T00:00:00Z"),
        (BARE.replace("id: k", "id: k, expires: 20270131"), "tenants.a.keys.0.expires: got another value, allowed is a "
         "moment with its time zone, as 2027-01-31T00:00:00Z"),
        (BARE.replace("id: k", "id: a b"), "tenants.a.keys.0.id: got 'a b'; string should match pattern "
         "'^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'"),
        (BARE.replace("}]", f"}}, {{id: k, sha256: '{'0' * 64}'}}]"),
         "tenants: got the key id k twice, allowed is each once"),
        (BARE.replace("}]", f"}}, {{id: l, sha256: {HASH.upper()}}}]"),
         f"tenants: got the key sha256 {HASH} twice, allowed is each once"),
        (BARE + "audit: {path: ''}", "audit.path: got ''; string should have at least 1 character"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_place_what_was_given_and_what_is_allowed(text: str, said: str) -> None:
    assert problems(text) == (said,)


@pytest.mark.parametrize(
    "given_hash", [HASH[:-1], HASH + "0", "g" * 64, "0x" + HASH[2:], "sk-" + "s" * 45, "1234", "''", "0" * 64]
)
def test_a_hash_of_another_form_is_refused_and_not_repeated(given_hash: str) -> None:
    (problem,) = problems(BARE.replace(HASH, given_hash))
    assert re.fullmatch(
        r"tenants\.a\.keys\.0\.sha256: got (\d+ characters|int), allowed are the 64 hexadecimal digits "
        r"that `rheostat key` prints",
        problem,
    )


def test_all_problems_are_told_at_once() -> None:
    assert problems(of_a("floors: {safety: 2}, flors: {}, requests_per_minute: 0") + "audti: {}\n") == (
        "tenants.a.floors.safety: got 2; input should be less than or equal to 1",
        "tenants.a.requests_per_minute: got 0; input should be greater than or equal to 1",
        "tenants.a.flors: unknown key (did you mean 'floors'?); allowed are audit_texts, below_floor, ceilings, "
        "defaults, floors, guard, keys, max_tokens, "
        "models, requests_at_once, requests_per_minute, scores, system_turn, tokens_per_minute",
        "audti: unknown key (did you mean 'audit'?); allowed are audit, everyone, tenants, version",
    )
    found = problems(
        "version: 1\neveryone: {floors: {safety: 0.3}}\ntenants:\n  a: {models: [pokcet], defaults: {x: 1}}\n  b: {}\n"
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "tenants.a.models", "everyone.floors.safety", "tenants.a.defaults.x"
    ]  # fmt: skip


def test_a_floor_holds_for_every_model_that_may_be_asked() -> None:
    (problem,) = problems(of_a("floors: {safety: 0.75}"), TWO)
    assert problem == "tenants.a.floors.safety: got 0.75, allowed are the levels of the model coarse: 0.5, 1"
    found = read_policy(of_a("floors: {safety: 0.75}, models: [pocket]"), TWO)
    assert list(found.tenants["a"].dials) == ["pocket"]
    found = read_policy(of_a("floors: {safety: 1}"), TWO)
    assert [dials.levels_of("safety") for dials in found.tenants["a"].dials.values()] == [(1,), (1,)]


@pytest.mark.parametrize("kind", ["floors", "ceilings", "defaults"])
def test_a_limit_on_a_dial_that_a_model_lacks_is_never_dropped(kind: str) -> None:
    models = {"pocket": FORMAT, "small": ONE_DIAL}
    missing = next(name for name in FORMAT.names if name not in ONE_DIAL.names)
    (problem,) = problems(of_a(f"{kind}: {{{missing}: 1}}"), models)
    assert problem.startswith(f"tenants.a.{kind}.{missing}: the model small has no such dial")
    assert problems(f"{BARE}everyone: {{{kind}: {{{missing}: 1}}}}", models)[0].startswith(f"everyone.{kind}.{missing}")


def test_a_tenant_s_models_are_among_everyone_s() -> None:
    (problem,) = problems(of_a("models: [pocket, coarse]") + "everyone: {models: [pocket]}\n", TWO)
    assert problem == "tenants.a.models: got 'coarse', allowed are pocket"
    found = read_policy(f"{BARE}everyone: {{models: [coarse]}}\n", TWO)
    assert list(found.tenants["a"].dials) == ["coarse"]


def test_a_key_in_the_file_is_refused_and_never_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = new_key()
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    source = PolicySource(path, MODELS)
    for text in (
        BARE.replace(HASH, key),
        BARE.replace("id: k", f"id: {key}"),
        f"{BARE}# {key}",
        f"{BARE}audit: {{path: 'x{'x' * 60} Bearer {key}'}}",
        f"{key}: [",
        BARE.replace("  a:", f"  {key}:"),
        BARE.replace(f"{{id: k, sha256: {HASH}}}", key),
    ):
        with pytest.raises(ConfigError) as caught:
            policy(text)
        assert all(re.fullmatch(r"policy: line \d+: got a key itself, allowed is only its hash", problem)
                   for problem in caught.value.problems)  # fmt: skip
        path.write_text(text)
        with caplog.at_level(logging.DEBUG):
            assert not source.reload()
        for shown in (str(caught.value), repr(caught.value), repr(source.status()), caplog.text, repr(source.policy)):
            assert key not in shown and key[-20:] not in shown


def test_no_repr_of_a_policy_in_use_holds_a_key() -> None:
    found = policy()
    assert KEY not in repr(found) and KEY not in repr(found.caller(KEY, datetime.now(UTC)))


def test_without_a_policy_file_the_person_at_the_machine_has_no_limits() -> None:
    tenant = local_tenant(MODELS)
    assert tenant.dials["pocket"].grid() == FORMAT.grid()
    assert tenant.allows_system_turn and tenant.allows_scores and not tenant.audits_texts
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.max_tokens, tenant.guard) == (None,) * 4


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_no_text_is_more_than_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        policy(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(POLICY) - 1), st.characters(codec="utf-8"))
def test_a_changed_character_is_a_policy_or_refused(place: int, character: str) -> None:
    try:
        found = policy(POLICY[:place] + character + POLICY[place + 1 :])
    except ConfigError:
        return
    for tenant in found.tenants.values():
        for name, floor in tenant.limits.floors.items():
            assert tenant.dials["pocket"].levels_of(name)[0] == floor
