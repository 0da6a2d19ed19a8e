"""A batch in several passes: the gradient of the whole, whatever the objective and the random draws."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tests.training_steps import objective_inputs
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from rheostat import plugins
from rheostat.accumulation import accumulate
from rheostat.config import RunConfig
from rheostat.example_batches import ExampleBatches, as_objective_inputs
from rheostat.fine_tuning import fine_tune
from rheostat.logprobs import TokenRow, pad_rows, response_logprobs
from rheostat.model_files import quiet
from rheostat.models import Policy, load_policy
from rheostat.objective_trainer import ROW_TENSORS
from rheostat.plugins import LogProbabilities
from rheostat.recipe import load_config, objective_options
from rheostat.records import Example, Message

pytestmark = pytest.mark.usefixtures("one_thread")



@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("pocket:chat", device="cpu")


def examples() -> list[Example]:
    made = []
    for index in range(16):
        control = {"helpfulness": 0.25 * (index % 5), "safety": 0.25 * (index // 2 % 5)}
        messages = (Message("user", f"How do I boil {index // 2} eggs?"),)
        response = f"First, boil egg {index}. " * (1 + index % 3)
        made.append(Example(f"p{index // 2}", messages, control, response, control))
    return made


def config(objective: str = "clm", options: str = "{}", **train: object) -> RunConfig:
    values = {"batch_size": 8, "steps": 3, "balance": 0.0, "learning_rate": 5e-4, "warmup_ratio": 0.0, **train}
    settings = [f"train.{key}={value}" for key, value in values.items()]
    return load_config("pocket", [*settings, f"train.objectives={{{objective}: {options}}}"])


@pytest.mark.parametrize("passes", [2, 100])
@pytest.mark.parametrize(
    ("objective", "options"),
    [("clm", "{}"), ("exmate", "{}"), ("exmate", "{reduction: batch}"), ("contrast", "{}")],
)
def test_the_gradient_is_that_of_the_whole_batch(
    objective: str, options: str, passes: int, policy: Policy
) -> None:
    """8 factual rows and 2 counterfactual ones; exp of a batch mean and log-posteriors are no sums over rows."""
    chosen = config(objective, options)
    module = plugins.load("objectives", objective)
    batch = ExampleBatches(policy, examples(), chosen.control_format, chosen, objective=module)[0]
    given = objective_options(chosen.train, objective)
    model = policy.model
    model.zero_grad()
    whole = module.loss(objective_inputs(model, batch), given).total
    whole.backward()
    wanted = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    seen: list[int] = []
    meetings: list[bool] = []

    def forward(rows: Mapping[str, Tensor]) -> LogProbabilities:
        seen.append(len(rows["input_ids"]))
        return response_logprobs(model, **rows)

    def apart() -> nullcontext[None]:
        meetings.append(False)
        return nullcontext()

    loss = accumulate(
        {name: batch[name] for name in ROW_TENSORS},
        passes,
        forward=forward,
        loss=lambda found: module.loss(as_objective_inputs(found, batch), given).total,
        backward=lambda total: total.backward(),  # type: ignore[no-untyped-call]
        apart=apart,
    )
    assert float(loss) == pytest.approx(float(whole.detach()), abs=1e-5)
    largest = max(float(each.abs().max()) for each in wanted.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5 * largest)
    rows = len(batch["input_ids"])
    made = min(passes, rows)
    assert len(seen) == 2 * made and sum(seen) == 2 * rows and max(seen) == -(-rows // made)
    assert len(meetings) == made - 1, "processes meet in the last pass only"
    model.zero_grad()


def test_dropout_draws_the_same_in_both_computations() -> None:
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0.5)
    with quiet():
        model = AutoModelForCausalLM.from_config(shape).train()
    batch = pad_rows([TokenRow([1, 2, 3 + row], [4, 5, 6][: 1 + row % 3]) for row in range(6)], pad_id=0)
    found: list[Tensor] = []

    def forward(rows: Mapping[str, Tensor]) -> LogProbabilities:
        logprobs = response_logprobs(model, **rows)
        found.append(logprobs.values.detach())
        return logprobs

    accumulate(
        batch,
        3,
        forward=forward,
        loss=lambda each: -each.mean().mean(),
        backward=lambda total: total.backward(),  # type: ignore[no-untyped-call]
        apart=nullcontext,
    )
    for before, after in zip(found[:3], found[3:], strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(found[0], forward({name: batch[name][:2] for name in ROW_TENSORS}).values)


@pytest.mark.parametrize("lora", ["null", "{rank: 4, alpha: 8}"])
def test_a_training_in_two_passes_a_step_equals_one(
    lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 × 8 equals 2 × 4, through the Trainer: the same losses and the same weights, within rounding.

    By plain gradient descent: AdamW's first step is a sign, which rounding can turn where a gradient is about 0.
    """

    def descent(*_: object) -> tuple[Callable[[torch.nn.Module], torch.optim.Optimizer], dict[str, float]]:
        return (lambda: lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)), {"lr": 0.1}  # type: ignore

    monkeypatch.setattr("rheostat.fine_tuning._optimizer", descent)
    weights, logs = [], []
    for accumulation in (1, 2):
        policy = load_policy("pocket:chat", device="cpu")
        chosen = config(accumulation=accumulation, lora=lora, forged_share=0.0)
        figures = fine_tune(
            policy, examples(), objective="exmate", config=chosen, checkpoints=tmp_path / str(accumulation)
        )
        weights.append(policy.model.state_dict())
        logs.append(figures["log"])
    assert [entry["nll"] for entry in logs[0]] == pytest.approx([entry["nll"] for entry in logs[1]], rel=1e-5)
    before = load_policy("pocket:chat", device="cpu").model.state_dict()
    assert any(not torch.equal(before[name], each) for name, each in weights[0].items())
    for name, each in weights[0].items():
        torch.testing.assert_close(weights[1][name], each, rtol=1e-4, atol=1e-5, msg=name)
