"""The files in deploy/ say what the gateway takes."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from rheostat.cli import app
from rheostat.control import ControlFormat
from rheostat.gateway.guard_rewards import check_guards
from rheostat.gateway.policy import read_policy
from rheostat.plugins import attribute

DEPLOY = Path(__file__).parents[2] / "deploy"
MODELS = {"model": ControlFormat((attribute("safety"), attribute("helpfulness")))}


@pytest.fixture
def known() -> set[str]:
    """The options of `rheostat serve`."""
    group: Any = typer.main.get_command(app)
    return {name for option in group.commands["serve"].params for name in option.opts}


def test_the_policy_is_one_and_holds_a_floor_for_everyone() -> None:
    policy = read_policy((DEPLOY / "policy.yaml").read_text(), MODELS)
    assert set(policy.tenants) == {"school", "public", "red-team"}
    assert all(tenant.limits.floors["safety"] >= 0.25 for tenant in policy.tenants.values())
    assert policy.audit is not None and policy.audit.on_failure == "stop"
    check_guards(policy, scored=None)  # as the unit and the container start: without reward models


@pytest.mark.parametrize("name", ["rheostat.service", "Containerfile", "nginx.conf"])
def test_every_option_named_is_one_of_the_command(name: str, known: set[str]) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not re.search("podman|systemctl", line))
    own = {"--no-cache-dir", "--system", "--uid", "--no-create-home", "--interval", "--start-period", "--from"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named - known <= own
    assert named & known, "the check sees the options"


def test_the_service_is_given_longer_than_the_drain() -> None:
    text = (DEPLOY / "rheostat.service").read_text()
    drain, stop = re.search(r"--drain (\d+)", text), re.search(r"TimeoutStopSec=(\d+)", text)
    assert drain and stop and int(drain[1]) < int(stop[1])
