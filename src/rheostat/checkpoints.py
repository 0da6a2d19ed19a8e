"""A Trainer's checkpoints and its progress: what every training here shares."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rheostat.plugins import Progress

_logger = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; the Trainer writes trainer_state.json last, so one without it is torn."""
    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            _logger.warning("%s is torn and left out", path.name)
            shutil.rmtree(path, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


class Advance(TrainerCallback):  # type: ignore[misc]
    """Tells a progress bar of steps, those of an earlier, killed training included."""

    def __init__(self, advance: Progress) -> None:
        self._advance = advance
        self._seen = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One step more."""
        self._advance(state.global_step - self._seen)
        self._seen = state.global_step
