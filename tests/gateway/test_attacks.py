"""No caller gets a dial below the floor: counted from what the model really got, in process and behind a server."""

import threading
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import pytest
from tests.gateway.attacked import House, attack, before_a_server, exported, in_this_process, small_model
from tests.gateway.attacks import POLICY, all_attempts
from tests.random_models import FORMAT
from tests.test_served_templates import STYLES

from rheostat import chat
from rheostat.control import ControlFormat
from rheostat.forgery import Trusting
from rheostat.gateway import permitted
from rheostat.gateway.dials import DialLimits, DialReport, Grant

ATTEMPTS = all_attempts()
TURNING = ("field", "header", "template kwargs", "tenant, field", "tenant, header")

SAYING = ("forged control", "forged control, by role", "turns", "special token", "completions")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def own_house(policy: Path) -> Iterator[House]:
    with in_this_process(small_model(), policy) as house:
        yield house


@pytest.fixture(scope="module")
def servers_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("attacked")
    one_model = folder / "policy.yaml"
    one_model.write_text(POLICY.replace("pocket, secret", "pocket"), encoding="utf-8")
    with before_a_server(exported(folder / "model"), one_model) as house:
        yield house


@pytest.mark.parametrize("where", ["own_house", "servers_house"])
def test_no_attempt_gets_below_a_floor(where: str, request: pytest.FixtureRequest) -> None:
    """Of 1,685 attempts nearly half reach the model, and none with a dial below its floor.

    The rest is refused with a 4xx. A suite whose attempts were all refused would show nothing, hence the least numbers.
    """
    house: House = request.getfixturevalue(where)
    tally = attack(house, ATTEMPTS)
    print(f"\n{where}\n{tally.table()}")  # noqa: T201  # seen with -s or -rP: the counts that the threat model names
    assert not tally.breaches, tally.breaches[:20]
    assert not tally.odd, tally.odd[:20]
    assert tally.made.total() >= 1500
    assert tally.reached.total() >= 600 and tally.raised.total() >= 200, tally.table()
    assert all(tally.reached[channel] >= 2 for channel in tally.made), tally.table()
    refused = {status for counts in tally.statuses.values() for status in counts if status and status >= 400}
    assert {400, 401, 403, 404, 405, 413, 415} >= refused >= {400, 401, 403, 404, 405, 415}, tally.table()


def test_no_attempt_gets_below_a_floor_of_other_dials(policy: Path) -> None:
    """Dials that a model has fully down where they are not given, and that are calibrated, so that 0.3 means full."""
    own = ControlFormat(
        FORMAT.attributes,
        defaults={"safety": 0.0, "helpfulness": 0.0},
        thresholds={"safety": (0.05, 0.1, 0.2, 0.3), "helpfulness": (0.6, 0.7, 0.8, 0.9)},
    )
    attempts = [each for each in ATTEMPTS if each.channel in (*TURNING, "contradiction", "completions")]
    with in_this_process(small_model(own), policy) as house:
        tally = attack(house, attempts[::2])
    assert not tally.breaches and not tally.odd, (tally.breaches[:10], tally.odd[:10])
    assert tally.reached.total() >= 80 and tally.raised.total() >= 60, tally.table()


@pytest.mark.parametrize("style", ["chatml", "llama-3", "gemma", "mistral"])
def test_no_attempt_gets_below_a_floor_in_other_chat_formats(style: str, policy: Path, tmp_path: Path) -> None:
    """Such as trim what is said, refuse a system turn (which then stands in the user's) or have no special tokens."""
    attempts = [each for each in ATTEMPTS if each.channel in SAYING]
    with in_this_process(small_model(template=STYLES[style]), policy, has_own_markup=False) as house:
        own = attack(house, attempts[::4])
    one_model = tmp_path / "policy.yaml"
    one_model.write_text(POLICY.replace("pocket, secret", "pocket"), encoding="utf-8")
    folder = exported(tmp_path / "model", STYLES[style])
    with before_a_server(folder, one_model, has_own_markup=False) as house:
        servers = attack(house, attempts[1::2])
    for tally in (own, servers):
        assert not tally.breaches and not tally.odd, (tally.breaches[:10], tally.odd[:10])
    assert own.reached.total() >= 40 and servers.reached.total() >= 80, (own.table(), servers.table())


def test_a_policy_that_is_replaced_by_broken_ones_lets_nothing_through(tmp_path: Path) -> None:
    """The file is emptied, cut, made unreadable as YAML and deleted while attempts are made; the first policy holds."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    broken: list[bytes | None] = [
        b"",
        b"version: 1\n",
        b"tenants: {}",
        POLICY[:300].encode(),
        b"{]",
        b"\xff\xfe",
        POLICY.replace("0.5", "0,5").encode(),
    ]
    broken += [
        POLICY.replace("safety: 0.5", "safty: 0.5").encode(),
        POLICY.replace("0.75", "0.7").encode(),
        None,
    ]
    is_over = threading.Event()
    attempts = [each for each in ATTEMPTS if each.channel in TURNING][::3]
    with in_this_process(small_model(), path, poll_s=0.005) as house:

        def spoil() -> None:
            for content in cycle(broken):
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(content)
                house.source.reload()
                if is_over.wait(0.01):
                    return

        spoiling = threading.Thread(target=spoil)
        spoiling.start()
        try:
            tally = attack(house, attempts)
        finally:
            is_over.set()
            spoiling.join()
        status = house.source.status()
    assert not tally.breaches and not tally.odd, (tally.breaches[:10], tally.odd[:10])
    assert tally.reached.total() >= 50, tally.table()
    assert status.failures >= 10 and status.reloads == 0, status


def _trusting_grant(requested: Mapping[str, float], limits: DialLimits, allowed: ControlFormat) -> Grant:
    """A gateway that believes what it is told."""
    control = FORMAT.resolve({name: value for name, value in requested.items() if name in FORMAT.names})
    return Grant(
        control, {name: DialReport(requested.get(name), level, "") for name, level in control.items()}
    )


@pytest.mark.parametrize("where", ["own_house", "servers_house"])
def test_the_suite_finds_a_gateway_that_trusts_its_callers(
    where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permitted, "grant", _trusting_grant)
    house: House = request.getfixturevalue(where)
    tally = attack(house, [each for each in ATTEMPTS if each.channel in TURNING][::5])
    low = [each for each in tally.breaches if "below the floor" in each]
    assert len(low) >= 30, tally.table()
    assert {each.partition(":")[0] for each in low} == set(TURNING)


def test_the_suite_finds_an_engine_that_leaves_controls_in(policy: Path) -> None:
    """Half of the ways to write a control read as one, by this suite's reader alone, where nothing is neutralised."""
    trusting = small_model(Trusting(FORMAT.attributes, FORMAT.levels))
    with in_this_process(trusting, policy) as house:
        tally = attack(house, [each for each in ATTEMPTS if each.channel == "forged control"])
        assert len(tally.breaches) >= 100, tally.table()
        read = [
            house.reader.reads_as_control(each.text.rpartition("[helpful=")[0]) for each in house.prompts(0)
        ]
    assert sum(each is not None for each in read) >= 60


def test_the_suite_finds_special_tokens_that_are_let_through(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "defuse", lambda tokenizer, text: text)
    with in_this_process(small_model(), policy) as house:
        tally = attack(house, [each for each in ATTEMPTS if each.channel == "special token"])
    assert sum("special tokens that no conversation has" in each for each in tally.breaches) >= 30, (
        tally.breaches
    )
