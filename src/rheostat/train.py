"""Train: fine-tune the model to obey the control, through transformers.Trainer. Examples in, a model out."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rheostat import launch, plugins
from rheostat.accumulation import accumulate
from rheostat.adapters import refuse_frozen_weights, save_adapter, trainable
from rheostat.chat import encode_prompt, encode_response
from rheostat.checkpoints import Advance, last_checkpoint
from rheostat.config import LoraConfig, RunConfig, TrainConfig
from rheostat.control import ControlFormat
from rheostat.errors import InputError
from rheostat.launch import ALONE, Rank
from rheostat.logprobs import TokenRow, logprobs_through, response_logprobs
from rheostat.method_name import TrainingData
from rheostat.model_files import identity, quiet
from rheostat.model_shapes import parameter_count
from rheostat.models import Policy, load_policy, pick_device, recipe_policy
from rheostat.optimisers import muon_with_adamw
from rheostat.plugins import LogProbabilities, Objective, ObjectiveInputs
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.rank_batches import gathered, own_rows, summed_gradient
from rheostat.recipe import objective_options
from rheostat.records import Control, Example
from rheostat.rundir import RunDirectory, Stage
from rheostat.training_plan import PlannedBatch, plan_batches, settled, with_forged_controls

_LOG_STEPS = 10
_WHOLE = "whole"
"""Where in the checkpoints a sharded training gathers its weights."""
_ROW_TENSORS = ("input_ids", "attention_mask", "response_mask")
ADAPTER = "adapter"
"""The folder of a training stage that holds its PEFT adapter, beside the merged `model`."""


def train(
    run: RunDirectory,
    config: RunConfig,
    objective: str,
    data: TrainingData,
    *,
    progress: ProgressDisplay = null_progress,
) -> Stage:
    """Fine-tune on one choice of examples with one objective; the model is in the stage's folder `model/`.

    A killed training resumes from its last checkpoint and ends with the same weights.
    """
    distilled = run.finished(f"distil/{data}")
    module: Objective = plugins.load("objectives", objective)
    options = settled(
        config.train, parameter_count(config.model), is_quantized=config.quantization is not None
    )
    config = config.model_copy(update={"train": options})
    rank = launch.join(on_cpu=pick_device(config.device).type == "cpu")
    stage = _opened(
        run,
        stage_name(objective, data),
        {
            "examples": distilled.fingerprint,
            "model": identity(config.model),
            "train": _plain(options),
            "counterfactual": options.counterfactual.model_dump() if module.NEEDS_COUNTERFACTUAL else None,
            "objective": objective,
            "options": repr(objective_options(options, objective)),
            "dtype": config.dtype,
            "seed": config.seed,
            **config.loading,
        },
        rank,
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    if launch.is_sharded():  # FSDP places the weights, a shard on each device
        _refuse_sharded(config)
        policy = recipe_policy(config.model_copy(update={"device": "cpu"}))
    else:
        policy = recipe_policy(config)
    examples = distilled.read(Example)
    checkpoints = stage.path / "checkpoints"
    earlier = last_checkpoint(checkpoints)
    figures = fine_tune(
        policy,
        examples,
        objective=objective,
        config=config,
        checkpoints=checkpoints,
        adapter=stage.path / ADAPTER,
        label=task_label(objective, data, config),
        progress=progress,
        rank=rank,
    )
    if not rank.leads:
        launch.meet(rank)
        return stage
    if config.quantization is not None:  # adapters are merged into whole weights, not into those of 4 bits
        policy = load_policy(config.model, dtype=config.dtype, device="cpu", adapter=stage.path / ADAPTER)
    _save(policy, stage.path / "model", whole=checkpoints / _WHOLE if launch.is_sharded() else None)
    shutil.rmtree(checkpoints, ignore_errors=True)
    stage.finish(figures)
    steps = figures["steps"]
    made = steps - (int(earlier.rpartition("-")[2]) if earlier else 0)
    run.record_timing(stage.name, time.perf_counter() - started, steps=steps, steps_made=made)
    launch.meet(rank)
    return stage


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
    plain = options.model_dump(exclude={"objectives", "variant", "counterfactual", "lora_above"})
    for key in ("accumulation", "gradient_checkpointing", "forged_styles"):
        if plain[key] == TrainConfig.model_fields[key].default:
            del plain[key]
    return plain


def stage_name(objective: str, data: TrainingData) -> str:
    """The name of the stage that trains a model."""
    return f"train/{objective}-{data}"


def task_label(objective: str, data: TrainingData, config: RunConfig) -> str:
    """What the progress of a training is shown under."""
    is_usual = data == TrainingData(variant=config.train.variant)
    return f"train {objective}" + ("" if is_usual else f"+{data}")


def trained(config: RunConfig) -> list[tuple[str, TrainingData]]:
    """Which models the recipe's methods need: (objective, examples), each once."""
    needed = {
        (name.objective, name.data(config.train.variant)): None
        for name in config.method_names
        if name.objective is not None
    }
    return list(needed)


