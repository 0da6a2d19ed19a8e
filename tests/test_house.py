"""The house's rules: imports go down, stages do not meet, the doors are what they say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rheostat
from rheostat import plugins
from rheostat.errors import PluginNotFound

SOURCE = Path(rheostat.__file__).parent
STAGES = {
    "collect", "generate", "score", "rounds", "distil", "train", "evaluate", "forgery", "suite", "report", "export",
}  # fmt: skip
PURE = {
    "control", "control_template", "look_alikes", "model_card", "calibration", "metrics", "grid", "counterfactual",
    "training_plan", "near_duplicates", "refusal", "refusal_patterns", "suite_report", "suite_picture", "dial_map",
    "dial_tables", "forging", "mixing", "steering", "round_tables", "prompt_plan",
    "pairing", "scored_pool", "moec", "simplex", "bench_comparison", "bench_picture", "bench_context",
}  # fmt: skip
PURE_GATEWAY = {
    "asked", "backend", "bodies", "dials", "event_stream", "faults", "permitted", "policy", "policy_file", "refusals",
    "replies", "text_stream", "upstream_answers",
}  # fmt: skip
SERVES = {"cli/policy.py", "cli/serve.py", "reference.py"}
IMPURE = {"rundir", "stage", "storage", "models", "progress", "pipeline", "cli"} | STAGES


def imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def gateway_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("gateway.")}


def imported(path: Path) -> set[str]:
    """The modules of rheostat that a file imports anywhere in it, by dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rheostat"):
            name = node.module.removeprefix("rheostat").removeprefix(".")
            found.add(name)
            found |= {alias.name for alias in node.names if node.module == "rheostat"}
            found |= {f"gateway.{alias.name}" for alias in node.names if name == "gateway"}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("rheostat.") for name in names if name.startswith("rheostat.")}
    return found - {""}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_do_not_import_each_other(stage: str) -> None:
    assert not imports(SOURCE / f"{stage}.py") & (STAGES - {stage})


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_mathematics_is_pure(module: str) -> None:
    assert not imports(SOURCE / f"{module}.py") & IMPURE


@pytest.mark.parametrize("module", sorted(PURE_GATEWAY))
def test_what_the_gateway_decides_by_is_pure(module: str) -> None:
    path = SOURCE / "gateway" / f"{module}.py"
    assert not imports(path) & IMPURE
    assert gateway_imports(path) <= PURE_GATEWAY | {"keys"}


def test_the_gateway_is_imported_by_its_commands_and_their_pages_alone() -> None:
    outside = [path for path in SOURCE.rglob("*.py") if SOURCE / "gateway" not in path.parents]
    importers = {path.relative_to(SOURCE).as_posix() for path in outside if "gateway" in imports(path)}
    assert importers == SERVES


def test_the_public_names_are_exact() -> None:
    assert rheostat.__all__ == ["DialledModel", "__version__", "load"]
    assert all(hasattr(rheostat, name) for name in rheostat.__all__)


def test_importing_rheostat_loads_no_torch() -> None:
    code = "import sys, rheostat, rheostat.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_recipe_is_validated_with_loads_no_torch() -> None:
    code = (
        "import sys; from rheostat import plugins\n"
        "for name in plugins.available('rewards'): plugins.load('rewards', name)\n"
        "plugins.load('engines', 'openai')\n"
        "from rheostat.recipe import load_config, to_yaml, validate\n"
        "validate(load_config('pocket', ['engine=transformers']).model_dump())\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["attributes", "rewards", "objectives", "methods", "engines", "executors"])
def test_every_plugin_file_loads_and_has_its_entry(kind: plugins.Kind) -> None:
    names = plugins.available(kind)
    assert names
    for name in names:
        entry = {"attributes": "ATTRIBUTE", "objectives": "loss"}.get(kind, "build")
        if kind == "objectives" and plugins.needs(name).rows == "prompts":
            entry = "reward"
        assert hasattr(plugins.load(kind, name), entry), name


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(PluginNotFound, match="did you mean 'exmate'"):
        plugins.load("objectives", "exmatte")


def test_every_stage_file_is_a_room() -> None:
    long = {path.name: n for path in SOURCE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 500}
    assert not long
