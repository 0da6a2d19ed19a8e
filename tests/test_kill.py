"""kill -9 in every stage, then the same command: the records end with the bytes of an uninterrupted run."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [
    sys.executable, "-m", "rheostat", "run", "pocket",
    *(f"--set={each}" for each in (
        "prompts.train_limit=8", "prompts.evaluation_limit=2", "generate.samples=8", "generate.shard_prompts=2",
        "generate.max_tokens=48", "evaluate.max_tokens=32", "evaluate.shard_prompts=1", "evaluate.reachable_samples=4",
        "evaluate.bootstrap=100", "levels=[0,0.5,1]", "train.steps=8", "train.batch_size=4", "train.save_steps=2",
        "distil.minimum_contrast=0", "methods=[base,clm,exmate]", "prompts.calibration_limit=1",
        "evaluate.forged_prompts=1", "suite.limit=1",
    )),
]  # fmt: skip
MOMENTS = {
    "generate": "generate/shard-00000.parquet",
    "score": "score/stage.json",
    "distil": "distil/moec/stage.json",
    "train": "train/exmate-moec/checkpoints/checkpoint-2",
    "evaluate": "evaluate/optimization/exmate/shard-00000.parquet",
    "forgery": "forgery/exmate/stage.json",
    "suite": "suite/exmate/stage.json",
}


def start(out: Path) -> subprocess.Popen[bytes]:
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*COMMAND, "--out", str(out)], stdout=log, stderr=log, start_new_session=True)


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.suffix == ".parquet" or path.name == "model.safetensors"
    }


def finish(out: Path) -> None:
    process = start(out)
    assert process.wait(timeout=200) == 0, out.with_suffix(".log").read_text()


@pytest.mark.timeout(400)
def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    kills = 0
    for moment in MOMENTS.values():
        process = start(killed)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / moment).exists():
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait(timeout=120) == -signal.SIGKILL
    assert kills == len(MOMENTS)
    finish(killed)
    assert digests(killed) == digests(whole)
    assert len(digests(whole)) > 10
    assert not list(killed.rglob("*.corrupt"))
    assert (killed / "report.html").exists()
