"""The plan: scaled by hand, and held against the run that it predicts."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rheostat import cli, pipeline
from rheostat.config import RunConfig
from rheostat.errors import PromptFileError
from rheostat.machine import OPTIONAL, look, matmul_rate
from rheostat.machine_tables import duration, size
from rheostat.plan import measured_plan, prompt_counts, reckoned_plan, scaled
from rheostat.recipe import load_config
from rheostat.rehearsal import Miniature, Rehearsed, Task, miniature
from rheostat.rundir import RunDirectory


def recipe(*more: str) -> RunConfig:
    small = (
        "prompts.train_limit=20", "prompts.evaluation_limit=4", "generate.samples=8", "generate.max_tokens=48",
        "evaluate.max_tokens=48", "evaluate.reachable_samples=4", "evaluate.rerank_samples=4", "levels=[0, 1]",
        "train.steps=12", "methods=[base, reranking, clm]", "evaluate.bootstrap=100", "batch_tokens=4096", "suite=null",
    )  # fmt: skip
    return load_config("pocket", [*small, *more])


def rehearsed(config: RunConfig) -> Rehearsed:
    """4 of 20 prompts, 1 of 4, 6 of 12 steps; a stopwatch that ticked in whole seconds."""
    steps = Task("train clm", "steps", 6, 9.0, [(2.0, 1), (3.0, 1), (4.0, 1), (5.0, 1), (6.0, 1), (7.0, 1)])
    return Rehearsed(
        miniature(config, Miniature(4, 1, 6)),
        (
            Task("generate", "prompts", 4, 2.0),
            Task("calibrate truth", "responses", 32, 1.0),
            steps,
            Task("optimization base", "prompts", 1, 3.0),
            Task("optimization reranking", "prompts", 1, 5.0),
            Task("report", "page", 1, 4.0),
        ),
        seconds=30.0,
        peak_memory=10**9,
        summaries={
            "prompts": {"train": 4, "optimization": 1, "generalization": 1},
            "generate": {"responses": 32, "tokens": 1000},
            "train/clm-moec": {"steps": 6, "examples": 10, "tokens": 600},
            "evaluate/optimization/base": {"generated_tokens": 80},
            "evaluate/optimization/reranking": {"generated_tokens": 400},
        },
        bytes_written={"generate": 100, "evaluate": 10, "train": 1000, "config.yaml": 7},
    )


def test_a_rehearsal_is_scaled_by_hand() -> None:
    """Generation 5 × 2 s and 5,000 tokens; 12 steps of 1 s and 3 s of their beginning; the report as it was.

    The four controls of a prompt share reranking's candidates: 400 / 4 tokens a prompt. 6 s lie outside the tasks.
    On disk 5 · 100 + 4 · 10 + 1000 + 7 and a checkpoint of three times the model.
    """
    config = recipe()
    plan = scaled(config, {"train": 20, "optimization": 4, "generalization": 4}, rehearsed(config))
    steps = {step.name: step for step in plan.steps}
    assert (steps["generate"].seconds, steps["generate"].tokens) == (10.0, 5000)
    assert (steps["train clm"].seconds, steps["train clm"].tokens) == (15.0, 1200)
    assert steps["train clm"].work == "12 steps"
    assert (steps["optimization base"].seconds, steps["optimization base"].tokens) == (12.0, 320)
    assert steps["optimization reranking"].tokens == 400
    assert steps["calibrate truth"].seconds == 5.0
    assert steps["report"].seconds == 4.0
    assert plan.other_seconds == 6.0
    assert plan.seconds == 10 + 5 + 15 + 12 + 20 + 4 + 6
    assert plan.disk == 500 + 40 + 1000 + 7 + 3000


def test_a_suite_is_scaled_by_its_own_prompts() -> None:
    """3 of each kind in the run, 1 of each in the rehearsal: 3 × 2 s and 3 × 40 tokens; its shards 3 × 20 bytes."""
    suite = "suite={harmful: pocket:generalization/risky, harmless: pocket:generalization/borderline, limit: 3}"
    config = recipe(suite)
    small = miniature(config, Miniature(4, 1, 6))
    assert small.suite is not None and small.suite.limit == 1
    found = rehearsed(config)
    found = dataclasses.replace(
        found,
        tasks=(*found.tasks, Task("suite base", "prompts", 2, 2.0)),
        summaries=found.summaries
        | {"suite/prompts": {"harmful": 1, "harmless": 1}, "suite/base": {"generated_tokens": 40}},
        bytes_written=found.bytes_written | {"suite": 20},
    )
    counts = {"train": 20, "optimization": 4, "generalization": 4}
    plan = scaled(config, counts, found)
    step = next(each for each in plan.steps if each.name == "suite base")
    assert (step.seconds, step.tokens, step.work) == (6.0, 120, "6 prompts")
    assert plan.disk - scaled(recipe(), counts, rehearsed(recipe())).disk == 60
    reckoned = {each.name: each for each in reckoned_plan(config, rate=1e12).steps}
    assert reckoned["suite base"].tokens == 6 * 2 * 48


def test_a_training_by_epochs_grows_with_its_examples() -> None:
    """10 examples of 4 prompts are 50 of 20; 4 epochs in batches of 8 are 25 steps."""
    config = recipe("train.steps=null", "train.epochs=4")
    plan = scaled(config, {"train": 20, "optimization": 4, "generalization": 4}, rehearsed(config))
    assert next(step.work for step in plan.steps if step.name == "train clm") == "25 steps"


def test_a_plan_foretells_its_run(tmp_path: Path) -> None:
    """Tokens and bytes on disk within a factor of 1.5 of what the run then takes; the same parts in the same order."""
    config = recipe()
    plan = measured_plan(config, Miniature(8, 2, 6))
    pipeline.run(config, tmp_path / "run")
    with RunDirectory.open(tmp_path / "run", read_only=True) as run:
        generated = run.finished("generate").summary["tokens"]
        trained = run.finished("train/clm-moec").summary["tokens"]
        answered = run.finished("evaluate/optimization/clm").summary["generated_tokens"]
    steps = {step.name: step for step in plan.steps}
    for predicted, actual in (
        (steps["generate"].tokens, generated),
        (steps["train clm"].tokens, trained),
        (steps["optimization clm"].tokens, answered),
    ):
        assert actual / 1.5 < predicted < actual * 1.5
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    checkpoint = 3 * (tmp_path / "run" / "train" / "clm-moec" / "model" / "model.safetensors").stat().st_size
    assert (written + checkpoint) / 1.5 < plan.disk < (written + checkpoint) * 1.5
    assert plan.kind == "measured" and plan.memory > 10**8
    assert all(step.seconds > 0 for step in plan.steps)


def test_a_reckoned_plan_bounds_the_tokens() -> None:
    """20 prompts × 8 samples × 48 tokens; reranking 4 samples for each of 4 prompts; twice the rate, half the time."""
    config = recipe()
    plan = reckoned_plan(config, rate=1e12)
    steps = {step.name: step for step in plan.steps}
    assert steps["generate"].tokens == 20 * 8 * 48
    assert steps["optimization reranking"].tokens == 4 * 4 * 48
    assert steps["optimization clm"].tokens == 4 * 4 * 48
    assert reckoned_plan(config, rate=2e12).seconds == pytest.approx(plan.seconds / 2)


def test_a_mixture_of_distributions_costs_a_forward_of_each_expert() -> None:
    """Two experts: beside soups, whose weights are mixed beforehand, one generation of the same answers more."""
    plan = reckoned_plan(recipe("methods=[soups, logit_mixing, base]"), rate=1e12)
    steps = {step.name: step for step in plan.steps}
    mixed, averaged, plain = (steps[f"optimization {name}"] for name in ("logit_mixing", "soups", "base"))
    assert mixed.tokens == averaged.tokens == plain.tokens
    assert averaged.seconds == pytest.approx(plain.seconds)
    pool = steps["generate"]  # 20 · 8 responses of the same length; the answers are 4 · 4
    assert mixed.seconds - averaged.seconds == pytest.approx(pool.seconds * (4 * 4) / (20 * 8))


def test_counts_are_those_of_the_splits() -> None:
    assert prompt_counts(recipe()) == {"train": 20, "optimization": 4, "generalization": 4}
    with pytest.raises(PromptFileError):
        prompt_counts(recipe("prompts.train=absent.jsonl"))


def test_the_command_reckons_without_rehearsing() -> None:
    found = CliRunner().invoke(cli.app, ["plan", "pocket", "--tflops", "100"])
    assert found.exit_code == 0, found.output
    assert re.search(r"generate\s+11,520 responses\s+1,105,920", found.output)
    assert "reckoned from the model's shape" in " ".join(found.output.split())


def test_this_machine_is_seen() -> None:
    machine = look()
    assert machine.devices[-1].name == "cpu"
    assert 0 < machine.devices[-1].free <= machine.devices[-1].memory
    assert matmul_rate(size=64, repetitions=3) > 1e6


def test_the_doctor_says_what_fits() -> None:
    found = CliRunner().invoke(cli.app, ["doctor"])
    assert found.exit_code == 0, found.output
    assert "rlhf" in OPTIONAL["trl"]
    assert "cpu:" in found.output and "LoRA, bfloat16" in found.output and "bitsandbytes" in found.output


def test_sizes_and_durations_as_people_read_them() -> None:
    assert [size(5), size(2048), size(3 * 2**30)] == ["5 B", "2.0 KiB", "3.0 GiB"]
    assert [duration(3.14), duration(75), duration(3 * 3600)] == ["3.1 s", "1 min 15 s", "3 h 00 min"]
