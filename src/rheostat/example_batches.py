"""The planned batches of a training as tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rheostat.chat import encode_prompt, encode_response
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.launch import ALONE, Rank
from rheostat.logprobs import TokenRow
from rheostat.models import Policy
from rheostat.plugins import LogProbabilities, Objective, ObjectiveInputs
from rheostat.rank_batches import own_rows
from rheostat.records import Control, Example, Finish
from rheostat.training_plan import PlannedBatch, plan_batches


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
        self._reads_control = objective.NEEDS.control
        self._examples = examples
        self._responses = [response_ids(policy, example.response, example.finish) for example in examples]
        self._prompts: dict[tuple[int, str], list[int]] = {}
        lengths = [len(self._row(index, example.control)) for index, example in enumerate(examples)]
        self.plan: list[PlannedBatch] = plan_batches(
            examples,
            lengths,
            control_format=control_format,
            options=config.train,
            needs_counterfactual=objective.NEEDS.counterfactual,
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

    def inputs(self, found: LogProbabilities, batch: Mapping[str, Tensor], *, warmth: float) -> ObjectiveInputs:
        """What an objective is computed from: the log-probabilities of a batch's rows, told apart."""
        return as_objective_inputs(found, batch, warmth=warmth)

    def _row(self, index: int, control: Control) -> TokenRow:
        text = self._format.render(control) if self._reads_control else ""
        if (index, text) not in self._prompts:
            self._prompts[index, text] = encode_prompt(
                self._tokenizer,
                self._examples[index].messages,
                control_text=text,
                neutralise=self._format.neutralise,
            )
        prompt = self._prompts[index, text]
        return TokenRow(prompt, self._responses[index][: max(1, self._context - len(prompt))])


def as_objective_inputs(
    found: LogProbabilities, batch: Mapping[str, Tensor], *, warmth: float = 1.0
) -> ObjectiveInputs:
    """The log-probabilities of a batch's rows, told apart: the factual rows, then the counterfactual ones."""
    rows = batch["counterfactual_rows"]
    if not len(rows):
        return ObjectiveInputs(found, warmth=warmth)
    factual = len(found.values) - len(rows)
    return ObjectiveInputs(
        LogProbabilities(found.values[:factual], found.mask[:factual]),
        LogProbabilities(found.values[factual:], found.mask[factual:]),
        rows,
        batch["changed"],
        warmth,
    )


def response_ids(policy: Policy, response: str, finish: Finish) -> list[int]:
    """The response's token ids, with an end token where it ended."""
    ids = encode_response(policy.tokenizer, response, end_id=policy.end_ids[0])
    return ids[:-1] or ids if finish == "length" else ids
