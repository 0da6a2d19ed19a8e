"""What a run or exported folder is served as: its name and its dials, read without its weights."""

from pathlib import Path

from rheostat.card import read_card
from rheostat.control import ControlFormat
from rheostat.model_files import PACKAGED, is_exported, resolve
from rheostat.recipe import load_config
from rheostat.rundir import RunDirectory


def served_name(path: Path | None) -> str:
    """The name of a model that is given none: that of its folder, `pocket` for the packaged one."""
    return "pocket" if path is None else path.resolve().name


def served_dials(path: Path | None) -> ControlFormat:
    """The dials of a run directory's models, of an exported one, or of the packaged one (None).

    Raises `ModelError` or `RunDirectoryError` where it is neither.
    """
    folder = Path(resolve(PACKAGED)) if path is None else path
    if is_exported(folder):
        return read_card(folder).control_format
    with RunDirectory.open(folder, read_only=True) as run:
        return load_config(run.config_path).control_format
