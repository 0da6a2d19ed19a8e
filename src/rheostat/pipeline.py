"""The main job: all stages in order, and each of them alone on a run directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rheostat import launch, preflight
from rheostat.calibration import Calibrator
from rheostat.collect import collect, collect_calibration
from rheostat.config import RunConfig
from rheostat.distil import distil
from rheostat.errors import StageMissing
from rheostat.evaluate import Evaluator
from rheostat.execution import open_executor
from rheostat.figures import evaluations_of, figures
from rheostat.forgery import forge
from rheostat.generate import generate
from rheostat.method_models import MethodModels
from rheostat.method_name import TrainingData
from rheostat.models import pick_device
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompts import CALIBRATION
from rheostat.recipe import load_config, to_yaml
from rheostat.records import Prompt
from rheostat.report import report
from rheostat.rounds import sample_round
from rheostat.rundir import RunDirectory, Stage
from rheostat.score import load_calibrators, score
from rheostat.scoring import OWN
from rheostat.storage import write_json
from rheostat.suite import answer_suite
from rheostat.suite_prompts import collect_suite
from rheostat.train import train
from rheostat.trainings import Training, trainings

StageName = Literal["generate", "score", "distil", "train", "evaluate", "report"]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Where a run is, and what it measured: the content of its evaluation.json."""

    directory: Path
    evaluation: dict[str, Any]
    report: Path


def run(config: RunConfig, out: Path, *, progress: ProgressDisplay = null_progress) -> RunOutcome:
    """All stages; those that have finished for this recipe are kept."""
    launch.refuse_several("run")
    preflight.check(config)
    with RunDirectory.open(out, create=True) as directory, open_executor(config):
        _describe(directory, config)
        for each in _STAGES.values():
            each(directory, config, progress)
        return _outcome(directory, config, progress)


def start(config: RunConfig, out: Path, *, progress: ProgressDisplay = null_progress) -> None:
    """Begin a run: its recipe, its prompts and its self-generated responses."""
    launch.refuse_several("generate")
    preflight.check(config)
    with RunDirectory.open(out, create=True) as directory:
        _describe(directory, config)
        _generate(directory, config, progress)


def stage(name: StageName, out: Path, *, progress: ProgressDisplay = null_progress) -> RunOutcome | None:
    """One stage on a run directory, by the recipe inside it; raises `StageMissing` where its input is not there.

    `train` may run in several processes of a launcher: the leading one writes. Gives the outcome after `report`,
    else None.
    """
    if name != "train":
        launch.refuse_several(name)
    leads = launch.rank().leads
    with RunDirectory.open(out, read_only=not leads) as directory:
        config = load_config(directory.config_path)
        if name == "report":
            return _outcome(directory, config, progress)
        _STAGES[name](directory, config, progress if leads else null_progress)
        return None


def _describe(directory: RunDirectory, config: RunConfig) -> None:
    directory.write_config(to_yaml(config))
    directory.write_environment(device=str(pick_device(config.device)))


def _generate(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> None:
    collect(directory, config, progress=progress)
    collect_calibration(directory, config)
    generate(directory, config, progress=progress)


def _score(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> None:
    score(directory, config, progress=progress)


def _distil(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> None:
    own = [each.data for each in trainings(config)]
    needed = dict.fromkeys(data for data in own if data.round == 1 and data.variant != "prompts")
    for data in needed or {TrainingData(variant=config.train.variant): None}:
        distil(directory, config, data, progress=progress)


def _train(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> None:
    for training in trainings(config):
        if training.data.round > 1:
            _round(directory, config, training, load_calibrators(directory, config)[OWN], progress)
        scores = training.data.variant == "prompts"
        calibrators = load_calibrators(directory, config)[OWN] if scores else None
        train(directory, config, training, calibrators=calibrators, progress=progress)


def _round(
    directory: RunDirectory,
    config: RunConfig,
    training: Training,
    calibrators: Mapping[str, Calibrator],
    progress: ProgressDisplay,
) -> None:
    """What a further round learns from. Of several processes of a launcher one samples, the others wait."""
    rank = launch.join(on_cpu=pick_device(config.device).type == "cpu")
    if rank.leads:
        sample_round(directory, config, training, calibrators, progress=progress)
        distil(directory, config, training.data, progress=progress)
    launch.meet(rank)


def _evaluate(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> None:
    with open_executor(config) as executor:
        evaluator = Evaluator(directory, config, load_calibrators(directory, config), executor)
        evaluations = evaluations_of(directory)
        calibrates = bool(_calibration(directory, config).read(Prompt, prefix=CALIBRATION))
        if config.suite is not None:
            collect_suite(directory, config)
        for evaluation in evaluations:
            evaluator.reachable(evaluation, progress=progress)
        for name in config.method_names:
            models = MethodModels.of(directory, config, name)
            evaluator.evaluate(name, evaluations, models=models, progress=progress)
            if models.tuned is not None and name.is_dialled_model:
                if calibrates:
                    evaluator.evaluate(name, [CALIBRATION], models=models, progress=progress)
                if config.evaluate.forged_prompts:
                    forge(
                        directory, evaluator.bench, name, tuned=models.tuned, executor=executor, progress=progress
                    )
            if config.suite is not None:
                answer_suite(
                    directory, config, evaluator.bench, name, models=models, executor=executor, progress=progress
                )
    write_json(directory.path / "evaluation.json", figures(directory, config))


def _calibration(directory: RunDirectory, config: RunConfig) -> Stage:
    """The calibration prompts; a run that an earlier version began has none yet."""
    try:
        return directory.finished(CALIBRATION)
    except StageMissing:
        return collect_calibration(directory, config)


def _outcome(directory: RunDirectory, config: RunConfig, progress: ProgressDisplay) -> RunOutcome:
    page = report(directory, config, progress=progress)
    return RunOutcome(directory.path, figures(directory, config), page)


_STAGES: dict[str, Callable[[RunDirectory, RunConfig, ProgressDisplay], None]] = {
    "generate": _generate,
    "score": _score,
    "distil": _distil,
    "train": _train,
    "evaluate": _evaluate,
}
