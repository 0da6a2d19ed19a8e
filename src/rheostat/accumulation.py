"""The gradient of a whole batch, computed in several passes: any objective, a fraction of the memory.

The loss of an objective is a function of the batch's log-probabilities as a whole, and need not be a sum over rows. So
each pass computes its rows' log-probabilities twice: first without gradient, for the loss and its derivative by every
log-probability; then with it, to carry that derivative back into the weights. One more forward pass is the price.
Source: gradient caching, arXiv 2101.06983.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from rheostat.plugins import LogProbabilities

Batch = Mapping[str, Tensor]
Forward = Callable[[Batch], LogProbabilities]


def accumulate(
    batch: Batch,
    passes: int,
    *,
    forward: Forward,
    loss: Callable[[LogProbabilities], Tensor],
    backward: Callable[[Tensor], None],
    apart: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Adds the gradient of `loss(forward(batch))` to the weights; gives the loss, a scalar without gradient.

    Every tensor of `batch` is `(rows, tokens)`; `attention_mask` and padding on the right are among what it holds. At
    most `passes` passes, of as equal numbers of rows as can be. Each `backward` but the last is made within `apart()`,
    where processes need not meet. Random draws (dropout) are the same in both computations of a pass.
    """
    slices = list(_slices(batch, passes))
    width = batch["input_ids"].shape[1] - 1
    states: list[list[Tensor]] = []
    found: list[LogProbabilities] = []
    with torch.no_grad():
        for part in slices:
            states.append(_random_states())
            found.append(_widened(forward(part), width))
    values = torch.cat([each.values for each in found]).requires_grad_()
    total = loss(LogProbabilities(values, torch.cat([each.mask for each in found])))
    (derivative,) = torch.autograd.grad(total, values)
    start = 0
    for number, (part, state) in enumerate(zip(slices, states, strict=True)):
        rows = len(part["input_ids"])
        with _random_states_of(state), apart() if number + 1 < len(slices) else _together():
            again = _widened(forward(part), width)
            backward((again.values * derivative[start : start + rows]).sum())
        start += rows
    return total.detach()


def _slices(batch: Batch, passes: int) -> Iterator[dict[str, Tensor]]:
    """The rows in `passes` parts, each only as wide as its longest row."""
    rows = torch.arange(len(batch["input_ids"])).tensor_split(min(passes, len(batch["input_ids"])))
    for part in rows:
        chosen = slice(int(part[0]), int(part[-1]) + 1)
        longest = int(batch["attention_mask"][chosen].sum(1).max())
        yield {name: tensor[chosen, :longest] for name, tensor in batch.items()}


def _widened(found: LogProbabilities, width: int) -> LogProbabilities:
    lacking = (0, width - found.values.shape[1])
    return LogProbabilities(pad(found.values, lacking), pad(found.mask, lacking))


def _random_states() -> list[Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


@contextmanager
def _random_states_of(states: list[Tensor]) -> Iterator[None]:
    """Within, and from then on, draws go on from `states`."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])
    yield


@contextmanager
def _together() -> Iterator[None]:
    yield
