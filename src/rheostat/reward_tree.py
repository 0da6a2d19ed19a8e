"""A reward's block with all that it is made of: what identifies it, and what can be seen to be wrong with it."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rheostat import plugins
from rheostat.config import RewardConfig
from rheostat.errors import RheostatError
from rheostat.model_files import identity, locate
from rheostat.plugin_options import identified
from rheostat.recipe import nested_rewards, reward_options


def identify(spec: RewardConfig) -> dict[str, Any]:
    """What a reward's scores depend on: its options (`plugin_options.py`), its model's files, its other files, and
    its members.
    """
    options = reward_options(spec)
    found: dict[str, Any] = {
        **spec.model_dump(exclude=set(spec.given_options)),
        **identified(options),
        "files": identity(spec.model) if spec.model else None,
    }
    others = {name: _digest(path) for name, path in _files(spec).items()}
    members = {path: identify(each) for path, each in _members(spec).items()}
    return found | ({"other_files": others} if others else {}) | ({"nested": members} if members else {})


def walk(where: str, spec: RewardConfig) -> Iterator[tuple[str, RewardConfig]]:
    """A valid block at `where`, and all those inside it."""
    yield where, spec
    for path, each in _members(spec).items():
        yield from walk(f"{where}.{path}", each)


def load_problems(where: str, spec: RewardConfig) -> Iterator[str]:
    """What is not there, or does not fit, of a valid block at `where`: told before any model is loaded."""
    if spec.model is not None:
        try:
            locate(spec.model)
        except RheostatError as error:
            yield f"{where}: {error.message}"
            return
    kind = plugins.load("rewards", spec.kind)
    find = getattr(kind, "problems", None)
    if find is not None:
        for problem in find(spec, reward_options(spec)):
            yield f"{where}: {problem}"
    for path, each in _members(spec).items():
        yield from load_problems(f"{where}.{path}", each)


def _members(spec: RewardConfig) -> dict[str, RewardConfig]:
    return {path: RewardConfig.model_validate(block) for path, block in nested_rewards(spec).items()}


def _files(spec: RewardConfig) -> Mapping[str, Path]:
    find = getattr(plugins.load("rewards", spec.kind), "files", None)
    found: Mapping[str, Path] = {} if find is None else find(reward_options(spec))
    return found


def _digest(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits; of one that is not there, a word that says so."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "absent"
