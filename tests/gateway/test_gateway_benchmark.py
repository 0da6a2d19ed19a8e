"""The load benchmark at its smallest: the stub, the real gateway in front of it, every answer checked and counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # processes of their own, which import the package on a busy machine

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, REQUESTS, ROUNDS = 5, 20, 2


def benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "gateway.py"), *arguments]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmark") / "gateway.json"
    done = benchmark(
        "--clients", str(CLIENTS), "--requests", str(REQUESTS), "--rounds", str(ROUNDS), "--warm-up", "5",
        "--chunks", "4", "--latency", "0.01", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "added p50" in done.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_load_reaches_the_upstream_and_the_gateway(figures: dict[str, Any]) -> None:
    assert list(figures["loads"]) == ["throughput", "latency", "stream"]
    for servers in figures["loads"].values():
        assert {name: each["requests"] for name, each in servers.items()} == {
            "upstream": REQUESTS * ROUNDS,
            "rheostat": REQUESTS * ROUNDS,
        }


def test_every_answer_was_right(figures: dict[str, Any]) -> None:
    """Text, dials (raised to the floor by the gateway), finish and usage."""
    assert [each["wrong"] for servers in figures["loads"].values() for each in servers.values()] == [0] * 6
