"""Training in two processes of a launcher: the weights, the log and the files of a training in one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rheostat import launch, pipeline
from rheostat.config import RunConfig
from rheostat.errors import InputError
from rheostat.launch import ALONE, Rank
from rheostat.logprobs import TokenRow, pad_rows
from rheostat.objective_trainer import ObjectiveTrainer
from rheostat.plugins import LogProbabilities
from rheostat.rank_batches import gathered, own_rows, summed_gradient
from rheostat.recipe import load_config, to_yaml
from rheostat.records import Example, Message
from rheostat.rundir import RunDirectory

ROWS = [TokenRow([1, 5, 6], [7, 8, 2]), TokenRow([1, 9], [10, 2]), TokenRow([1], [11, 12, 13, 14, 15, 2])]


def test_rows_of_a_rank_by_hand() -> None:
    """5 rows of 2 processes: 0, 2, 4 and 1, 3; the second has one less and repeats row 0, which is then left out."""
    assert Rank(0, 2).rows(5) == [0, 2, 4]
    assert Rank(1, 2).rows(5) == [1, 3, 0]
    assert Rank(2, 3).rows(1) == [0]
    assert ALONE.rows(4) == [0, 1, 2, 3] and ALONE.leads and not Rank(1, 2).leads


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_process_computes_as_many_rows_and_each_row_is_computed(rows: int, count: int) -> None:
    shares = [Rank(index, count).rows(rows) for index in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert [share[at] for at in range(len(shares[0])) for share in shares][:rows] == list(range(rows))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_of_a_batch_gather_to_the_batch_and_the_gradient_is_each_one_s_own(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities stand in as minus the token ids, so that the gathered batch shows every token in its place."""
    batch = pad_rows(ROWS, pad_id=0)
    expected = -batch["input_ids"][:, 1:].float() * batch["response_mask"][:, 1:]
    shares = [own_rows(ROWS, Rank(index, count), pad_id=0) for index in range(count)]
    longest = max(share["input_ids"].shape[1] for share in shares)
    values = [
        torch.nn.functional.pad(
            -share["input_ids"][:, 1:].float() * share["response_mask"][:, 1:],
            (0, longest - share["input_ids"].shape[1]),
        ).requires_grad_()
        for share in shares
    ]

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        for part, value in zip(parts, values, strict=True):
            part.copy_(value.detach())

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for index in range(count):
        rank = Rank(index, count)
        found = gathered(LogProbabilities(values[index], torch.empty(0)), shares[index]["whole_mask"], rank)
        assert torch.equal(found.values, expected)
        assert torch.equal(found.mask, batch["response_mask"][:, 1:].bool())
        loss = summed_gradient((found.values * found.mask).sum(), rank)
        assert float(loss.detach()) == float(expected.sum())
        (gradient,) = torch.autograd.grad(loss, values[index])
        own = len(range(index, len(ROWS), count))
        assert (gradient[own:] == 0).all(), "a repeated row counts nothing"
        assert gradient.sum() == count * sum(len(ROWS[row].response) for row in range(index, len(ROWS), count))


def test_alone_nothing_changes() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    assert summed_gradient(loss, ALONE) is loss
    assert set(own_rows(ROWS, ALONE, pad_id=0)) == {"input_ids", "attention_mask", "response_mask"}


def test_only_training_is_launched_in_several_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launch.rank() == Rank(1, 2)
    with pytest.raises(InputError, match="rheostat run: got 2 processes of a launcher, allowed is one"):
        pipeline.run(load_config("pocket"), tmp_path / "run")
    with pytest.raises(InputError, match="rheostat evaluate: got 2 processes"):
        pipeline.stage("evaluate", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["train.lora={rank: 4}", "train.optimizer=muon"])
def test_what_sharding_cannot_train_is_refused(
    setting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = distilled(tmp_path / "run", load_config("pocket", ["methods=[clm]", setting]))
    with pytest.raises(InputError, match="under FSDP, allowed is adamw for all weights"):
        pipeline.stage("train", run)


def examples() -> list[Example]:
    """11: with batches of 5 the last of an epoch has one, fewer than there are processes."""
    made = []
    for index in range(11):
        control = {"helpfulness": 0.5 * (index % 3), "safety": 0.5 * (index // 2 % 3)}
        messages = (Message("user", f"How do I boil {index // 2} eggs?"),)
        text = f"First, boil egg {index}. " * (1 + index % 3)
        made.append(Example(f"p{index // 2}", messages, control, text, control))
    return made


def distilled(path: Path, config: RunConfig) -> Path:
    """A run as distilling leaves it."""
    with RunDirectory.open(path, create=True) as run:
        run.write_config(to_yaml(config))
        stage = run.stage("distil/moec", inputs={})
        stage.write(examples(), Example)
        stage.finish({})
    return path


def interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Train in this process until a step of the second training."""
    loss = ObjectiveTrainer.compute_loss
    calls = 0

    def dies(self: ObjectiveTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return loss(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectiveTrainer, "compute_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.stage("train", path)


@pytest.mark.timeout(300)
def test_two_processes_train_as_one_does_from_the_start_and_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLM is trained by two processes from the start, ExMATE from step 2 of 6, where one process was interrupted."""
    settings = {
        "methods": "[clm, exmate]", "levels": "[0, 0.5, 1]", "device": "cpu", "train.steps": 6,
        "train.batch_size": 5, "train.save_steps": 2, "train.balance": 0, "train.counterfactual.fraction": 0.4,
        "train.objectives": "{exmate: {reduction: batch}}",
    }  # fmt: skip
    config = load_config("pocket", [f"{key}={value}" for key, value in settings.items()])
    one, two = distilled(tmp_path / "one", config), distilled(tmp_path / "two", config)
    interrupted(two, monkeypatch, at=6 + 4)
    assert (two / "train/exmate-moec/checkpoints/checkpoint-2").is_dir()
    shutil.rmtree(two / "train/clm-moec")
    pipeline.stage("train", one)
    launched = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--main_process_port", "0", "--module", "rheostat", "train", str(two),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert "unused parameters" not in launched.stderr
    assert launched.stderr.count("train clm: 6/6 steps") == 1, "one process tells of progress"
    files = {str(path.relative_to(one)) for path in one.rglob("*")}
    assert {str(path.relative_to(two)) for path in two.rglob("*")} == files
    for method in ("clm-moec", "exmate-moec"):
        expected, found = (load_file(run / f"train/{method}/model/model.safetensors") for run in (one, two))
        start = load_file(Path(pipeline.__file__).parent / "pocket/weights/chat/model.safetensors")
        assert set(found) == set(expected)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-4)
        moved = max(float((weight - start[name]).abs().max()) for name, weight in expected.items())
        assert moved > 20 * 1e-4, "the tolerance would hide the training"
    with RunDirectory.open(one, read_only=True) as first, RunDirectory.open(two, read_only=True) as second:
        logs = [run.finished("train/clm-moec").summary["log"][-1] for run in (first, second)]
    assert logs[1]["nll"] == pytest.approx(logs[0]["nll"], abs=1e-4)
