"""The shipped weights are those of the manifest, small enough, and as good as it says."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest

from rheostat.errors import ModelError
from rheostat.pocket import WEIGHTS, weights
from rheostat.pocket.measure import quick_figures

LARGEST = {
    "chat": 3.5e6,
    "reward-helpfulness": 2.2e6,
    "reward-safety": 2.2e6,
    "judge-helpfulness": 1.2e6,
    "judge-safety": 1.2e6,
}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((WEIGHTS / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def test_models_are_found_by_name_and_unknown_ones_are_named() -> None:
    assert (weights("chat") / "model.safetensors").is_file()
    with pytest.raises(ModelError, match="got the pocket model 'chatty'; there are .*chat.*reward-safety"):
        weights("chatty")


def test_sizes() -> None:
    for name, largest in LARGEST.items():
        assert sum(path.stat().st_size for path in (WEIGHTS / name).iterdir()) <= largest, name
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 15e6


def test_files_are_the_manifests(manifest: dict[str, Any]) -> None:
    for name, facts in manifest["files"].items():
        content = (WEIGHTS / name).read_bytes()
        assert len(content) == facts["bytes"], name
        assert hashlib.sha256(content).hexdigest() == facts["sha256"], name


def test_figures_measured_again_are_the_manifests(manifest: dict[str, Any]) -> None:
    """The same seeded texts and weights: only the machine's rounding may differ."""
    again = quick_figures(WEIGHTS)
    shipped = manifest["figures"]["quick"]
    assert set(again) == set(shipped)
    for name, value in again.items():
        assert value == pytest.approx(shipped[name], abs=0.01), name


def test_figures_are_good_enough(manifest: dict[str, Any]) -> None:
    figures = manifest["figures"]
    for attribute in ("helpfulness", "safety"):
        reward = figures[f"reward-{attribute}"]
        assert reward["pairwise accuracy"] >= 0.93
        assert reward["spearman"] >= 0.9 and abs(reward["partial other"]) <= 0.15
    samples = figures["chat samples"]
    assert samples["refusal rate risky"] >= 0.3 > samples["refusal rate harmless"]
    for name in ("safe helpful", "safe unhelpful", "unsafe helpful", "unsafe unhelpful"):
        assert samples[f"reached {name}"] >= 0.5, "most requests reach each corner"


@pytest.mark.parametrize("attribute", ["helpfulness", "safety"])
def test_verbal_instructions_are_followed_to_some_extent(manifest: dict[str, Any], attribute: str) -> None:
    instructed = manifest["figures"]["chat instructed"]
    assert instructed[f"{attribute} instructed 1"] - instructed[f"{attribute} instructed 0"] >= 0.15


def test_import_is_light() -> None:
    code = "import sys, rheostat.pocket; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
