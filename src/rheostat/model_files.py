"""The files of a model: where they are, what tells them from others, and how they are read without a word.

Folders, ids of the Hub, and `pocket:NAME`; safetensors only. What is wrong with them is a `ModelError`.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from rheostat.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_POCKET = "pocket:"
PACKAGED = f"{_POCKET}tuned"
"""The model that is there without any run."""

_EXPORTED = ("config.json", "adapter_config.json")
"""What an exported folder holds one of, and a run directory, which has a `rheostat.json` too, does not."""

_IDENTIFIED_BYTES = 64 * 2**20
HINT_FOLDER = "give a Hugging Face model folder or id with config.json, *.safetensors and its tokenizer"


def resolve(model: str) -> str | Path:
    """Where a model's files are: `pocket:NAME` is a folder of the package, all else stays as it is."""
    if not model.startswith(_POCKET):
        return model
    from rheostat import pocket

    folder: Path = pocket.weights(model.removeprefix(_POCKET))
    return folder


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported model, whole or an adapter, and no run directory."""
    return any((folder / name).is_file() for name in _EXPORTED)


def identity(model: str) -> dict[str, str]:
    """What tells one model's files from another's: a digest of each one's size and beginning, by file name.

    Of an id on the Hub, the id alone.
    """
    folder = Path(resolve(model))
    if not folder.is_dir():
        return {"id": model}
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            with path.open("rb") as file:
                beginning = file.read(_IDENTIFIED_BYTES)
            digests[path.name] = hashlib.sha256(f"{path.stat().st_size}:".encode() + beginning).hexdigest()[
                :16
            ]
    return digests


def locate(model: str) -> tuple[str | Path, bool]:
    """The folder or id of a model, and whether it is a folder; a folder's contents are checked (`ModelError`)."""
    where = resolve(model)
    folder = Path(where)
    if not model.strip() or "\0" in model:
        raise ModelError(f"got the model {model!r}, allowed is a folder or an id", hint=HINT_FOLDER)
    if not folder.exists():
        if isinstance(where, Path) or folder.is_absolute() or model.startswith(".") or model.count("/") > 1:
            raise ModelError(f"{model}: no such folder", hint=HINT_FOLDER)
        return str(where), False
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model}: no config.json in it", hint=HINT_FOLDER)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{model}: no *.safetensors in it",
            hint="only safetensors are read; convert other formats with transformers' save_pretrained",
        )
    return folder, True


def labels_of(model: str) -> tuple[tuple[str, ...], str | None] | None:
    """A classifier's labels, in order, and its problem type, off its config.json; None where that is not at hand."""
    path = Path(resolve(model)) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int)), config.get("problem_type")


def read_config(model: str) -> "PreTrainedConfig":
    """A model's configuration. `ModelError` where there is no such model, or it cannot be read."""
    where, is_local = locate(model)
    try:
        config: PreTrainedConfig = from_disk_first(AutoConfig.from_pretrained, where, is_local)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model}: cannot read its config: {first_line(error)}", hint=HINT_FOLDER) from error
    return config


def from_disk_first(read: Callable[..., Any], where: str | Path, is_local: bool) -> Any:
    """What `read` reads of a folder, or of an id from the local cache, or else from the Hub."""
    with quiet():
        try:
            return read(where, local_files_only=True)
        except OSError:
            if is_local:
                raise
            return read(where)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and log lines below errors off the terminal meanwhile."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Hides one warning: of gradient checkpointing, which transformers calls by another name from 5.24 on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`[a-z_]*gradient_checkpointing[a-z_]*` is deprecated", FutureWarning)
        yield


def first_line(error: BaseException) -> str:
    """What an error says first, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
