"""The run directory: resuming, invalidation, locking, damage and full disks."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheostat import storage
from rheostat.errors import (
    CorruptShard,
    RunBusyError,
    RunDirectoryError,
    RunVersionError,
    StageMissing,
    StorageError,
)
from rheostat.records import Example, Message, Response
from rheostat.rundir import RunDirectory, fingerprint
from rheostat.stage import Stage, content_key, derive_seed
from rheostat.storage import decode_shard, encode_shard

ITEMS = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run", create=True) as directory:
        yield directory


class Worker:
    """Two rows an item, made from the item and the shard's seed; counts its calls, and can fail at one."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self._fail_at = fail_at

    def __call__(self, items: Sequence[str], seed: int) -> list[Response]:
        if self._fail_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(list(items))
        return [Response(item, k, f"{item} {seed} {k}", 3, "stop") for item in items for k in range(2)]


def compute(stage: Stage, worker: Worker, items: Sequence[str] = ITEMS) -> None:
    stage.map(items, worker, key=str, row_type=Response, shard_size=3, seed=7)


def contents(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage.path.iterdir()}


def test_content_key_by_hand() -> None:
    """Each id follows its length in 8 bytes: "ab" is 0,0,0,0,0,0,0,2,a,b, so ("ab",) is not ("a", "b")."""
    import hashlib

    assert content_key(["ab"]) == hashlib.sha256(b"\0\0\0\0\0\0\0\x02ab").hexdigest()
    assert content_key(["ab"]) != content_key(["a", "b"])


def test_derive_seed_by_hand() -> None:
    """The first 8 bytes of SHA-256("7:key"), big-endian, halved: below 2^63, as every generator accepts."""
    import hashlib

    expected = int.from_bytes(hashlib.sha256(b"7:key").digest()[:8], "big") // 2
    assert derive_seed(7, "key") == expected < 2**63


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})


def test_map_shards_and_reads_in_order(run: RunDirectory) -> None:
    stage = run.stage("generate", inputs={"samples": 2})
    worker = Worker()
    compute(stage, worker)
    stage.finish({"responses": 14})
    assert worker.calls == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert [row.prompt_id for row in stage.read(Response)] == [item for item in ITEMS for _ in range(2)]
    assert stage.summary == {"responses": 14}
    record = json.loads((stage.path / "done.json").read_text())
    assert [shard["rows"] for shard in record["shards"].values()] == [6, 6, 2]


def test_finished_stage_computes_nothing_again(run: RunDirectory) -> None:
    stage = run.stage("generate", inputs={})
    compute(stage, Worker())
    stage.finish({})
    again = run.stage("generate", inputs={})
    worker = Worker()
    compute(again, worker)
    assert again.done and worker.calls == []


def test_interrupted_equals_uninterrupted(run: RunDirectory) -> None:
    whole = run.stage("whole/generate", inputs={"x": 1})
    compute(whole, Worker())
    broken = run.stage("broken/generate", inputs={"x": 1})
    with pytest.raises(KeyboardInterrupt):
        compute(broken, Worker(fail_at=1))
    assert sorted(path.name for path in broken.path.iterdir()) == ["shard-00000.parquet", "stage.json"]
    worker = Worker()
    compute(run.stage("broken/generate", inputs={"x": 1}), worker)
    assert worker.calls == [["d", "e", "f"], ["g"]]
    mine, theirs = contents(broken), contents(whole)
    assert {k: v for k, v in mine.items() if k != "stage.json"} == {
        k: v for k, v in theirs.items() if k != "stage.json"
    }


def test_changed_inputs_remove_results(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    stage = run.stage("generate", inputs={"samples": 2, "model": "m"})
    compute(stage, Worker())
    stage.finish({})
    (stage.path / "more").mkdir()
    with caplog.at_level(logging.WARNING):
        changed = run.stage("generate", inputs={"samples": 3, "model": "m"})
    assert not changed.done and changed.fingerprint != stage.fingerprint
    assert [path.name for path in changed.path.iterdir()] == ["stage.json"]
    assert "generate: samples changed" in caplog.text
    assert not list(run.path.glob("*.tmp-*"))


def test_other_items_under_the_same_inputs_are_not_mistaken(run: RunDirectory) -> None:
    stage = run.stage("generate", inputs={})
    compute(stage, Worker())
    compute(stage, Worker(), ["a", "b", "x"])
    assert [row.prompt_id for row in stage.read(Response)] == ["a", "a", "b", "b", "x", "x"]


def test_prefixes_are_apart(run: RunDirectory) -> None:
    stage = run.stage("prompts", inputs={})
    stage.write([Response("p", 0, "", 1, "stop")], Response, prefix="train")
    stage.write([], Response, prefix="train-more")
    stage.finish({})
    assert len(stage.read(Response, prefix="train")) == 1
    assert run.finished("prompts").read(Response, prefix="train-more") == []
    assert stage.read(Response, prefix="absent") == []


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "{}"])
def test_a_damaged_object_of_a_stage_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CorruptShard, match="calibration.json is corrupt") as caught:
        storage.require_object(path)
    assert str(tmp_path) in caught.value.hint


