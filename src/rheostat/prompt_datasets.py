"""Hugging Face datasets as numbered lines: a folder of `save_to_disk`, a folder of data files, a dataset of the Hub.

Rows are read one after another: off memory-mapped Arrow files, or off the data files as they are (`streaming`), so
that nothing is copied into the cache. Only a dataset of the Hub that is read whole is downloaded into it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rheostat.errors import PromptFileError, did_you_mean
from rheostat.prompt_files import is_known
from rheostat.prompt_rows import COLUMNS, PROMPT_COLUMNS, Line, read_row

if TYPE_CHECKING:
    from rheostat.config import SourceConfig

HUB = "hf:"
_SAVED = ("state.json", "dataset_dict.json")
_DEFAULT_SPLIT = "train"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in _SAVED)


def data_files(folder: Path) -> list[Path]:
    """The files of a dataset's folder, hidden ones apart, in the order of their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def check_folder(folder: Path) -> None:
    """Raises `PromptFileError` for a folder that holds no dataset."""
    if not is_saved(folder) and not any(map(is_known, data_files(folder))):
        raise PromptFileError(
            f"{folder}: got a folder without data, allowed are one of .jsonl, .json, .csv, .parquet or .txt files, "
            "or one written by save_to_disk",
            hint="name a file, or the dataset's own folder",
        )


def read_dataset(source: "SourceConfig") -> Iterator[Line]:
    """Every row of a dataset's split; of a `hf:` source with a limit as many as are asked for, from its beginning.

    Raises `PromptFileError` where the dataset cannot be reached or read.
    """
    with _named_errors(source):
        rows = _split(_load(source), source)
        columns = rows.column_names
        if columns is not None:
            _check_columns(columns, source)
            wanted = [source.column] if source.column else [name for name in columns if name in COLUMNS]
            rows = rows.select_columns(wanted)
        iterator = iter(rows)
    number = 0
    while True:
        with _named_errors(source):
            row = next(iterator, None)
        if row is None:
            return
        number += 1
        yield read_row(number, row, source.column)


def _load(source: "SourceConfig") -> Any:
    import datasets

    folder = Path(source.source)
    if source.source.startswith(HUB):
        return datasets.load_dataset(
            source.source.removeprefix(HUB),
            source.name,
            revision=source.revision,
            streaming=source.limit is not None,
        )
    if is_saved(folder):
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), source.name, streaming=True)


def _split(loaded: Any, source: "SourceConfig") -> Any:
    """The split that is asked for; without one `train`, or the only one."""
    if not isinstance(loaded, Mapping):
        if source.split in (None, str(loaded.split)):
            return loaded
        names = [str(loaded.split)] if loaded.split is not None else []
    else:
        names = sorted(map(str, loaded))
        wanted = source.split or (names[0] if len(names) == 1 else _DEFAULT_SPLIT)
        if wanted in names:
            return loaded[wanted]
    raise PromptFileError(
        f"{source.source}: got the split {source.split!r}, allowed are {', '.join(names) or 'none'}"
        f"{did_you_mean(source.split or '', names)}",
        hint="write `split: NAME` beside `source`",
    )


def _check_columns(columns: list[str], source: "SourceConfig") -> None:
    wanted = (source.column,) if source.column else PROMPT_COLUMNS
    if set(wanted).isdisjoint(columns):
        raise PromptFileError(
            f"{source.source}: got the columns {', '.join(repr(name[:40]) for name in columns[:12])}; "
            f"allowed are {', '.join(wanted)}",
            hint="say which column holds the prompts: `column: NAME` beside `source`",
        )


@contextmanager
def _named_errors(source: "SourceConfig") -> Iterator[None]:
    """What the library and the network raise, as an error that names the source."""
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        hint = "mend the folder, or name a data file of it"
        if source.source.startswith(HUB):
            hint = (
                "check the name and the connection; a gated dataset needs `hf auth login`, and a machine without "
                "the Hub the dataset's folder or files in place of its name"
            )
        raise PromptFileError(f"cannot read the dataset {source.source!r}: {reason}", hint=hint) from error
