"""The benchmark of the dials at its smallest size: what it says of weights and caches is right, and all is there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rheostat import plugins
from rheostat.model_shapes import parameter_count

pytestmark = pytest.mark.timeout(600)  # a run of its own, in a process of its own, on a busy machine

ROOT = Path(__file__).resolve().parents[1]
MODEL_MIB = parameter_count("pocket:chat") * 4 / 2**20
SAMPLES = 3


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmark") / "dials.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "dials.py"), "--methods", "base", "clm", "reranking", "logit_mixing",
        "--batch-size", "3", "--single-requests", "2", "--max-tokens", "4", "--samples", str(SAMPLES),
        "--repetitions", "2", "--train-prompts", "8", "--json", str(out),
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "extra MiB" in done.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_knows_every_dial_on_disk() -> None:
    """By default all methods with a dial, base, and one tuned model for the control text."""
    shown = subprocess.run(
        [sys.executable, "-c", "import dials; print(*dials.dialled_methods())"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}", "PATH": ""},
    )
    dialled = {name for name in plugins.available("methods") if plugins.load("methods", name).HAS_DIAL}
    assert set(shown.stdout.split()) == {"base", "clm"} | dialled - {"tuned"}


def test_extra_weights_are_what_is_held_beside_one_model(figures: dict[str, Any]) -> None:
    """Control text: none. Two experts: one model more; the base serves nothing. Reranking: two rewards."""
    extra = {name: each["extra_weights_mib"] for name, each in figures["methods"].items()}
    assert extra["clm"] == pytest.approx(0, abs=0.05)
    assert extra["base"] == pytest.approx(0, abs=0.05)
    assert extra["logit_mixing"] == pytest.approx(MODEL_MIB, rel=0.01)
    assert extra["reranking"] > 1


def test_cache_bytes_are_counted_for_every_model_and_candidate(figures: dict[str, Any]) -> None:
    """Keys and values of every expert, and of each of the candidates; else those of one model."""
    held = {name: each["cache_bytes_a_token"] for name, each in figures["methods"].items()}
    one = held["base"]
    assert one > 0
    assert held == {"base": one, "clm": one, "reranking": SAMPLES * one, "logit_mixing": 2 * one}
    assert figures["methods"]["reranking"]["generated_a_token"] == SAMPLES


def test_every_load_is_timed_and_compared_with_the_control_text(figures: dict[str, Any]) -> None:
    loads = {"one at a time", "batch, one setting", "batch, a setting each"}
    assert figures["settings_in_the_batch"] == 3
    for each in figures["methods"].values():
        assert set(each["milliseconds_a_token"]) == set(each["ratio_to_control_text"]) == loads
        assert all(value > 0 for value in each["milliseconds_a_token"].values())
    assert set(figures["methods"]["clm"]["ratio_to_control_text"].values()) == {1.0}
