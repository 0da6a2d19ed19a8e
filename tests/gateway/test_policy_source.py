"""The policy in force: taken over whole, or not at all."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.gateway.policies import EXPIRED_KEY, KEY, MODELS, OTHER_KEY, POLICY, UNKNOWN_KEY

from rheostat.errors import ConfigError
from rheostat.gateway.guard_rewards import check_guards
from rheostat.gateway.keys import hash_key
from rheostat.gateway.policy import Policy
from rheostat.gateway.policy_source import LARGEST_BYTES, LocalSource, PolicySource
from rheostat.gateway.refusals import Refusal

NARROWER = POLICY.replace("floors: {safety: 0.5}", "floors: {safety: 0.75}", 1)
AUDITED = f"{POLICY}audit: {{path: audit.jsonl}}\n"
MISFITS = (
    "!!bool maybe",
    "!!timestamp x",
    "!!timestamp ''",
    "!!int ''",
    "!!int '-'",
    "!!int 0x",
    "!!int '1:x'",
    "!!float ''",
    "!!float x",
    "!!map x",
    "!!set [a]",
    "!!omap x",
    "!!binary é",
    "2020-01-01T00:00:00+99:99",
    '"\\U99999999"',
)
"""Values that PyYAML reads with a `KeyError`, `AttributeError`, `IndexError`, `OverflowError` and others of its own."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def floor_of(source: PolicySource, key: str = KEY) -> float:
    return source.caller(key).tenant.limits.floors["safety"]


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def refusal(ask: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask()
    return caught.value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "got None, allowed is a block of keys"),
        (b"version: 1\n", "tenants: missing"),
        (b"\xff\xfe", "line 1: got bytes that are not UTF-8"),
        (b"a: [", "not YAML"),
        (b"#" * (LARGEST_BYTES + 1), f"got more than {LARGEST_BYTES} bytes"),
    ],
)
def test_a_bad_file_is_no_source(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        PolicySource(path, MODELS)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("value", MISFITS)
def test_a_tag_that_does_not_fit_its_value_is_said_at_the_start(path: Path, value: str) -> None:
    path.write_text(POLICY.replace("60", value))
    with pytest.raises(ConfigError, match="not YAML|cannot be read") as caught:
        PolicySource(path, MODELS)
    assert str(path) in caught.value.message


def test_no_file_a_folder_and_a_pipe_are_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "no regular file|Is a directory"),
        (tmp_path / "pipe", "no regular file"),
    ):
        with pytest.raises(ConfigError, match=said):
            PolicySource(path, MODELS)


@pytest.mark.parametrize("write", [replace, lambda path, text: path.write_text(text)], ids=["renamed", "in place"])
def test_a_new_policy_is_in_force_whole(path: Path, write: Callable[[Path, str], object]) -> None:
    source = PolicySource(path, MODELS)
    before = source.policy
    write(path, NARROWER)
    assert source.reload()
    assert (floor_of(source), source.status().reloads) == (0.75, 1)
    assert before.digest != source.policy.digest == source.status().digest
    assert source.status().last_error is None


def test_a_byte_order_mark_is_no_fault(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + POLICY.encode())
    assert floor_of(PolicySource(path, MODELS)) == 0.5


def test_a_file_that_fails_leaves_the_last_good_policy(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = PolicySource(path, MODELS)
    before = source.policy
    path.write_text(POLICY.replace("0.5", "0.55"))
    with caplog.at_level(logging.INFO, "rheostat.gateway"):
        assert [source.reload() for _ in range(3)] == [False] * 3
    assert source.policy is before
    status = source.status()
    assert status.failures == 1 and "0.55" in (status.last_error or "")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    caplog.clear()
    path.write_text("version: 2\n")
    source.reload()
    assert source.status().failures == 2 and len(caplog.records) == 1
    path.write_text(POLICY)
    assert source.reload()
    assert source.status().last_error is None


def test_a_deleted_file_leaves_the_last_good_policy_and_is_taken_up_again(path: Path) -> None:
    source = PolicySource(path, MODELS)
    path.unlink()
    assert not source.reload()
    assert floor_of(source) == 0.5
    assert "No such file" in (source.status().last_error or "")
    path.write_text(NARROWER)
    assert source.reload()
    assert floor_of(source) == 0.75


def test_half_of_a_file_that_is_being_written_is_never_in_force(path: Path) -> None:
    """Cut before the floors of the tenant `lab`, the file is a policy too, and a weaker one."""
    source = PolicySource(path, MODELS)
    half = NARROWER.replace("    floors: {safety: 0.75}\n", "").replace("everyone:\n  floors: {safety: 0.75}\n", "")
    assert "floors" not in half
    path.write_text(half)
    assert not source.look()
    assert floor_of(source, OTHER_KEY) == 0.75
    path.write_text(NARROWER)
    assert not source.look()
    assert (source.look(), floor_of(source)) == (True, 0.75)
    assert source.status().reloads == 1


def test_every_cut_of_a_file_is_refused_or_held_back(path: Path) -> None:
    source = PolicySource(path, MODELS)
    before = source.policy
    for end in range(len(NARROWER)):
        path.write_text(NARROWER[:end])
        source.look()
        assert source.policy is before
    path.write_text(NARROWER)
    source.look()
    assert source.look()
    assert floor_of(source) == 0.75


@pytest.mark.parametrize(("start", "then"), [(POLICY, AUDITED), (AUDITED, POLICY)])
def test_another_audit_log_needs_a_restart(path: Path, start: str, then: str) -> None:
    path.write_text(start)
    source = PolicySource(path, MODELS)
    audit = source.audit
    path.write_text(then.replace("0.5", "0.75"))
    assert not source.reload()
    assert "audit" in (source.status().last_error or "")
    assert floor_of(source) == 0.5 and source.audit == audit
    path.write_text(start.replace("0.5", "0.75"))
    assert source.reload()


class Heard(logging.Handler):
    """Sets an event of a loop at each record."""

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.event = asyncio.get_running_loop(), asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.loop.call_soon_threadsafe(self.event.set)


@pytest.mark.parametrize("asked", [False, True], ids=["polled", "asked to"])
def test_the_file_is_watched(path: Path, asked: bool) -> None:
    async def run() -> None:
        heard, logger = Heard(), logging.getLogger("rheostat.gateway")
        logger.addHandler(heard)
        level = logger.level
        logger.setLevel(logging.INFO)
        source = PolicySource(path, MODELS, poll_s=3600 if asked else 0.01)
        assert not source.status().is_watched
        source.reload_soon()  # nothing watches yet: nothing to do
        before = signal.signal(signal.SIGHUP, lambda *_: source.reload_soon())
        await source.start()
        try:
            for text, floor in ((NARROWER, 0.75), ("half: [", 0.75), (POLICY, 0.5)):
                heard.event.clear()
                replace(path, text)
                if asked:
                    os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.wait_for(heard.event.wait(), 60)
                assert floor_of(source) == floor
            assert source.status().is_watched and source.status().failures == 1
        finally:
            await source.stop()
            signal.signal(signal.SIGHUP, before)
            logger.removeHandler(heard)
            logger.setLevel(level)
        assert not source.status().is_watched
        assert floor_of(source) == 0.5

    asyncio.run(run())


WITHOUT_SHOP = POLICY.replace(f"      - {{id: shop-1, sha256: {hash_key(KEY)}}}\n", "")


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.002)


