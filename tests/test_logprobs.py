"""Token log-probabilities: the chunked path for 16-bit logits against float32's, forward and backward."""

import math

import pytest
import torch

from rheostat import logprobs
from rheostat.logprobs import picked_logprobs


def test_two_logits_by_hand() -> None:
    """Logits 0 and ln 3: probabilities ¼ and ¾; the gradient at target 1 is −¼ and 1 − ¾."""
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.bfloat16, requires_grad=True)
    picked = picked_logprobs(logits, torch.tensor([1]))
    assert picked.dtype == torch.float32
    assert picked.item() == pytest.approx(math.log(0.75), abs=2e-3)
    picked.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.25], abs=2e-3)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_what_float32_gives(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits in both types: equal but for the rounding of the gradient to bfloat16 (2⁻⁸ relative)."""
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk * 11)
    generator = torch.Generator().manual_seed(0)
    narrow = (5 * torch.randn(23, 11, generator=generator)).to(torch.bfloat16).requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    targets = torch.randint(11, (23,), generator=generator)
    weights = torch.randn(23, generator=generator)
    own, other = picked_logprobs(narrow, targets), picked_logprobs(wide, targets)
    torch.testing.assert_close(own, other)
    (own * weights).sum().backward()  # type: ignore[no-untyped-call]
    (other * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None and wide.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2**-7, atol=1e-6)


def test_no_rows_give_no_log_probabilities() -> None:
    logits = torch.empty(0, 5, dtype=torch.bfloat16, requires_grad=True)
    picked = picked_logprobs(logits, torch.empty(0, dtype=torch.long))
    picked.sum().backward()  # type: ignore[no-untyped-call]
    assert picked.shape == (0,)
