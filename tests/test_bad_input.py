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
        f"mount -t tmpfs -o size={size} rheostat {disk} && "
        f'"$@"; code=$?; cp -r {disk}/run {kept}; exit $code'
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
