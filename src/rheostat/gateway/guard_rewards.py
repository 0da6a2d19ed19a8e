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


def has_rewards(served: Path | None) -> bool:
    """Whether `load_scorer` has reward models of the model in `served` itself."""
    return served is None or not is_exported(served)


def check_guards(policy: Policy, scored: Collection[str] | None, *, are_left_out: bool = False) -> None:
    """Whether every guard of a policy has what it needs, and everyone whose answers may be scored.

    `scored` are the dials that are scored, None: no rewards; `are_left_out` says that those that there are were not
    loaded at the start. Raises `ConfigError` with all tenants that ask for what is not there.
    """
    reason = "there are no reward models to score with"
    hint = f"serve a run, or name one with --rewards RUN; {HINT}"
    if are_left_out:
        reason = "the gateway was started without reward models: restart it to load them"
        hint = "a gateway loads them where the policy that it starts with has a guard or scores, or with --rewards RUN"
    problems = []
    for name, tenant in policy.tenants.items():
        if scored is None and tenant.allows_scores:
            problems.append(f"tenants.{name}.scores: {reason}")
        if tenant.guard is None:
            continue
        if scored is None:
            problems.append(f"tenants.{name}.guard: {reason}")
            continue
        dials = sorted({dial for form in tenant.dials.values() for dial in form.names} - set(scored))
        if dials:
            problems.append(f"tenants.{name}.guard: no reward model scores {', '.join(dials)}")
    if problems:
        raise ConfigError(problems, hint=hint)


def _packaged() -> Rewards:
    config = load_config("pocket")
    saved = read_object(Path(resolve(PACKAGED)) / CARD)["calibration"]
    calibrators = {name: Calibrator.from_json(saved[name]) for name in config.rewards}
    return Rewards(calibrated_scorer(config, OWN, calibrators), tuple(config.rewards))
