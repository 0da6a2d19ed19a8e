"""Training on the packaged pocket model: equal to a slow twin, resumed equal to uninterrupted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training_steps import objective_inputs

from rheostat import plugins
from rheostat.config import RunConfig
from rheostat.example_batches import ExampleBatches
from rheostat.fine_tuning import fine_tune
from rheostat.logprobs import TokenRow, pad_rows, response_logprobs, sum_logprobs
from rheostat.models import Policy, load_policy
from rheostat.objective_trainer import ObjectiveTrainer
from rheostat.objectives import exmate
from rheostat.optimisers import hidden_matrices, muon_with_adamw
from rheostat.plugins import Loss, ObjectiveInputs
from rheostat.recipe import load_config
from rheostat.records import Example, Message
from rheostat.training_plan import plan_batches


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("pocket:chat")


def examples(count: int = 12) -> list[Example]:
    made = []
    for index in range(count):
        control = {"helpfulness": 0.25 * (index % 5), "safety": 0.25 * (index // 2 % 5)}
        messages = (Message("user", f"How do I boil {index // 2} eggs?"),)
        made.append(
            Example(
                f"p{index // 2}", messages, control, f"First, boil egg {index}. " * (1 + index % 3), control
            )
        )
    return made


def config(**train: object) -> RunConfig:
    """The default recipe without its adapters and its steps; `train` on top."""
    values = {
        "batch_size": 4,
        "steps": "null",
        "lora": "null",
        "balance": 0.0,
        "learning_rate": 5e-4,
        **train,
    }
    return load_config("pocket", [f"train.{key}={value}" for key, value in values.items()])


def test_response_logprobs_equal_those_of_full_logits(policy: Policy) -> None:
    rows = [TokenRow([1, 5, 6], [7, 8, 2]), TokenRow([1, 9], [10, 2]), TokenRow([1], [11, 12, 13, 14, 2])]
    batch = pad_rows(rows, pad_id=0)
    with torch.no_grad():
        found = response_logprobs(policy.model, **batch)
        logits = policy.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    mask = batch["response_mask"][:, 1:].bool()
    torch.testing.assert_close(found.values[mask], expected[mask], atol=1e-4, rtol=1e-4)
    assert found.mask.sum(-1).tolist() == [3, 2, 5]
    assert (found.values[~mask] == 0).all()


def test_a_response_that_was_cut_off_teaches_no_end(policy: Policy) -> None:
    chosen = config(batch_size=1, forged_share=0.0, epochs=1)
    whole = examples(1)
    cut = [replace(whole[0], finish="length")]
    rows = []
    for each in (whole, cut):
        module = plugins.load("objectives", "clm")
        batch = ExampleBatches(policy, each, chosen.control_format, chosen, objective=module)[0]
        rows.append(batch["input_ids"][0].tolist())
    assert rows[0] == [*rows[1], policy.end_ids[0]]


def test_batched_sums_equal_single_ones(policy: Policy) -> None:
    rows = [TokenRow([1, *range(20, 20 + index)], [*range(40, 43 + index), 2]) for index in range(1, 9)]
    together = sum_logprobs(policy.model, rows, pad_id=0, batch_tokens=60)
    alone = [sum_logprobs(policy.model, [row], pad_id=0, batch_tokens=10_000)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize(
    "objective", [name for name in plugins.available("objectives") if plugins.needs(name).rows == "examples"]
)
def test_the_output_layer_sees_response_positions_only(policy: Policy, objective: str) -> None:
    module = plugins.load("objectives", objective)
    chosen = config()
    batches = ExampleBatches(policy, examples(), chosen.control_format, chosen, objective=module)
    batch = batches[0]
    seen: list[int] = []
    layer = policy.model.get_output_embeddings()
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.shape[0]))
    inputs = objective_inputs(policy.model, batch)
    handle.remove()
    assert seen == [int(batch["response_mask"].sum())]
    assert len(inputs.factual.values) == 4
    assert (inputs.counterfactual is not None) == module.NEEDS.counterfactual
    assert torch.isfinite(module.loss(inputs, module.OPTIONS()).total)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


@pytest.mark.parametrize(
    ("objective", "optimizer", "lora"),
    [
        ("clm", "adamw", "null"),
        ("clm", "adamw", "{rank: 4, alpha: 8}"),
        ("exmate", "adamw", "null"),
        ("exmate", "muon", "null"),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    objective: str, optimizer: str, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(epochs=4, save_steps=3, warmup_ratio=0.0, optimizer=optimizer, lora=lora)
    whole = load_policy("pocket:chat")
    fine_tune(whole, examples(), objective=objective, config=chosen, checkpoints=tmp_path / "a")
    killed = load_policy("pocket:chat")
    loss = ObjectiveTrainer.compute_loss
    calls = 0

    def dies(self: ObjectiveTrainer, *arguments: object, **keywords: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return loss(self, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectiveTrainer, "compute_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(killed, examples(), objective=objective, config=chosen, checkpoints=tmp_path / "b")
    monkeypatch.undo()
    (tmp_path / "b" / "checkpoint-9").mkdir()
    resumed = load_policy("pocket:chat")
    fine_tune(resumed, examples(), objective=objective, config=chosen, checkpoints=tmp_path / "b")
    before, after = weights(whole), weights(resumed)
    assert any(
        not torch.equal(value, weights(load_policy("pocket:chat"))[name]) for name, value in before.items()
    )
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_training_lowers_the_loss_and_says_so(tmp_path: Path) -> None:
    policy = load_policy("pocket:chat")
    figures = fine_tune(
        policy, examples(), objective="exmate", config=config(epochs=14), checkpoints=tmp_path
    )
    log = figures["log"]
    assert figures["steps"] == 42
    assert log[-1]["nll"] < 0.5 * log[0]["nll"]
    assert {"nll", "penalty", "counterfactual_nll", "learning_rate"} <= set(log[0])


def test_lora_trains_and_merges(tmp_path: Path) -> None:
    policy = load_policy("pocket:chat")
    before = weights(policy)
    chosen = config(epochs=2, lora="{rank: 4}")
    fine_tune(policy, examples(), objective="clm", config=chosen, checkpoints=tmp_path)
    after = weights(policy)
    assert set(after) == set(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_steps_are_so_many_whatever_the_examples() -> None:
    chosen = config(steps=5)
    few = plan_batches(
        examples(), [5] * 12, control_format=chosen.control_format, options=chosen.train,
        needs_counterfactual=False, seed=0,
    )  # fmt: skip
    assert len(few) == 5
    assert {index for batch in few[:3] for index in batch.examples} == set(range(12))


@pytest.mark.parametrize("objective", ["exmate", "contrast"])
def test_warmth_scales_what_the_counterfactuals_add(policy: Policy, objective: str) -> None:
    module = plugins.load("objectives", objective)
    chosen = config()
    batch = ExampleBatches(policy, examples(), chosen.control_format, chosen, objective=module)[0]
    with torch.no_grad():
        inputs = objective_inputs(policy.model, batch)
        losses = [
            float(module.loss(replace(inputs, warmth=warmth), module.OPTIONS()).total)
            for warmth in (0.0, 0.5, 1.0)
        ]
        plain = float(plugins.load("objectives", "clm").loss(ObjectiveInputs(inputs.factual), None).total)
    assert losses[0] == pytest.approx(plain)
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2) and losses[2] > losses[0]


def test_lambda_warms_up_over_its_share_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    loss = exmate.loss

    def watched(inputs: ObjectiveInputs, options: exmate.OPTIONS) -> Loss:
        seen.append(inputs.warmth)
        return loss(inputs, options)

    monkeypatch.setattr(exmate, "loss", watched)
    chosen = config(epochs=2, counterfactual="{warmup_ratio: 0.5}")
    fine_tune(load_policy("pocket:chat"), examples(), objective="exmate", config=chosen, checkpoints=tmp_path)
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_muon_takes_the_matrices_of_the_layers_and_follows_the_schedule(policy: Policy) -> None:
    model = policy.model
    optimizer = muon_with_adamw(model, lr=1e-3)
    matrices = {id(each) for each in hidden_matrices(model)}
    assert len(matrices) == 7 * model.config.num_hidden_layers
    assert id(model.get_input_embeddings().weight) not in matrices
    assert len({id(each) for group in optimizer.param_groups for each in group["params"]}) == len(
        list(model.parameters())
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = weights(policy)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    assert all(torch.equal(value, weights(policy)[name]) for name, value in before.items()), "rate 0"
    model.zero_grad()
