"""Fine-tuning of a model in memory by an objective of examples or pairs, through transformers.Trainer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from rheostat import launch, plugins
from rheostat.adapters import refuse_frozen_weights, routable, save_adapter, trainable
from rheostat.checkpoints import Advance, last_checkpoint
from rheostat.config import LoraConfig, RunConfig, TrainConfig
from rheostat.errors import InputError
from rheostat.example_batches import ExampleBatches
from rheostat.launch import ALONE, Rank
from rheostat.model_files import quiet
from rheostat.models import Policy
from rheostat.objective_trainer import ObjectiveTrainer
from rheostat.optimisers import muon_with_adamw
from rheostat.pair_batches import PairBatches
from rheostat.plugins import Objective
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.recipe import objective_options
from rheostat.records import Example, Pair
from rheostat.routed import save_routed
from rheostat.training_arguments import training_arguments
from rheostat.training_plan import settled, with_forged_controls

WHOLE = "whole"
"""Where in the checkpoints a sharded training gathers its weights."""


def fine_tune(
    policy: Policy,
    rows: Sequence[Example] | Sequence[Pair],
    *,
    objective: str,
    config: RunConfig,
    checkpoints: Path,
    adapter: Path | None = None,
    ordered_by: str | None = None,
    experts: Mapping[str, Path] | None = None,
    rewarder: Policy | None = None,
    label: str = "train",
    progress: ProgressDisplay = null_progress,
    rank: Rank = ALONE,
) -> dict[str, Any]:
    """Fine-tune `policy.model` in place; resumes from `checkpoints`. Figures: steps, tokens, the loss's parts.

    With `train.lora` the trained adapter is written into the folder `adapter`, where one is given, and merged, save
    into quantised weights. Else all weights are trained, in float32 whatever their type, and rounded to it at the end.
    `rows` are examples or pairs, as the objective needs; `ordered_by` is what says which response of a pair is the
    chosen one, `rewarder` the model of its token-level rewards. With `experts`, their adapters' folders by role, the
    routers of their gates are trained and written into the folder `adapter`, and the model stays as it is.
    All processes of a launcher call it, each as its `rank`; all end with the same weights. Raises `ModelError` for
    weights that cannot be trained and adapters that do not fit, `InputError` for routers in several passes.
    """
    parameters = policy.model.num_parameters()
    module: Objective = plugins.load("objectives", objective)
    options = settled(
        config.train.of(objective),
        parameters,
        is_quantized=config.quantization is not None,
        adapter=module.NEEDS.adapter,
    )
    config = config.model_copy(update={"train": options})
    refuse_frozen_weights(policy, options.lora is not None or bool(experts))
    if experts and (options.accumulation > 1 or rank.count > 1 or launch.is_sharded()):
        raise InputError(
            f"{objective}: got accumulation {options.accumulation} in {rank.count} processes, allowed is 1 in 1: "
            "the penalty on gates is of one pass",
            hint=f"set train.overrides.{objective}.accumulation=1 and train it in one process",
        )
    own = objective_options(options, objective)
    kept = kept_rows(rows, module.NEEDS.keeps)
    batches = _batches(policy, kept, module, config, ordered_by, rewarder, rank)
    rewarder = None  # has said what it had to
    set_seed(config.seed)  # adapters and routers are initialised at random
    on_cpu = policy.device.type == "cpu" and not launch.is_sharded()
    with ExitStack() as held, quiet(), progress.task(label, len(batches), unit="steps") as advance:
        routers = held.enter_context(routable(policy, options, experts, width=own.width)) if experts else None
        model = policy.model if routers else held.enter_context(trainable(policy, options))
        trainer = ObjectiveTrainer(
            model,
            TrainingArguments(**training_arguments(options, config, checkpoints, steps=len(batches), on_cpu=on_cpu)),
            batches,
            objective=module,
            options=own,
            passes=options.accumulation,
            warmup_steps=round(len(batches) * options.counterfactual.warmup_ratio),
            gates=routers.gates if routers else None,
            optimizer=_optimizer(options),
            callbacks=[Advance(advance)],
            rank=rank,
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        if launch.is_sharded():
            trainer.save_model(str(checkpoints / WHOLE))
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trained_parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
        if adapter is not None and rank.leads:
            if experts and routers:
                save_routed(adapter, routers.routers, experts)
            elif options.lora is not None:
                save_adapter(model, adapter)
    log = [entry for entry in trainer.state.log_history if "nll" in entry]
    return {
        "steps": len(batches),
        "examples": len(kept),
        "tokens": batches.tokens,
        "parameters": parameters,
        "trained_parameters": trained_parameters,
        "lora": options.lora.model_dump() if isinstance(options.lora, LoraConfig) and not experts else None,
        "learning_rate": options.learning_rate,
        "log": [{key: value for key, value in entry.items() if key != "epoch"} for entry in log],
    }


def kept_rows(
    rows: Sequence[Example] | Sequence[Pair], keeps: Callable[..., bool] | None
) -> list[Example] | list[Pair]:
    """The rows that an objective wants. Raises `InputError` where it wants none."""
    if keeps is None:
        return list(rows)  # type: ignore[return-value]
    kept = [
        row
        for row in rows
        if (keeps(row.chosen_scores, row.rejected_scores) if isinstance(row, Pair) else keeps(row.scores))
    ]
    if not kept:
        raise InputError(
            f"got {len(rows)} rows, of which the objective wants none",
            hint="raise generate.samples or prompts.train_limit, so that the pool holds what it learns from",
        )
    return kept  # type: ignore[return-value]


def _batches(
    policy: Policy,
    rows: Sequence[Example] | Sequence[Pair],
    objective: Objective,
    config: RunConfig,
    ordered_by: str | None,
    rewarder: Policy | None,
    rank: Rank,
) -> ExampleBatches | PairBatches:
    """The planned batches of what the objective learns from."""
    form = config.control_format
    if objective.NEEDS.rows == "pairs":
        pairs = [row for row in rows if isinstance(row, Pair)]
        return PairBatches(policy, pairs, form, config, ordered_by=ordered_by, rewarder=rewarder, rank=rank)
    examples = [row for row in rows if isinstance(row, Example)]
    if objective.NEEDS.control:
        examples = with_forged_controls(
            examples,
            control_format=form,
            share=config.train.forged_share,
            styles=config.train.forged_styles,
            seed=config.seed,
        )
    return ExampleBatches(policy, examples, form, config, objective=objective, rank=rank)


def _optimizer(options: TrainConfig) -> tuple[Any, dict[str, Any]] | None:
    """What the Trainer builds its optimiser from; None leaves it its AdamW."""
    if options.optimizer == "adamw":
        return None
    return (lambda: muon_with_adamw), {"lr": float(options.learning_rate), "weight_decay": options.weight_decay}
