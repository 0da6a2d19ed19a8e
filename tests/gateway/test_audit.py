"""The audit log: whole lines whatever fails, one writer, no line lost in silence."""

import asyncio
import errno
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.errors import StorageError
from rheostat.gateway.audit import AuditEntry, AuditLog
from rheostat.gateway.dials import DialReport
from rheostat.gateway.policy_file import AuditBlock
from rheostat.gateway.refusals import Refusal
from rheostat.records import Message

MOMENT = datetime(2026, 11, 27, 21, 42, 43, 677_999, tzinfo=timezone(timedelta(hours=2)))
KIBIBYTE = 1 / 1024


def entry(request: str = "r1", **more: Any) -> AuditEntry:
    return AuditEntry(time=MOMENT, request=request, route="POST /v1/chat/completions", status=200, **more)


def opened(path: Path, **more: Any) -> AuditLog:
    return AuditLog(AuditBlock(path=str(path), **more))


def write(log: AuditLog, *entries: AuditEntry) -> None:
    async def all_of_them() -> None:
        for each in entries:
            await log.write(each)

    asyncio.run(all_of_them())


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text.endswith(b"\n") or not text
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_line_says_all_of_a_request(path: Path) -> None:
    log = opened(path)
    dials = {"safety": DialReport(0.2, 0.75, "raised to the floor 0.75"), "helpfulness": DialReport(None, 1.0, "…")}
    write(
        log,
        entry(
            tenant="kids", key="kids-1", policy="ab" * 32, model="m", stream=True, dials=dials, prompt_tokens=12,
            completion_tokens=30, queue_ms=1.23456, first_token_ms=20.0, total_ms=200.1, finish=("stop",),
            guard={"samples": 8, "reached_floors": 3, "refused": False}, scores={"safety": 0.8},
        ),
    )  # fmt: skip
    assert lines(path) == [
        {
            "time": "2026-11-27T19:42:43.677Z",
            "request": "r1",
            "route": "POST /v1/chat/completions",
            "status": 200,
            "tenant": "kids",
            "key": "kids-1",
            "policy": "abababababab",
            "model": "m",
            "stream": True,
            "dials": {
                "safety": {"requested": 0.2, "granted": 0.75, "why": "raised to the floor 0.75"},
                "helpfulness": {"requested": None, "granted": 1.0, "why": "…"},
            },
            "prompt_tokens": 12,
            "completion_tokens": 30,
            "queue_ms": 1.235,
            "first_token_ms": 20.0,
            "total_ms": 200.1,
            "finish": ["stop"],
            "guard": {"samples": 8, "reached_floors": 3, "refused": False},
            "scores": {"safety": 0.8},
            "refusal": None,
        }
    ]
    assert log.lines == 1


def test_texts_are_absent_unless_they_are_given(path: Path) -> None:
    log = opened(path)
    write(log, entry(), entry(messages=[Message("user", "hi")], answers=["ho"]))
    plain, texts = lines(path)
    assert "messages" not in plain and "answers" not in plain
    assert (texts["messages"], texts["answers"]) == ([{"role": "user", "content": "hi"}], ["ho"])


@given(st.text(st.characters()), st.text(st.characters()))
def test_no_text_breaks_a_line_or_ends_it_early(text: str, key: str) -> None:
    line = entry(key, key=key, messages=[Message("user", text)], answers=[text]).line()
    assert line.count(b"\n") == 1 and line.isascii() and b"\r" not in line
    values = json.loads(line)
    assert (values["messages"][0]["content"], values["answers"], values["key"]) == (text, [text], key)


