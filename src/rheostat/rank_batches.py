"""A planned batch over several processes: each computes some of its rows, and all see the log-probabilities of all.

So an objective is computed on the whole batch in every process, whatever it does with it (batch-mean exponents, mean
lengths, counterfactual sub-samples), and equals the one of a single process; the gradient of each process is that of
its own rows. Memory and time go with the rows computed: what is exchanged is one number a token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rheostat.launch import Rank
from rheostat.logprobs import TokenRow, pad_rows
from rheostat.plugins import LogProbabilities


def own_rows(rows: Sequence[TokenRow], rank: Rank, *, pad_id: int) -> dict[str, Tensor]:
    """The tensors of the rows that this process computes, and `whole_mask` `(rows, longest − 1)` of all of them."""
    if rank.count == 1:
        return pad_rows(rows, pad_id=pad_id)
    longest = max(map(len, rows))
    before = torch.tensor([len(row.prompt) for row in rows])[:, None]
    after = torch.tensor([len(row) for row in rows])[:, None]
    positions = torch.arange(1, longest)
    return {
        **pad_rows([rows[index] for index in rank.rows(len(rows))], pad_id=pad_id),
        "whole_mask": (positions >= before) & (positions < after),
    }


def gathered(own: LogProbabilities, whole_mask: Tensor, rank: Rank) -> LogProbabilities:
    """The log-probabilities of all rows, in order, from those of every process; differentiable in this one's own.

    `own`: `(own rows, tokens)`, as many rows as every other process; `whole_mask` `(rows, tokens of all)`.
    """
    missing = whole_mask.shape[1] - own.values.shape[1]
    values = torch.nn.functional.pad(own.values, (0, missing))
    parts = [torch.empty_like(values) for _ in range(rank.count)]
    torch.distributed.all_gather(parts, values.detach().contiguous())
    parts[rank.index] = values
    rows = torch.stack(parts, dim=1).flatten(0, 1)[: len(whole_mask)]
    return LogProbabilities(rows, whole_mask)


def summed_gradient(loss: Tensor, rank: Rank) -> Tensor:
    """The same loss with its gradient times the number of processes, as data parallelism will average it over them."""
    if rank.count == 1:
        return loss
    return loss + (rank.count - 1) * (loss - loss.detach())
