"""The reward models that a guard scores with: a run's own, with its calibrators, or the packaged pocket model's."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rheostat.calibration import Calibrator
from rheostat.card import CARD
from rheostat.errors import ConfigError, ModelError
from rheostat.gateway.policy import HINT, Policy
from rheostat.model_files import PACKAGED, is_exported, resolve
from rheostat.plugins import Scorer
from rheostat.recipe import load_config
from rheostat.rundir import RunDirectory
from rheostat.score import load_scorers
from rheostat.scoring import OWN, calibrated_scorer
from rheostat.storage import read_object


@dataclass(frozen=True, slots=True)
class Rewards:
    """A scorer, and the dials that it scores."""

    scorer: Scorer
    dials: tuple[str, ...]


def load_scorer(served: Path | None, rewards: Path | None = None) -> Rewards | None:
    """What scores the answers of the model in `served`, a run or an exported folder; None is the packaged model.

    The rewards and the calibrators are those of the run `rewards`, or else of `served` where that is a run; an
    exported folder has none, which gives None. Raises `ModelError`, `RunDirectoryError`.
    """
    if rewards is None and served is None:
        return _packaged()
    run = rewards or served
    assert run is not None
    if is_exported(run):
        if rewards is None:
            return None
        raise ModelError(
            f"--rewards: got the exported model {rewards}, allowed is a run", hint="give the run that it was made by"
        )
    with RunDirectory.open(run, read_only=True) as directory:
        config = load_config(directory.config_path)
        return Rewards(load_scorers(directory, config, [OWN])[OWN], tuple(config.rewards))


def check_guards(policy: Policy, scored: Collection[str] | None) -> None:
    """Whether every guard of a policy has what it needs; `scored` are the dials that are scored, None: no rewards.

    Raises `ConfigError` with all tenants whose answers could not be guarded.
    """
    problems = []
    for name, tenant in policy.tenants.items():
        if tenant.guard is None:
            continue
        if scored is None:
            problems.append(f"tenants.{name}.guard: there are no reward models to score with")
            continue
        dials = sorted({dial for form in tenant.dials.values() for dial in form.names} - set(scored))
        if dials:
            problems.append(f"tenants.{name}.guard: no reward model scores {', '.join(dials)}")
    if problems:
        raise ConfigError(problems, hint=f"serve a run, or name one with --rewards RUN; {HINT}")


def _packaged() -> Rewards:
    config = load_config("pocket")
    saved = read_object(Path(resolve(PACKAGED)) / CARD)["calibration"]
    calibrators = {name: Calibrator.from_json(saved[name]) for name in config.rewards}
    return Rewards(calibrated_scorer(config, OWN, calibrators), tuple(config.rewards))