def test_missing_stage_is_named(run: RunDirectory) -> None:
    with pytest.raises(StageMissing, match=r"'train/clm' has not finished") as caught:
        run.finished("train/clm")
    assert "rheostat train" in caught.value.hint
    run.stage("train/clm", inputs={})
    with pytest.raises(StageMissing):
        run.finished("train/clm")


@pytest.mark.parametrize("name", ["", "../x", "a//b", ".", "a/.."])
def test_stage_names_stay_inside(run: RunDirectory, name: str) -> None:
    with pytest.raises(AssertionError):
        run.stage(name, inputs={})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_damaged_shard_of_an_unfinished_stage_is_redone(run: RunDirectory, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    stage = run.stage("generate", inputs={})
    compute(stage, Worker())
    good = contents(stage)
    damage(stage.path / "shard-00001.parquet")
    worker = Worker()
    with caplog.at_level(logging.WARNING):
        compute(run.stage("generate", inputs={}), worker)
    assert worker.calls == [["d", "e", "f"]]
    assert (stage.path / "shard-00001.parquet.corrupt").exists()
    assert "shard-00001.parquet is corrupt" in caplog.text
    assert {k: v for k, v in contents(stage).items() if not k.endswith(".corrupt")} == good


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_shard_of_a_finished_stage(run: RunDirectory, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    """Reading names the shard; running sets it aside, computes it again and ends with the same bytes."""
    stage = run.stage("generate", inputs={})
    compute(stage, Worker())
    stage.finish({"n": 1})
    good = contents(stage)
    damage(stage.path / "shard-00002.parquet")
    with pytest.raises(CorruptShard, match=r"shard-00002\.parquet is corrupt"):
        run.finished("generate").read(Response)
    again = run.stage("generate", inputs={})
    assert not again.done
    worker = Worker()
    compute(again, worker)
    again.finish({"n": 1})
    assert worker.calls == [["g"]]
    assert {k: v for k, v in contents(stage).items() if not k.endswith(".corrupt")} == good


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_no_flipped_byte_changes_rows_silently(place: float, mask: int) -> None:
    rows = [Response(f"p{k}", k, "some text " * k, k, "stop") for k in range(5)]
    data = bytearray(encode_shard(rows, Response, key="k"))
    data[int(place * len(data))] ^= mask
    try:
        shard = decode_shard(bytes(data), Response, path=Path("shard"))
    except CorruptShard:
        return
    assert shard.rows == rows


def test_any_text_survives_the_shard() -> None:
    texts = ["", "\0\x1b[31m", "🜁 \u202e\u200b", "ي" * 1000, "\r\n", "x" * 100_000]
    rows = [Example("p", (Message("user", t),), {"safety": 0.25}, t, {"safety": 1 / 3}) for t in texts]
    assert decode_shard(encode_shard(rows, Example, key="k"), Example, path=Path("shard")).rows == rows


def test_wrong_row_type_is_corrupt() -> None:
    data = encode_shard([Response("p", 0, "", 1, "stop")], Response, key="k")
    with pytest.raises(CorruptShard):
        decode_shard(data, Example, path=Path("shard"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    stage = run.stage("generate", inputs={})

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="the disk is full") as caught:
            compute(stage, Worker())
    assert "free some space" in caught.value.hint
    assert [path.name for path in stage.path.iterdir()] == ["stage.json"], "no temporary file is left"
    compute(stage, Worker())
    assert len(stage.read(Response)) == 14


def test_really_full_disk() -> None:
    """/dev/full refuses every write with ENOSPC."""
    with pytest.raises(StorageError, match="the disk is full"), storage.storage_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_unwritable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        RunDirectory.open(tmp_path / "run", create=True)
    assert "--out" in caught.value.hint


def test_directory_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Not a directory"):
        RunDirectory.open(tmp_path / "file" / "run", create=True)
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.open(tmp_path / "file", create=True)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", create=True) as run:
        stage = run.stage("generate", inputs={})
        compute(stage, Worker())
        (stage.path / "shard-00003.parquet.tmp-123").write_bytes(b"half")
        (run.path / "train.tmp-123" / "deep").mkdir(parents=True)
    with RunDirectory.open(tmp_path / "run") as run:
        assert not list(run.path.rglob("*.tmp-*"))
        assert len(run.stage("generate", inputs={}).read(Response)) == 14


def test_another_format_is_refused(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", create=True).close()
    manifest = tmp_path / "run" / "rheostat.json"
    manifest.write_text(json.dumps({"format": 99}))
    before = sorted(path.name for path in manifest.parent.iterdir())
    for options in ({"create": True}, {}, {"read_only": True}):
        with pytest.raises(RunVersionError, match="format 99.*reads format 1"):
            RunDirectory.open(tmp_path / "run", **options)
    assert sorted(path.name for path in manifest.parent.iterdir()) == before
    manifest.write_text("{broken")
    with pytest.raises(RunVersionError, match="format None"):
        RunDirectory.open(tmp_path / "run")


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
        RunDirectory.open(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_absent_run_is_not_created(tmp_path: Path) -> None:
    for options in ({}, {"read_only": True}):
        with pytest.raises(RunDirectoryError, match="there is no run"):
            RunDirectory.open(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_start_killed_before_the_manifest_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / "rheostat.json.tmp-1").write_text("{")
    RunDirectory.open(tmp_path, create=True).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "rheostat.json"]


def test_read_only_needs_no_lock_and_writes_nothing(run: RunDirectory) -> None:
    stage = run.stage("generate", inputs={})
    compute(stage, Worker())
    stage.finish({})
    before = sorted(path.name for path in run.path.rglob("*"))
    reader = RunDirectory.open(run.path, read_only=True)
    assert len(reader.finished("generate").read(Response)) == 14
    with pytest.raises(AssertionError):
        reader.stage("generate", inputs={})
    assert sorted(path.name for path in run.path.rglob("*")) == before


def test_timings_survive_a_torn_line(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    assert run.timings() == []
    run.record_timing("generate", 1.5, tokens=10)
    with (run.path / "timings.jsonl").open("a") as file:
        file.write('{"stage": "sco')
    run.record_timing("score", 2.0)
    assert run.timings() == [
        {"stage": "generate", "seconds": 1.5, "tokens": 10},
        {"stage": "score", "seconds": 2.0},
    ]
    assert "line 2 is torn" in caplog.text


def test_environment_names_versions(run: RunDirectory) -> None:
    run.write_environment(device="cpu")
    found = json.loads((run.path / "environment.json").read_text())
    assert found["device"] == "cpu" and {"python", "rheostat", "pyarrow"} <= set(found["versions"])


_HOLDER = """
import sys, time
from rheostat.records import Response
from rheostat.rundir import RunDirectory

def work(items, seed):
    print("computing", *items, flush=True)
    if items[0] == "d":
        time.sleep(60)
    return [Response(item, k, f"{item} {seed} {k}", 3, "stop") for item in items for k in range(2)]

with RunDirectory.open(sys.argv[1], create=True) as run:
    stage = run.stage("generate", inputs={})
    stage.map(list("abcdefg"), work, key=str, row_type=Response, shard_size=3, seed=7)
"""


def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    """While another process holds the run it is busy; killed, it leaves whole shards and no lock."""
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline().split() == ["computing", "a", "b", "c"]
        assert holder.stdout.readline().split() == ["computing", "d", "e", "f"]
        with pytest.raises(RunBusyError, match=rf"another process \({holder.pid}\)"):
            RunDirectory.open(path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with RunDirectory.open(path) as run:
        worker = Worker()
        stage = run.stage("generate", inputs={})
        compute(stage, worker)
        assert worker.calls == [["d", "e", "f"], ["g"]]
        whole = run.stage("other", inputs={})
        compute(whole, Worker())
        assert stage.read(Response) == whole.read(Response)


def test_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(3):
        with RunDirectory.open(tmp_path / "run", create=True), pytest.raises(RunBusyError):
            RunDirectory.open(tmp_path / "run")
