"""Where prompts come from: what kind of source a name means, whether it is there, its lines and its digest."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from rheostat import pocket
from rheostat.config import SourceConfig, Sources
from rheostat.errors import PromptFileError
from rheostat.pocket.corpus import Kind as PocketKind
from rheostat.pocket.corpus import Split
from rheostat.prompt_datasets import HUB, check_folder, data_files, read_dataset
from rheostat.prompt_files import check_file, is_known, read_lines
from rheostat.prompt_rows import Line
from rheostat.records import Message

POCKET = "pocket:"
Kind = Literal["pocket", "hub", "folder", "file"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_OPTIONS: dict[str, tuple[Kind, ...]] = {
    "name": ("hub", "folder"),
    "split": ("hub", "folder"),
    "revision": ("hub",),
    "column": ("hub", "folder", "file"),
}
"""Which kinds of source an option is for."""


def listed(sources: Sources | None) -> list[SourceConfig]:
    """The sources of a split, each as a block."""
    if sources is None:
        return []
    each = [sources] if isinstance(sources, str | SourceConfig) else sources
    return [SourceConfig(source=source) if isinstance(source, str) else source for source in each]


def kind_of_source(source: SourceConfig) -> Kind:
    """What a source's name means."""
    if source.source.startswith(POCKET):
        return "pocket"
    if source.source.startswith(HUB):
        return "hub"
    path = Path(source.source)
    return "folder" if source.source and path.is_dir() and not is_known(path) else "file"


def source_problems(source: SourceConfig) -> Iterator[str]:
    """What is wrong with a source as far as this machine can tell; the Hub is not asked."""
    try:
        _check(source)
    except PromptFileError as error:
        yield error.message
    yield from _option_problems(source)


def read_source(source: SourceConfig) -> Iterator[Line]:
    """The rows of a source; raises `PromptFileError` where it cannot be read as a whole."""
    _check(source)
    for problem in _option_problems(source):
        raise PromptFileError(problem, hint="leave it out; docs/prompts.md says what each kind of source takes")
    kind = kind_of_source(source)
    if kind == "file":
        yield from read_lines(Path(source.source), source.column)
    elif kind == "pocket":
        for number, prompt in enumerate(_pocket_prompts(source.source), start=1):
            yield Line(number, (Message("user", prompt.text),))
    else:
        yield from read_dataset(source)


def _check(source: SourceConfig) -> None:
    kind = kind_of_source(source)
    if kind == "pocket":
        _pocket_prompts(source.source)
    elif kind == "folder":
        check_folder(Path(source.source))
    elif kind == "file":
        check_file(Path(source.source))
    elif not _HUB_NAME.fullmatch(source.source.removeprefix(HUB)):
        raise PromptFileError(
            f"got {source.source!r}, allowed is {HUB} and a dataset's name on the Hub", hint=f"as {HUB}owner/name"
        )


def _option_problems(source: SourceConfig) -> Iterator[str]:
    kind = kind_of_source(source)
    for option, kinds in _OPTIONS.items():
        value = getattr(source, option)
        if value is not None and kind not in kinds:
            yield f"{option}: got {value!r} for {source.source!r}, allowed is it only for {_in_words(kinds)}"


def digest(source: SourceConfig) -> str | None:
    """SHA-256 of a file, or of all files of a folder with their names; None for what is no file of this machine."""
    path = Path(source.source)
    kind = kind_of_source(source)
    try:
        if kind == "folder":
            whole = hashlib.sha256()
            for each in data_files(path):
                whole.update(f"{each.relative_to(path).as_posix()}\0{_file_digest(each)}\n".encode())
            return whole.hexdigest()
        return _file_digest(path) if kind == "file" and path.is_file() else None
    except (OSError, ValueError):
        return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pocket_prompts(source: str) -> list[pocket.PocketPrompt]:
    """The requests of a split of the pocket world, or of one kind of them: `pocket:generalization/risky`."""
    splits: tuple[Split, ...] = get_args(Split)
    kinds: tuple[str, ...] = get_args(PocketKind)
    name, slash, kind = source.removeprefix(POCKET).partition("/")
    split = next((each for each in splits if each == name), None)
    if split is None or (slash and kind not in kinds):
        raise PromptFileError(
            f"got {source!r}, allowed are {', '.join(POCKET + each for each in splits)}, "
            f"each with /{', /'.join(kinds)} or without",
            hint="name one",
        )
    return [prompt for prompt in pocket.prompts(split) if not slash or prompt.kind == kind]


def _in_words(kinds: Sequence[Kind]) -> str:
    words = {"hub": f"{HUB}NAME", "folder": "a dataset's folder", "file": "a file"}
    return " or ".join(words[kind] for kind in kinds if kind in words)