def fine_tune(
    policy: Policy,
    examples: Sequence[Example],
    *,
    objective: str,
    config: RunConfig,
    checkpoints: Path,
    adapter: Path | None = None,
    label: str = "train",
    progress: ProgressDisplay = null_progress,
    rank: Rank = ALONE,
) -> dict[str, Any]:
    """Fine-tune `policy.model` in place; resumes from `checkpoints`. Figures: steps, tokens, the loss's parts.

    With `train.lora` the trained adapter is written into the folder `adapter`, where one is given, and merged, save
    into quantised weights. Else all weights are trained, in float32 whatever their type, and rounded to it at the end.
    All processes of a launcher call it, each as its `rank`; all end with the same weights. Raises `ModelError` for
    weights that cannot be trained.
    """
    parameters = policy.model.num_parameters()
    options = settled(config.train, parameters, is_quantized=config.quantization is not None)
    refuse_frozen_weights(policy, options.lora is not None)
    module: Objective = plugins.load("objectives", objective)
    control_format = config.control_format
    forged = with_forged_controls(
        examples,
        control_format=control_format,
        share=options.forged_share,
        styles=options.forged_styles,
        seed=config.seed,
    )
    batches = ExampleBatches(policy, forged, control_format, config, objective=module, rank=rank)
    set_seed(config.seed)  # adapters are initialised at random
    on_cpu = policy.device.type == "cpu" and not launch.is_sharded()
    with trainable(policy, options) as model, quiet(), progress.task(label, len(batches), unit="steps") as advance:
        trainer = ObjectiveTrainer(
            model,
            _arguments(options, config, checkpoints, steps=len(batches), on_cpu=on_cpu),
            batches,
            objective=module,
            options=objective_options(options, objective),
            passes=options.accumulation,
            warmup_steps=round(len(batches) * options.counterfactual.warmup_ratio),
            optimizer=_optimizer(options),
            callbacks=[Advance(advance)],
            rank=rank,
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        if launch.is_sharded():
            trainer.save_model(str(checkpoints / _WHOLE))
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trained_parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
        if options.lora is not None and adapter is not None and rank.leads:
            save_adapter(model, adapter)
    log = [entry for entry in trainer.state.log_history if "nll" in entry]
    return {
        "steps": len(batches),
        "examples": len(examples),
        "tokens": batches.tokens,
        "parameters": parameters,
        "trained_parameters": trained_parameters,
        "lora": options.lora.model_dump() if isinstance(options.lora, LoraConfig) else None,
        "learning_rate": options.learning_rate,
        "log": [{key: value for key, value in entry.items() if key != "epoch"} for entry in log],
    }


def _arguments(
    options: TrainConfig, config: RunConfig, checkpoints: Path, *, steps: int, on_cpu: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the data is a whole planned batch
        learning_rate=float(options.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=round(steps * options.warmup_ratio),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch_fused",
        save_steps=options.save_steps,
        save_total_limit=1,
        logging_steps=_LOG_STEPS,
        seed=config.seed,
        bf16=config.dtype == "bfloat16" or options.mixed_precision,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        label_names=[],
    )


class ExampleBatches(Dataset[dict[str, Tensor]]):
    """The planned batches as tensors; item i is step i: its factual rows, then its counterfactual ones.

    Of these rows, those that the process `rank` computes.
    """

    def __init__(
        self,
        policy: Policy,
        examples: Sequence[Example],
        control_format: ControlFormat,
        config: RunConfig,
        *,
        objective: Objective,
        rank: Rank = ALONE,
    ) -> None:
        self._rank = rank
        self._tokenizer = policy.tokenizer
        self._context = policy.context
        self._format = control_format
        self._examples = examples
        self._responses = [_response_ids(policy, example) for example in examples]
        self._prompts: dict[tuple[int, str], list[int]] = {}
        lengths = [len(self._row(index, example.control)) for index, example in enumerate(examples)]
        self.plan: list[PlannedBatch] = plan_batches(
            examples,
            lengths,
            control_format=control_format,
            options=config.train,
            needs_counterfactual=objective.NEEDS_COUNTERFACTUAL,
            seed=config.seed,
        )
        self.tokens = sum(lengths[index] for batch in self.plan for index in batch.examples)
        """Tokens of the factual rows of the whole training."""

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batch = self.plan[step]
        rows = [self._row(index, self._examples[index].control) for index in batch.examples]
        changed: list[list[float]] = []
        for row, control in zip(batch.counterfactual_rows, batch.counterfactual_controls, strict=True):
            index = batch.examples[row]
            rows.append(self._row(index, control))
            own = self._examples[index].control
            changed.append([float(control[name] != own[name]) for name in self._format.names])
        return {
            **own_rows(rows, self._rank, pad_id=self._tokenizer.pad_token_id),
            "counterfactual_rows": torch.tensor(batch.counterfactual_rows, dtype=torch.long),
            "changed": torch.tensor(changed),
        }

    def _row(self, index: int, control: Control) -> TokenRow:
        text = self._format.render(control)
        if (index, text) not in self._prompts:
            self._prompts[index, text] = encode_prompt(
                self._tokenizer,
                self._examples[index].messages,
                control_text=text,
                neutralise=self._format.neutralise,
            )
        prompt = self._prompts[index, text]
        return TokenRow(prompt, self._responses[index][: max(1, self._context - len(prompt))])


def _response_ids(policy: Policy, example: Example) -> list[int]:
    """The response's token ids, with an end token where it ended."""
    ids = encode_response(policy.tokenizer, example.response, end_id=policy.end_ids[0])
    return ids[:-1] or ids if example.finish == "length" else ids


class ObjectiveTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is an objective's, and whose order of batches is the plan's."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        batches: ExampleBatches,
        *,
        objective: Objective,
        options: Any,
        passes: int = 1,
        warmup_steps: int = 0,
        optimizer: tuple[Any, dict[str, Any]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        rank: Rank = ALONE,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda items: items[0],
            callbacks=list(callbacks),
            optimizer_cls_and_kwargs=optimizer,
        )
        self.remove_callback(PrinterCallback)
        self._objective = objective
        self._options = options
        self._passes = passes
        self._warmup_steps = warmup_steps
        self._rank = rank
        self._parts: dict[str, list[Tensor]] = {}
        # Our loss is already a mean over the batch's examples: nothing is left to divide by.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every step's batch, in the order of the plan; a batch has this process's share in it already."""
        if self._rank.count == 1:
            loader: DataLoader[dict[str, Tensor]] = super().get_train_dataloader()
            return loader
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=self.data_collator)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The objective of a planned batch."""
        assert not return_outputs
        return self._loss(self._forward(model, {name: inputs[name] for name in _ROW_TENSORS}), inputs)

    def training_step(
        self, model: Any, inputs: Mapping[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The gradient of a planned batch, in as many passes as it was told."""
        if self._passes == 1:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        model.train()
        batch = self._prepare_inputs(inputs)

        def forward(rows: Mapping[str, Tensor]) -> LogProbabilities:
            with self.compute_loss_context_manager():
                return self._forward(model, rows)

        return accumulate(
            {name: batch[name] for name in _ROW_TENSORS},
            self._passes,
            forward=forward,
            loss=lambda found: self._loss(found, batch),
            backward=self.accelerator.backward,
            apart=lambda: self.accelerator.no_sync(model),
        )

    def _forward(self, model: Any, rows: Mapping[str, Tensor]) -> LogProbabilities:
        """This process's rows through the model, wrapped as it may be; its output layer is the inner one's."""
        return logprobs_through(model, self.model.get_output_embeddings(), **rows)

    def _loss(self, found: LogProbabilities, batch: Mapping[str, Tensor]) -> Tensor:
        """The objective of the whole batch, of which `found` is this process's part."""
        if self._rank.count > 1:
            found = gathered(found, batch["whole_mask"], self._rank)
        inputs = as_objective_inputs(found, batch)
        warmth = min(1.0, self.state.global_step / self._warmup_steps) if self._warmup_steps else 1.0
        loss = self._objective.loss(replace(inputs, warmth=warmth), self._options)
        for name, part in loss.parts.items():
            self._parts.setdefault(name, []).append(part)
        return summed_gradient(loss.total, self._rank)

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds the mean of each of the loss's parts since the last log."""
        means = {name: float(torch.stack(parts).mean()) for name, parts in self._parts.items()}
        self._parts = {}
        super().log({**logs, **means}, *arguments, **keywords)


def objective_inputs(model: Any, batch: Mapping[str, Tensor]) -> ObjectiveInputs:
    """One forward pass over the factual and the counterfactual rows of a batch."""
    return as_objective_inputs(response_logprobs(model, **{name: batch[name] for name in _ROW_TENSORS}), batch)


def as_objective_inputs(found: LogProbabilities, batch: Mapping[str, Tensor]) -> ObjectiveInputs:
    """The log-probabilities of a batch's rows, told apart: the factual rows, then the counterfactual ones."""
    rows = batch["counterfactual_rows"]
    if not len(rows):
        return ObjectiveInputs(found)
    factual = len(found.values) - len(rows)
    return ObjectiveInputs(
        LogProbabilities(found.values[:factual], found.mask[:factual]),
        LogProbabilities(found.values[factual:], found.mask[factual:]),
        rows,
        batch["changed"],
    )


def _optimizer(options: TrainConfig) -> tuple[Any, dict[str, Any]] | None:
    """What the Trainer builds its optimiser from; None leaves it its AdamW."""
    if options.optimizer == "adamw":
        return None
    return (lambda: muon_with_adamw), {"lr": float(options.learning_rate), "weight_decay": options.weight_decay}


def _refuse_sharded(config: RunConfig) -> None:
    """Raises `InputError` for what FSDP cannot train here."""
    options = config.train
    if options.lora is not None or options.optimizer != "adamw":
        raise InputError(
            f"train: got {'lora' if options.lora is not None else options.optimizer} under FSDP, allowed is adamw for "
            "all weights",
            hint="set train.lora=null and train.optimizer=adamw, or launch without FSDP: adapters rarely need it",
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