def test_a_key_is_taken_away_after_whatever_stood_in_the_file(path: Path) -> None:
    async def run() -> None:
        source = PolicySource(path, MODELS, poll_s=0.002)
        await source.start()
        for place, value in enumerate(MISFITS):
            replace(path, POLICY.replace("60", value))
            await until(lambda place=place: source.status().failures == place + 1)  # type: ignore[misc]
            assert source.caller(KEY).tenant.name == "shop" and source.status().is_watched
        replace(path, WITHOUT_SHOP)
        await until(lambda: source.status().reloads == 1)
        assert refusal(partial(source.caller, KEY)).status == 401
        assert source.status().last_error is None
        await source.stop()

    asyncio.run(run())


def test_an_exception_of_any_kind_does_not_end_the_watching(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once with its traceback, and counted; the next file is read."""

    def fail(policy: Policy) -> None:
        raise MemoryError("for a test")

    async def run() -> None:
        source = PolicySource(path, MODELS, poll_s=0.002)
        passes, source.check = source.check, fail
        await source.start()
        replace(path, WITHOUT_SHOP)
        await until(lambda: source.status().failures == 1)
        await asyncio.sleep(0.05)
        status = source.status()
        assert status.is_watched and status.failures == 1 and "MemoryError" in (status.last_error or "")
        assert source.caller(KEY).tenant.name == "shop"
        source.check = passes
        replace(path, f"{WITHOUT_SHOP}# again\n")
        await until(lambda: source.status().reloads == 1)
        assert refusal(partial(source.caller, KEY)).status == 401
        await source.stop()

    asyncio.run(run())
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.exc_info is not None and "for a test" in caplog.text


def test_stopping_raises_nothing_of_a_watcher_that_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        source = PolicySource(path, MODELS)

        async def end() -> None:
            raise LookupError("for a test")

        monkeypatch.setattr(source, "_watch", end)
        await source.start()
        await until(lambda: not source.status().is_watched)
        await source.stop()

    asyncio.run(run())


def test_expired_and_unknown_keys_are_refused_in_the_same_words(path: Path) -> None:
    source = PolicySource(path, MODELS)
    assert source.caller(KEY).key_id == "shop-1"
    assert source.caller(OTHER_KEY).tenant.name == "lab"
    expired, unknown = (refusal(partial(source.caller, key)) for key in (EXPIRED_KEY, UNKNOWN_KEY))
    assert (expired.status, expired.body()) == (unknown.status, unknown.body())
    assert (unknown.status, unknown.code) == (401, "invalid_api_key")
    for missing in (None, ""):
        assert refusal(partial(source.caller, missing)).status == 401
    assert UNKNOWN_KEY not in str(unknown) and UNKNOWN_KEY not in repr(unknown)


def test_the_key_of_a_process_opens_it_alone() -> None:
    source = LocalSource(MODELS, key=KEY)
    assert source.caller(KEY).tenant.allows_scores
    assert refusal(lambda: source.caller(OTHER_KEY)).body() == refusal(lambda: source.caller("x")).body()
    assert refusal(lambda: source.caller(None)).status == 401
    assert KEY not in repr(source) and KEY not in repr(source.status()) and KEY not in repr(source.caller(KEY))
    assert source.audit is None and source.status().digest is None


def test_without_a_key_any_and_none_is_taken() -> None:
    source = LocalSource(MODELS, key=None)
    assert source.caller(None) == source.caller("sk-whatever")
    asyncio.run(source.start())
    asyncio.run(source.stop())


def test_a_policy_that_asks_for_what_is_not_served_is_refused_and_the_last_one_stays(path: Path) -> None:
    source = PolicySource(path, MODELS)
    source.check = partial(check_guards, scored=None)
    replace(path, NARROWER.replace("  shop:\n", "  shop:\n    guard: {samples: 4}\n", 1))
    assert not source.reload()
    assert floor_of(source) == 0.5
    assert "there are no reward models to score with" in (source.status().last_error or "")
    replace(path, NARROWER)
    assert source.reload() and floor_of(source) == 0.75
