"""The planned batches of a training on pairs as tensors: the chosen responses of a step, then the rejected ones.

What the frozen models say of the responses (the reference, and one that gives token-level rewards) is computed once,
before the first step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rheostat.chat import encode_prompt
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.example_batches import response_ids
from rheostat.launch import ALONE, Rank
from rheostat.logprobs import TokenRow, token_logprobs
from rheostat.models import Policy
from rheostat.plugins import LogProbabilities, PairInputs
from rheostat.rank_batches import own_rows
from rheostat.records import Message, Pair
from rheostat.training_plan import plan_rows


@dataclass(frozen=True, slots=True)
class _Rows:
    """A pair's two responses under its prompt, as token ids, and how many of their first tokens are the same."""

    chosen: TokenRow
    rejected: TokenRow
    shared: int

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


class PairBatches(Dataset[dict[str, Tensor]]):
    """The planned batches as tensors; item i is step i: its chosen rows, then the rejected ones of the same pairs.

    Of these rows, those that the process `rank` computes. `policy` is the reference: its log-probabilities are taken as
    it is now. `ordered_by`: the attribute that says which response of a pair is the chosen one; None: the mean of all.
    `rewarder` gives token-level rewards, where the objective needs them.
    """

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[Pair],
        control_format: ControlFormat,
        config: RunConfig,
        *,
        ordered_by: str | None = None,
        rewarder: Policy | None = None,
        rank: Rank = ALONE,
    ) -> None:
        self._rank = rank
        self._pairs = pairs
        self._ordered_by = ordered_by
        self._names = control_format.names
        self._pad_id = policy.tokenizer.pad_token_id
        self._rows = _encoded(policy, pairs, control_format)
        self.plan: list[tuple[int, ...]] = plan_rows(
            [len(each) for each in self._rows], options=config.train, seed=config.seed
        )
        self.tokens = sum(
            len(self._rows[index].chosen) + len(self._rows[index].rejected) for batch in self.plan for index in batch
        )
        """Tokens of both rows of all pairs of the whole training."""
        distinct = {_key(row): row for each in self._rows for row in (each.chosen, each.rejected)}
        self._reference = self._frozen(policy, distinct, config)
        self._rewards: dict[_Key, Tensor] | None = None
        if rewarder is not None:
            rewarded = self._frozen(rewarder, distinct, config)
            self._rewards = {key: rewarded[key] - self._reference[key] for key in rewarded}

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        indices = self.plan[step]
        rows = [self._rows[index].chosen for index in indices] + [self._rows[index].rejected for index in indices]
        pairs = [self._pairs[index] for index in indices]
        scores = [[each.chosen_scores[name] for name in self._names] for each in pairs]
        scores += [[each.rejected_scores[name] for name in self._names] for each in pairs]
        return {
            **own_rows(rows, self._rank, pad_id=self._pad_id),
            "reference": _placed(rows, self._reference),
            "scores": torch.tensor(scores),
            "shared": torch.tensor([self._rows[index].shared for index in indices]),
            **({} if self._rewards is None else {"token_rewards": _placed(rows, self._rewards)}),
        }

    def inputs(self, found: LogProbabilities, batch: Mapping[str, Tensor], *, warmth: float) -> PairInputs:
        """What an objective of pairs is computed from: the log-probabilities of a batch's rows, told apart."""
        chosen, rejected = _halves(found.values)
        chosen_mask, rejected_mask = _halves(found.mask)
        reference_chosen, reference_rejected = _halves(batch["reference"])
        chosen_scores, rejected_scores = _halves(batch["scores"])
        rewarded = _halves(batch["token_rewards"]) if "token_rewards" in batch else (None, None)
        return PairInputs(
            LogProbabilities(chosen, chosen_mask),
            LogProbabilities(rejected, rejected_mask),
            LogProbabilities(reference_chosen, chosen_mask),
            LogProbabilities(reference_rejected, rejected_mask),
            {name: chosen_scores[:, place] for place, name in enumerate(self._names)},
            {name: rejected_scores[:, place] for place, name in enumerate(self._names)},
            batch["shared"],
            chosen_token_rewards=rewarded[0],
            rejected_token_rewards=rewarded[1],
            ordered_by=self._ordered_by,
        )

    def _frozen(self, policy: Policy, rows: Mapping["_Key", TokenRow], config: RunConfig) -> "dict[_Key, Tensor]":
        found = token_logprobs(
            policy.model, list(rows.values()), pad_id=self._pad_id, batch_tokens=config.batch_tokens
        )
        return dict(zip(rows, found, strict=True))


_Key = tuple[tuple[int, ...], tuple[int, ...]]


def _key(row: TokenRow) -> _Key:
    return tuple(row.prompt), tuple(row.response)


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = both.chunk(2)
    return chosen, rejected


def _placed(rows: Sequence[TokenRow], known: Mapping[_Key, Tensor]) -> Tensor:
    """What is known of each token of the responses where `LogProbabilities` has it: `(rows, longest − 1)`."""
    placed = torch.zeros(len(rows), max(map(len, rows)) - 1)
    for place, row in enumerate(rows):
        start = len(row.prompt) - 1
        placed[place, start : start + len(row.response)] = known[_key(row)]
    return placed


def _encoded(policy: Policy, pairs: Sequence[Pair], control_format: ControlFormat) -> list[_Rows]:
    prompts: dict[tuple[Message, ...], list[int]] = {}
    found = []
    for pair in pairs:
        if pair.messages not in prompts:
            prompts[pair.messages] = encode_prompt(
                policy.tokenizer, pair.messages, neutralise=control_format.neutralise
            )
        prompt = prompts[pair.messages]
        room = max(1, policy.context - len(prompt))
        chosen = response_ids(policy, pair.chosen, pair.chosen_finish)[:room]
        rejected = response_ids(policy, pair.rejected, pair.rejected_finish)[:room]
        shared = next(
            (place for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
            min(len(chosen), len(rejected)),
        )
        found.append(_Rows(TokenRow(prompt, chosen), TokenRow(prompt, rejected), shared))
    return found