def test_a_nan_is_our_own_fault_and_not_a_line(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        entry(scores={"safety": float("nan")}).line()


def test_the_log_is_for_its_owner_alone(path: Path) -> None:
    log = opened(path, rotate_mb=KIBIBYTE)
    write(log, *[entry()] * 5)
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
    log.close()


def test_older_lines_stay_when_it_is_opened_again(path: Path) -> None:
    for request in ("a", "b"):
        log = opened(path)
        write(log, entry(request))
        log.close()
    assert [each["request"] for each in lines(path)] == ["a", "b"]


def test_a_line_that_a_crash_broke_is_ended_by_the_next(path: Path) -> None:
    path.write_bytes(entry("a").line() + b'{"time": "2026')
    write(opened(path), entry("b"))
    first, broken, last = path.read_bytes().splitlines()
    assert json.loads(first)["request"] == "a"
    assert broken == b'{"time": "2026'
    assert json.loads(last)["request"] == "b"


def test_a_killed_process_leaves_whole_lines(path: Path) -> None:
    """Killed while it writes as fast as it can: at most the last line is broken, and writing goes on after it."""
    code = (
        "import asyncio, sys\nfrom tests.gateway.test_audit import *\n"
        "log = opened(Path(sys.argv[1]), rotate_mb=1/64, keep=3)\nprint('ready', flush=True)\n"
        "async def go():\n    n = 0\n    while True:\n        await log.write(entry(str(n)))\n        n += 1\n"
        "asyncio.run(go())"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not (path.with_name(path.name + ".3")).exists():
            assert process.poll() is None
        process.kill()
    log = opened(path, rotate_mb=1 / 64, keep=3)
    write(log, entry("after"))
    log.close()
    numbers: list[int] = []
    for name in (".3", ".2", ".1", ""):
        file = path.with_name(path.name + name)
        if file.exists():
            numbers += [int(each["request"]) for each in lines(file) if each["request"] != "after"]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "none is missing, none is there twice"
    assert lines(path)[-1]["request"] == "after"


# --- One writer -------------------------------------------------------------------------------------------------------


def test_a_second_gateway_on_the_same_file_does_not_start(path: Path) -> None:
    log = opened(path)
    with pytest.raises(StorageError, match="another process holds"):
        opened(path)
    log.close()
    opened(path).close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_name_of_the_file_is_no_way_around(path: Path, link: Callable[[Path, Path], None]) -> None:
    log = opened(path)
    other = path.with_name("other.jsonl")
    link(path, other)
    with pytest.raises(StorageError, match="another process holds"):
        opened(other)
    log.close()


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        opened(tmp_path / "absent" / "audit.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="directory"):
        opened(tmp_path / "folder")


# --- Rotation ---------------------------------------------------------------------------------------------------------


def test_files_are_set_aside_by_size_and_the_oldest_go(path: Path) -> None:
    log = opened(path, rotate_mb=KIBIBYTE, keep=2)
    write(log, *[entry(str(number)) for number in range(20)])
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.lock",
    ]  # fmt: skip
    kept = [each["request"] for name in (".2", ".1", "") for each in lines(path.with_name(path.name + name))]
    assert kept == [str(number) for number in range(20 - len(kept), 20)]
    assert all(each.stat().st_size < 2048 for each in path.parent.iterdir())


def test_a_file_that_another_process_holds_is_not_overwritten(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = path.with_name("audit.jsonl.1")
    other = opened(held)
    write(other, entry("other's"))
    log = opened(path, rotate_mb=KIBIBYTE, keep=1)
    write(log, *[entry(str(number)) for number in range(10)])
    assert [each["request"] for each in lines(held)] == ["other's"]
    assert [each["request"] for each in lines(path)] == [str(number) for number in range(10)]
    assert log.rotation_fails and log.probe() is None
    assert [record.levelname for record in caplog.records] == ["ERROR"], "told, and once"
    assert "another process holds" in caplog.text
    other.close()
    write(log, *[entry(str(number)) for number in range(10, 20)])
    assert not log.rotation_fails
    kept = [each["request"] for file in (held, path) for each in lines(file)]
    assert kept == [str(number) for number in range(20 - len(kept), 20)]


def test_a_rotation_that_fails_half_way_loses_no_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file cannot be made: the old one gets its name back and goes on."""
    log = opened(path, rotate_mb=KIBIBYTE, keep=2)
    open_file = os.open

    def refuse(name: Path, flags: int, *more: Any) -> int:
        if Path(name) == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_file(name, flags, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        write(log, *[entry(str(number)) for number in range(6)])
        assert log.rotation_fails
    assert [each["request"] for each in lines(path)] == [str(number) for number in range(6)]
    write(log, *[entry(str(number)) for number in range(6, 12)])
    assert not log.rotation_fails
    kept = [each["request"] for name in (".2", ".1", "") for each in lines(path.with_name(path.name + name))]
    assert kept == [str(number) for number in range(12)]


def test_something_in_the_way_of_a_rotation_stays(path: Path) -> None:
    (path.with_name("audit.jsonl.1") / "inside").mkdir(parents=True)
    log = opened(path, rotate_mb=KIBIBYTE, keep=1)
    write(log, *[entry(str(number)) for number in range(10)])
    assert log.rotation_fails and len(lines(path)) == 10


def test_a_file_moved_by_someone_else_is_followed_by_a_new_one(path: Path) -> None:
    """As logrotate does; nobody has to tell the gateway."""
    log = opened(path)
    write(log, entry("a"))
    path.rename(path.with_name("moved"))
    write(log, entry("b"))
    path.unlink()
    write(log, entry("c"))
    assert [each["request"] for each in lines(path)] == ["c"]


# --- Faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(path: Path) -> Path:
    """A log on a disk that is full, until the link is made to point elsewhere."""
    path.symlink_to("/dev/full")
    return path


def repair(path: Path) -> None:
    path.unlink()
    path.touch()


def test_stop_refuses_until_a_line_can_be_written_again(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = opened(full)
    log.check()  # nothing has failed yet
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            write(log, entry("lost"))
        assert (caught.value.status, caught.value.code) == (503, "audit_unavailable")
    with pytest.raises(Refusal):
        log.check()
    assert log.probe() is not None and (log.lines, log.lost) == (0, 2)
    assert len(caplog.records) == 1, "once a minute"
    repair(full)
    assert log.probe() is None
    log.check()
    write(log, entry("kept"))
    noted, kept = lines(full)
    assert (noted["event"], noted["lost"]) == ("lines lost", 2) and kept["request"] == "kept"
    assert (log.lines, log.lost) == (1, 2)


def test_serve_goes_on_counts_and_says_so(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = opened(full, on_failure="serve")
    write(log, *[entry("lost")] * 3)
    log.check()
    assert log.lost == 3 and log.probe() is not None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "No space left" in caplog.text
    repair(full)
    write(log, entry("kept"))
    assert [each.get("lost") for each in lines(full)] == [3, None]
    assert log.probe() is None


@pytest.mark.parametrize("fault", [errno.EIO, errno.EROFS, errno.EDQUOT])
def test_any_fault_of_a_write_is_a_failure(path: Path, fault: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(path)

    def fail(file: int, data: bytes) -> int:
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(Refusal):
            write(log, entry())
        with pytest.raises(Refusal):
            log.check()
    log.check()
    write(log, entry("after"))
    assert lines(path)[-1]["request"] == "after"


def test_a_disk_that_fills_up_in_a_line_leaves_the_next_one_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(path)
    write(log, entry("a"))
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: whole(file, data[:10]))
        with pytest.raises(Refusal):
            write(log, entry("cut"))
    write(log, entry("b"))
    first, cut, noted, last = path.read_bytes().splitlines()
    assert cut == entry("cut").line()[:10]
    assert json.loads(first)["request"] == "a" and json.loads(last)["request"] == "b"
    assert json.loads(noted)["lost"] == 1


def test_a_folder_that_is_removed_is_a_failure_until_it_is_back(tmp_path: Path) -> None:
    """A write into a file that no longer has a name would succeed, and be lost."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = opened(folder / "audit.jsonl")
    write(log, entry("a"))
    folder.rename(tmp_path / "gone")
    with pytest.raises(Refusal):
        write(log, entry("b"))
    folder.mkdir()
    log.check()
    write(log, entry("c"))
    assert [each.get("request") for each in lines(folder / "audit.jsonl")] == [None, "c"]


def test_no_more_files_to_open_is_a_failure_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(path)
    path.unlink()

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(Refusal):
            write(log, entry())
    log.check()


# --- fsync ------------------------------------------------------------------------------------------------------------


def test_with_fsync_a_line_is_on_the_disk_before_write_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that come together share an fsync, and none returns before the one that covers it."""
    synced: list[int] = []
    sync = os.fsync

    def noted(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    log = opened(path, fsync=True)
    line = len(entry().line())

    async def one() -> None:
        await log.write(entry())
        assert synced[-1] >= line

    async def together() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(together())
    assert len(lines(path)) == 20
    assert synced[-1] == 20 * line and len(synced) <= 3


def test_a_failed_fsync_fails_every_line_that_it_covers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fsync passes although the pages are lost, so it proves nothing for the first one's lines."""
    log = opened(path, fsync=True)
    faults = iter([OSError(errno.EIO, "Input/output error")])

    def fail(file: int) -> None:
        for fault in faults:
            raise fault

    monkeypatch.setattr(os, "fsync", fail)

    async def together() -> list[object]:
        return await asyncio.gather(*(log.write(entry()) for _ in range(5)), return_exceptions=True)

    assert all(isinstance(each, Refusal) for each in asyncio.run(together()))
    assert log.lost == 5
    log.check()
    write(log, entry("after"))
    assert lines(path)[-1]["request"] == "after"


@pytest.mark.parametrize("fails", [True, False])
def test_who_is_cut_during_its_fsync_leaves_what_became_of_its_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """The descriptor stays open until the disk has answered, and who comes meanwhile waits for that answer."""
    log = opened(path, fsync=True)
    is_in, goes_on = threading.Event(), threading.Event()
    synced: list[int] = []

    def sync(file: int) -> None:
        is_in.set()
        goes_on.wait(30)
        os.fstat(file)
        synced.append(file)
        if fails and len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", sync)

    async def run() -> None:
        cut = asyncio.create_task(log.write(entry("cut")))
        await asyncio.to_thread(is_in.wait, 30)
        cut.cancel()
        await asyncio.wait([cut])
        assert cut.cancelled() and (log.lines, log.lost) == (0, 0)
        next_one = asyncio.create_task(log.write(entry("next")))
        await asyncio.sleep(0.01)
        goes_on.set()
        (result,) = await asyncio.gather(next_one, return_exceptions=True)
        assert isinstance(result, Refusal) is fails

    asyncio.run(run())
    assert (log.lines, log.lost) == ((0, 2) if fails else (2, 0))
    assert len(synced) == (1 if fails else 2)
    assert ("Input/output error" in caplog.text) is fails
    for file in synced:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_the_time_is_in_utc_whatever_zone_it_comes_in() -> None:
    assert json.loads(AuditEntry(time=MOMENT.astimezone(UTC), request="", route="", status=1).line())["time"] == (
        "2026-11-27T19:42:43.677Z"
    )
