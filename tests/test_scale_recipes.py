"""The recipes for billions of parameters: read by Accelerate's and by our own configuration, and kept together."""

import argparse
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from rheostat.recipe import executor_options, load_config

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
DATA = ["model=M", "prompts.train=P.jsonl", "rewards.helpfulness=R", "rewards.safety=R"]


@pytest.mark.parametrize(("size", "processes", "machines"), [("7b", 8, 1), ("70b", 32, 4)])
def test_accelerate_reads_the_fsdp_configuration(size: str, processes: int, machines: int) -> None:
    path = RECIPES / f"fsdp-{size}.yaml"
    config = load_config_from_file(str(path))
    assert str(config.distributed_type.value) == "FSDP"
    assert (config.num_processes, config.num_machines) == (processes, machines)
    given: argparse.Namespace = launch_command_parser().parse_args(
        ["--config_file", str(path), "--module", "rheostat", "train", "RUN"]
    )
    resolved, _, _ = _validate_launch_command(given)
    assert resolved.use_fsdp and resolved.training_script_args == ["train", "RUN"]
    assert int(resolved.fsdp_version) == 2
    assert resolved.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
    assert resolved.mixed_precision == "bf16"


@pytest.mark.parametrize("size", ["7b", "70b"])
def test_the_recipe_beside_it_resolves(size: str) -> None:
    config = load_config(RECIPES / f"scale-{size}.yaml", DATA)
    assert executor_options(config.executor).gpus_per_worker == 1
    assert config.train.mixed_precision
    assert f"recipes/fsdp-{size}.yaml" in (RECIPES / f"scale-{size}.yaml").read_text(encoding="utf-8")
    assert f"recipes/scale-{size}.yaml" in (RECIPES / f"fsdp-{size}.yaml").read_text(encoding="utf-8")
