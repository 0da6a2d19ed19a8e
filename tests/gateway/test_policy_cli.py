"""`rheostat key` and `rheostat policy`, and the page that describes the policy file."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from tests.gateway.policies import KEY, MODELS, POLICY
from typer.testing import CliRunner, Result

from rheostat import cli, reference
from rheostat.config_fields import describe_fields
from rheostat.errors import ModelError, RunDirectoryError
from rheostat.gateway.keys import hash_key, is_key
from rheostat.gateway.policy import read_policy
from rheostat.gateway.policy_file import PolicyFile
from rheostat.gateway.policy_source import example_policy
from rheostat.gateway.policy_tables import policy_tables
from rheostat.gateway.served import served_dials, served_name
from rheostat.recipe import load_config, to_yaml
from rheostat.rundir import RunDirectory


def invoke(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), input=given)


def test_a_new_key_is_printed_once_and_its_lines_go_into_a_policy() -> None:
    result = invoke("key", "--id", "shop-1")
    key = result.stdout.strip()
    assert result.exit_code == 0 and is_key(key) and key not in result.stderr
    lines = result.stderr[result.stderr.index("      - id") :]
    found = read_policy(f"version: 1\ntenants:\n  shop:\n    keys:\n{lines}", MODELS)
    caller = found.caller(key, datetime.now(UTC))
    assert caller and (caller.tenant.name, caller.key_id) == ("shop", "shop-1")
    assert invoke("key").stdout != invoke("key").stdout


def test_the_hash_of_a_key_on_standard_input() -> None:
    result = invoke("key", "--hash", "-", given=f"{KEY}\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{hash_key(KEY)}\n", "")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [(("--hash", KEY), ""), (("--hash", "-"), ""), (("--hash", "-"), f"{KEY}x"), (("--id", KEY), "")],
)
def test_what_is_no_key_is_refused_and_not_repeated(arguments: tuple[str, ...], given: str) -> None:
    result = invoke("key", *arguments, given=given)
    assert result.exit_code == 2 and result.stdout == ""
    assert "error: " in result.stderr and "hint: " in result.stderr and KEY not in result.stderr


def test_a_policy_is_shown_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY + "audit: {path: audit.jsonl}\n")
    result = invoke("policy", str(path))
    assert result.exit_code == 0, result.stderr
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert ["shop", "pocket", "safety", "0.5", "1", "1", "raised"] in rows
    assert ["lab", "pocket", "safety", "0.75", "1", "1", "raised"] in rows
    assert ["shop", "60", "–", "–", "–", "–", "yes", "no", "no"] in rows
    assert ["shop-1", "shop", f"{hash_key(KEY)[:8]}…", "never", "yes"] in rows
    expired = next(row for row in rows if row[0] == "shop-0")
    assert expired[-2:] == ["2020-01-01T00:00+00:00", "no, expired"]
    assert "audit log: audit.jsonl" in result.stdout
    titles = [table.title for table in policy_tables(read_policy(POLICY, MODELS), datetime.now(UTC))]
    assert titles == ["Dials", "Limits", "Keys"]


def test_a_policy_is_checked_against_the_model_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("0.5", "0.6").replace("  shop:\n", "  shop:\n    models: [pocket]\n"))
    result = invoke("policy", str(path), "--name", "house")
    assert result.exit_code == 2 and result.stdout == ""
    assert "2 problems" in result.stderr
    assert "tenants.shop.models: got 'pocket', allowed are house" in result.stderr
    assert "everyone.floors.safety: got 0.6" in result.stderr
    assert invoke("policy", str(path), "--run", str(tmp_path)).exit_code == 2
    assert "no policy file" in invoke("policy").stderr


def test_the_dials_of_a_run_are_those_of_its_recipe(tmp_path: Path) -> None:
    """Its `rheostat.json` is another file than that of an exported model."""
    with RunDirectory.open(tmp_path / "run", create=True) as run:
        run.write_config(to_yaml(load_config("pocket", ["levels.safety=[0.5, 0.75, 1]"])))
    assert (tmp_path / "run" / "rheostat.json").exists()
    assert served_dials(tmp_path / "run").levels_of("safety") == (0.5, 0.75, 1.0)
    assert served_name(tmp_path / "run") == "run" and served_name(None) == "pocket"


def test_a_folder_without_dials_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        served_dials(tmp_path)
    for name in ("config.json", "rheostat.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError):
        served_dials(tmp_path)


def test_the_example_is_a_policy_and_has_every_key(tmp_path: Path) -> None:
    printed = invoke("policy", "--example")
    assert printed.exit_code == 0 and printed.stdout == example_policy()
    path = tmp_path / "policy.yaml"
    path.write_text(printed.stdout)
    assert invoke("policy", str(path)).exit_code == 0
    assert "models:" in printed.stdout
    read_policy(printed.stdout.replace("# models:", "models:"), MODELS)
    written = set(re.findall(r"[{,#\s](\w+):", printed.stdout))
    for key, *_ in describe_fields(PolicyFile):
        assert key.removesuffix(".NAME").rpartition(".")[2] in written, key


def test_the_page_describes_every_key_of_the_policy_file() -> None:
    page = reference.pages()["policy.md"]
    for block in ("everyone", "everyone.guard", "tenants.NAME", "tenants.NAME.keys", "tenants.NAME.guard", "audit"):
        assert f"\n## `{block}`\n" in page
    assert "| `version` | whole number that is 1 | required |" in page
    assert "| `floors.NAME` | number from 0 to 1 | `{}` |" in page
    assert "| `expires` | moment, or null | `null` |" in page
    assert yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0]) == yaml.safe_load(example_policy())
