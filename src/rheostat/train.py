"""Train: the model learns to obey the control, or what a rival teaches, by transformers.Trainer. Rows in, model out."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rheostat import launch, plugins, trainings
from rheostat.calibration import Calibrator
from rheostat.checkpoints import last_checkpoint
from rheostat.config import LoraConfig, RunConfig, TrainConfig
from rheostat.errors import InputError
from rheostat.fine_tuning import WHOLE, fine_tune, kept_rows
from rheostat.launch import Rank
from rheostat.method_name import TrainingData
from rheostat.model_files import identity, quiet
from rheostat.model_shapes import parameter_count
from rheostat.models import Policy, load_policy, pick_device, recipe_policy
from rheostat.online_trainer import train_online
from rheostat.plugins import Needs, Objective
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.recipe import objective_options
from rheostat.records import Example, Pair, Prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN, calibrated_scorer
from rheostat.training_plan import settled
from rheostat.trainings import Training
from rheostat.weight_importance import weight_importance, write_importance

ADAPTER = "adapter"
"""The folder of a training stage that holds its PEFT adapter, beside the merged `model`; of one that trains routers
its `router.safetensors` and a copy of each expert's adapter, with no model beside it: the base is the model."""


def train(
    run: RunDirectory,
    config: RunConfig,
    training: Training,
    *,
    calibrators: Mapping[str, Calibrator] | None = None,
    progress: ProgressDisplay = null_progress,
) -> Stage:
    """One training: its data in; the model is in the stage's folder `model/`.

    It starts from the base model, or from that of `training.start`. A killed training resumes from its last checkpoint
    and ends with the same weights. `calibrators`: of the run's own rewards, for what learns from prompts alone and so
    scores while it trains.
    """
    module: Objective = plugins.load("objectives", training.objective)
    options = settled(
        training.options(config),
        parameter_count(config.model),
        is_quantized=config.quantization is not None,
        adapter=module.NEEDS.adapter,
    )
    config = config.model_copy(update={"train": options})
    rank = launch.join(on_cpu=pick_device(config.device).type == "cpu")
    stage = _opened(
        run,
        training.stage,
        {
            **_data(run, training, config),
            "model": identity(config.model),
            "train": _plain(options),
            "counterfactual": options.counterfactual.model_dump() if module.NEEDS.counterfactual else None,
            "objective": training.objective,
            "options": repr(objective_options(options, training.objective)),
            "dtype": config.dtype,
            "seed": config.seed,
            **config.loading,
            **_required(run, training, config),
        },
        rank,
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    if module.NEEDS.rows == "prompts" and rank.count > 1:
        raise InputError(
            f"{training.objective}: got {rank.count} processes of a launcher, allowed is one",
            hint="run `rheostat train RUN` without a launcher; trainings that have finished are kept",
        )
    if module.NEEDS.rows == "prompts" and pick_device(config.device).type == "cuda" and torch.cuda.device_count() > 1:
        raise InputError(
            f"{training.objective}: got {torch.cuda.device_count()} visible GPUs, allowed is one: TRL refuses more "
            "without a launcher",
            hint="set CUDA_VISIBLE_DEVICES=0",
        )
    if launch.is_sharded():  # FSDP places the weights, a shard on each device
        _refuse_sharded(config, module.NEEDS)
    config_here = config.model_copy(update={"device": "cpu"}) if launch.is_sharded() else config
    policy = recipe_policy(config_here, _start(run, training))
    rewarder = trainings.rewarder_of(training, config)
    checkpoints = stage.path / "checkpoints"
    earlier = last_checkpoint(checkpoints)
    rows: Sequence[Example] | Sequence[Pair] = ()
    if module.NEEDS.rows == "prompts":
        assert calibrators is not None, training
        figures = train_online(
            policy,
            training.data.first(run.finished("prompts").read(Prompt, prefix="train")),
            objective=training.objective,
            config=config,
            scorer=calibrated_scorer(config, OWN, calibrators),
            checkpoints=checkpoints,
            adapter=stage.path / ADAPTER,
            label=task_label(training, config),
            progress=progress,
        )
    else:
        wants_pairs = module.NEEDS.rows == "pairs"
        distilled = run.finished(training.data.stage)
        rows = distilled.read(Pair) if wants_pairs else distilled.read(Example)
        figures = fine_tune(
            policy,
            rows,
            objective=training.objective,
            config=config,
            checkpoints=checkpoints,
            adapter=stage.path / ADAPTER,
            ordered_by=training.data.by,
            experts=_experts(run, module, config),
            rewarder=None
            if rewarder is None
            else recipe_policy(config, _model(run, rewarder)),
            label=task_label(training, config),
            progress=progress,
            rank=rank,
        )
    if not rank.leads:
        launch.meet(rank)
        return stage
    if not module.NEEDS.experts:
        if config.quantization is not None:  # adapters are merged into whole weights, not into those of 4 bits
            policy = load_policy(
                _start(run, training) or config.model, dtype=config.dtype, device="cpu", adapter=stage.path / ADAPTER
            )
        _save(policy, stage.path / "model", whole=checkpoints / WHOLE if launch.is_sharded() else None)
    if module.NEEDS.importance:
        _weigh(stage, rows, module, config, training.objective)
    shutil.rmtree(checkpoints, ignore_errors=True)
    stage.finish(figures)
    steps = figures["steps"]
    made = steps - (int(earlier.rpartition("-")[2]) if earlier else 0)
    run.record_timing(stage.name, time.perf_counter() - started, steps=steps, steps_made=made)
    launch.meet(rank)
    return stage


def _data(run: RunDirectory, training: Training, config: RunConfig) -> dict[str, Any]:
    """What it learns from: a distillation, or prompts, the scores of their answers and how long those may be."""
    if training.data.variant != "prompts":
        return {"examples": run.finished(training.data.stage).fingerprint}
    form = config.control_format  # its grid is what the model is asked under
    return {
        "prompts": run.finished("prompts").fingerprint,
        "share": training.data.share,
        "score": run.finished("score").fingerprint,
        "max_tokens": config.generate.max_tokens,
        **({} if config.levels == RunConfig.model_fields["levels"].default else {"levels": form.levels}),
    }


def _model(run: RunDirectory, training: Training) -> str:
    """The folder of a finished training's model."""
    return str((run.finished(training.stage).path / "model").resolve())


def _start(run: RunDirectory, training: Training) -> str | None:
    return None if training.start is None else _model(run, training.start)


def _experts(run: RunDirectory, objective: Objective, config: RunConfig) -> dict[str, Path]:
    """The adapters' folders of an objective's experts, by role."""
    stages = {role: trainings.training(name, config).stage for role, name in objective.NEEDS.experts.items()}
    return {role: run.finished(stage).path / ADAPTER for role, stage in stages.items()}


def _required(run: RunDirectory, training: Training, config: RunConfig) -> dict[str, Any]:
    """The trainings that went before; nothing where there were none."""
    found = {str(each): run.finished(each.stage).fingerprint for each in trainings.requirements(training, config)}
    return {"required": found} if found else {}


def _opened(run: RunDirectory, name: str, inputs: Mapping[str, Any], rank: Rank) -> Stage:
    """The stage of a training; where several processes train, the leading one opens it for all."""
    stage: Stage | None = None
    if rank.leads:
        stage = run.stage(name, inputs=inputs)
        last_checkpoint(stage.path / "checkpoints")  # removes torn ones
    launch.meet(rank)
    return stage or run.joined(name, inputs=inputs)


def _plain(options: TrainConfig) -> dict[str, Any]:
    """What every training depends on; keys that came later only where they are not at their default."""
    plain = options.model_dump(exclude={"objectives", "overrides", "variant", "counterfactual", "lora_above"})
    for key in ("accumulation", "gradient_checkpointing", "forged_styles"):
        if plain[key] == TrainConfig.model_fields[key].default:
            del plain[key]
    lora = plain["lora"]
    if isinstance(lora, dict) and lora["layers"] == LoraConfig.model_fields["layers"].default:
        del lora["layers"]
    return plain


def task_label(training: Training, config: RunConfig) -> str:
    """What the progress of a training is shown under."""
    is_usual = training.data == TrainingData(variant=config.train.variant) and training.start is None
    return f"train {training.objective}" if is_usual else f"train {training}"


def _weigh(
    stage: Stage, rows: Sequence[Example] | Sequence[Pair], module: Objective, config: RunConfig, objective: str
) -> None:
    """How much each weight of the saved model matters to its loss, into the stage; adapters are merged there."""
    saved = load_policy(
        str(stage.path / "model"), dtype=config.dtype, device=config.device, attention=config.attention
    )
    examples = [row for row in kept_rows(rows, module.NEEDS.keeps) if isinstance(row, Example)]
    options = objective_options(config.train, objective)
    write_importance(stage.path, weight_importance(saved, examples, config, objective=module, options=options))


def _refuse_sharded(config: RunConfig, needs: Needs) -> None:
    """Raises `InputError` for what FSDP cannot train here."""
    options = config.train
    if options.lora is not None or options.optimizer != "adamw":
        raise InputError(
            f"train: got {'lora' if options.lora is not None else options.optimizer} under FSDP, allowed is adamw for "
            "all weights",
            hint="set train.lora=null and train.optimizer=adamw, or launch without FSDP: adapters rarely need it",
        )
    if needs.rows != "examples" or needs.importance:
        what = "a weight's importance" if needs.importance else needs.rows
        raise InputError(
            f"train: got an objective that needs {what} under FSDP, allowed are those of examples alone",
            hint="launch without FSDP: frozen models beside the trained one are not sharded",
        )


def _save(policy: Policy, folder: Path, *, whole: Path | None = None) -> None:
    """The model and its tokenizer, moved into place whole; `whole` holds the model where it was sharded."""
    aside = folder.with_name(folder.name + ".tmp-save")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        if whole is None:
            policy.model.save_pretrained(aside)
        else:
            whole.rename(aside)
            (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle
        policy.tokenizer.save_pretrained(aside)
    aside.rename(folder)
