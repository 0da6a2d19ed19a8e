"""transformers.Trainer with an objective's loss over planned batches: one process or several, one pass or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rheostat.accumulation import accumulate
from rheostat.launch import ALONE, Rank
from rheostat.logprobs import logprobs_through
from rheostat.plugins import LogProbabilities, Objective, ObjectiveInputs, PairInputs
from rheostat.rank_batches import gathered, summed_gradient

ROW_TENSORS = ("input_ids", "attention_mask", "response_mask")
"""The tensors of a batch that go through the model."""


class Batches(Protocol):
    """The planned batches of a training; item i is step i."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> dict[str, Tensor]: ...

    def inputs(
        self, found: LogProbabilities, batch: Mapping[str, Tensor], *, warmth: float
    ) -> ObjectiveInputs | PairInputs:
        """What the objective is computed from, off the log-probabilities of all of a batch's rows."""
        ...


class ObjectiveTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is an objective's, and whose order of batches is the plan's.

    `gates` tells the gates of a routed model's last pass, of the tokens in a mask, for an objective that learns them.
    """

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        batches: Batches,
        *,
        objective: Objective,
        options: Any,
        passes: int = 1,
        warmup_steps: int = 0,
        gates: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
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
        self._batches = batches
        self._objective = objective
        self._options = options
        self._passes = passes
        self._warmup_steps = warmup_steps
        self._gates = gates
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
        return self._loss(self._forward(model, {name: inputs[name] for name in ROW_TENSORS}), inputs)

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
            {name: batch[name] for name in ROW_TENSORS},
            self._passes,
            forward=forward,
            loss=lambda found: self._loss(found, batch),
            backward=self.accelerator.backward,
            apart=lambda: self.accelerator.no_sync(model),
        )

    def _forward(self, model: Any, rows: Mapping[str, Tensor]) -> LogProbabilities:
        """This process's rows through the model, wrapped as it may be; its output layer is the inner one's."""
        ids, attention, response = (rows[name] for name in ROW_TENSORS)
        return logprobs_through(model, self.model.get_output_embeddings(), ids, attention, response)

    def _loss(self, found: LogProbabilities, batch: Mapping[str, Tensor]) -> Tensor:
        """The objective of the whole batch, of which `found` is this process's part."""
        if self._rank.count > 1:
            found = gathered(found, batch["whole_mask"], self._rank)
        warmth = min(1.0, self.state.global_step / self._warmup_steps) if self._warmup_steps else 1.0
        inputs = self._batches.inputs(found, batch, warmth=warmth)
        if self._gates is not None:
            assert isinstance(inputs, PairInputs), type(inputs)
            inputs = replace(inputs, gates=self._gates(batch["attention_mask"]))
        loss = self._objective.loss(inputs, self._options)
        for name, part in loss.parts.items():
            self._parts.setdefault(name, []).append(part)
        return summed_gradient(loss.total, self._rank)

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds the mean of each of the loss's parts since the last log."""
        means = {name: float(torch.stack(parts).mean()) for name, parts in self._parts.items()}
        self._parts = {}
        super().log({**logs, **means}, *arguments, **keywords)
