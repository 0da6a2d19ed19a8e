"""CONTRIBUTING.md followed to the letter: its files written where it says, its commands run, in a copy of the house."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_STEP = re.compile(r"```(python|sh)\n(.*?)```", re.DOTALL)
_PATH = re.compile(r"`((?:src/rheostat|tests)/[\w/]+\.py)`")


def steps(section: str) -> list[tuple[str, str]]:
    """The steps of a section in order: (path, content) of a file to write, ("", commands) of commands to run.

    A file's path is the last one that the text before it names.
    """
    body = TEXT.partition(f"\n## {section}")[2].partition("\n## ")[0]
    found = []
    for match in _STEP.finditer(body):
        paths = _PATH.findall(body[: match.start()])
        found.append((paths[-1] if match[1] == "python" else "", match[2]))
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a newcomer has checked out: the source, the tests that the text names, the recipes; a `rheostat` to run."""
    house = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "rheostat", house / "src" / "rheostat", ignore=ignored)
    shutil.copytree(ROOT / "recipes", house / "recipes")
    (house / "tests").mkdir()
    for name in ("conftest.py", "test_plugin_contract.py"):
        shutil.copy(ROOT / "tests" / name, house / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", house)
    (house / "bin").mkdir()
    for name, words in (("python", ""), ("rheostat", " -m rheostat")):
        path = house / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return house


def shell(house: Path, command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{house / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(house / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        ["sh", "-c", command], cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def follow(house: Path, section: str) -> list[str]:
    """Do all steps of a section; what its commands printed."""
    printed = []
    for path, content in steps(section):
        if path:
            assert not (ROOT / path).exists(), f"{path} is a toy, but it is in the house"
            (house / path).write_text(content, encoding="utf-8")
        else:
            printed += [shell(house, command) for command in content.splitlines()]
    return printed


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("section", "name", "files", "commands"),
    [("Adding an objective", "unlikelihood", 2, 3), ("Adding a rival method", "switching", 1, 2)],
)
def test_the_text_to_the_letter(house: Path, section: str, name: str, files: int, commands: int) -> None:
    done = steps(section)
    assert [bool(path) for path, _ in done] == [True] * files + [False]
    printed = follow(house, section)
    assert len(printed) == commands
    assert all(" passed" in each and "skipped" not in each for each in printed[:-1])
    assert name in printed[-1] and "Report: runs/" in printed[-1]


def test_the_files_of_the_text_pass_the_linter(house: Path) -> None:
    written = []
    for section in ("Adding an objective", "Adding a rival method"):
        for path, content in steps(section):
            if path:
                (house / path).write_text(content, encoding="utf-8")
                written.append(path)
    assert len(written) == 3
    shell(house, f"python -m ruff check --no-cache {' '.join(written)}")


def test_what_the_text_sets_is_a_key_of_a_recipe() -> None:
    """The keys in backquotes under the two walks belong to the configuration."""
    from rheostat.config import RunConfig, TrainConfig

    named: set[Any] = set(re.findall(r"`(train\.\w+|method_options): \{", TEXT))
    assert named == {"train.objectives", "train.overrides", "method_options"}
    assert {"objectives", "overrides"} <= set(TrainConfig.model_fields) and "method_options" in RunConfig.model_fields
