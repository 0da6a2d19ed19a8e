"""Bad input through the real command line: a clear error or a clean resume, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    "prompts.train_limit=6", "prompts.evaluation_limit=1", "generate.samples=2", "generate.shard_prompts=2",
    "generate.max_tokens=16",
)  # fmt: skip
Finished = subprocess.CompletedProcess[str]


def rheostat(*arguments: str, before: tuple[str, ...] = ()) -> Finished:
    command = [*before, sys.executable, "-m", "rheostat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def generate(out: Path, *settings: str, before: tuple[str, ...] = ()) -> Finished:
    given = [f"--set={each}" for each in (*SMALL, *settings)]
    return rheostat("generate", "pocket", "--out", str(out), *given, before=before)


def is_clear(result: Finished, *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "error:" in result.stderr and "hint:" in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


def test_a_broken_line_is_named_and_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.jsonl"
    good = [json.dumps({"prompt": f"How do I boil {count} eggs?"}) for count in range(1, 7)]
    prompts.write_text("\n".join([*good[:2], '{"prompt": "How', *good[2:]]) + "\n", encoding="utf-8")
    settings = (f"prompts.train=[{prompts}]", "prompts.optimization=null", "prompts.generalization=null")
    kept = generate(tmp_path / "run", *settings)
    assert kept.returncode == 0, kept.stderr
    assert "mine.jsonl:3" in kept.stderr or "line 3" in kept.stderr, kept.stderr
    is_clear(generate(tmp_path / "strict", *settings, "prompts.strict=true"), "mine.jsonl", "3")


def test_all_that_is_not_there_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    settings = (
        f"prompts.train=[pocket:trian, {tmp_path}/absent.jsonl, {tmp_path}/folder.jsonl, a.yaml, \"a\\0.txt\"]",
        "model=/absent/model", "rewards={safety: pocket:nope, helpfulness: ./no/folder}", "judges={}", "suite=null",
        "device=tpu",
    )  # fmt: skip
    named = (
        "9 problems", "'tpu'", "model: /absent/model: no such folder", "pocket model 'nope'", "./no/folder",
        "'pocket:trian', allowed are pocket:train", "No such file", "Is a directory", "kind '.yaml'", "null byte",
    )  # fmt: skip
    is_clear(generate(tmp_path / "run", *settings), *named)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("empty.jsonl", b"", "no usable prompt"),
        ("binary.jsonl", bytes(range(256)) * 40, "the first of"),
        ("binary.csv", bytes(range(128, 256)) * 40, "got the columns"),
        ("other.csv", b"label\nWhat?\n", "got the columns 'label'"),
        ("twice.jsonl", b'{"prompt": "Hi"}\n{"prompt": "HI "}\n', "got 1 prompt"),
        ("long.txt", b"egg " * 5000 + b"\nmore " + b"egg " * 5000, "too long for pocket:chat"),
    ],
)
def test_a_prompt_file_that_holds_none(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(data)
    settings = (
        f"prompts.train=[{tmp_path / name}]",
        "prompts.optimization=null",
        "prompts.generalization=null",
    )
    result = generate(tmp_path / "run", *settings)
    is_clear(result, problem)
    assert len(result.stderr) < 2000, "what is shown of a binary file is short"
    assert "Token indices" not in result.stderr


def test_an_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/rheostat")):
        is_clear(generate(place), str(place))


def test_a_damaged_shard_and_another_version(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert generate(out).returncode == 0
    shard = next((out / "generate").glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    again = generate(out)
    assert again.returncode == 0 and shard.name in again.stderr, again.stderr
    assert shard.read_bytes() == whole
    facts = json.loads((out / "rheostat.json").read_text(encoding="utf-8"))
    key = next(name for name in facts if "schema" in name or "format" in name)
    (out / "rheostat.json").write_text(json.dumps({**facts, key: 99}), encoding="utf-8")
    is_clear(rheostat("score", str(out)), "99")


@pytest.mark.parametrize(("size", "room"), [("40k", 40), ("64k", 64)])
def test_a_full_disk_says_so_and_the_same_command_goes_on(tmp_path: Path, size: str, room: int) -> None:
    """On a file system of `room` KiB of its own; what was written before it was full is whole."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size={size} rheostat {disk} && "$@"; code=$?; cp -r {disk}/run {kept}; exit $code'
    )
    alone = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    if not shutil.which("unshare") or subprocess.run(
        [*alone, "true"], capture_output=True, check=False
    ).returncode not in (0, 1):
        pytest.skip("a file system of its own needs unshare and mount, which are not allowed here")
    shutil.rmtree(kept, ignore_errors=True)
    result = generate(disk / "run", "generate.samples=64", "generate.max_tokens=64", before=alone)
    is_clear(result, "disk is full")
    assert sum(os.path.getsize(path) for path in kept.rglob("*") if path.is_file()) <= room * 1024
    (kept / "lock").unlink(missing_ok=True)
    on = generate(kept, "generate.samples=64", "generate.max_tokens=64")
    assert on.returncode == 0, on.stderr
    assert len(list((kept / "generate").glob("*.parquet"))) == 3
