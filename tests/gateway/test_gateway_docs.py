"""docs/gateway.md: its code is run against a real gateway with its own policy, its tables are those of the code."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from tests.gateway.policies import KEY, OTHER_KEY
from tests.gateway.serve_process import Process
from typer.main import get_command

from rheostat.cli import app
from rheostat.gateway.keys import hash_key

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "gateway.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
ADDRESS = "http://127.0.0.1:8750"


def blocks(kind: str) -> list[str]:
    return [text for given, text in BLOCKS if given == kind]


def named(heading: str) -> set[str]:
    """The names in code style in the first two columns of the tables under a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("| ")]
    return {name for row in rows for cell in row[:2] for name in re.findall(r"`([a-z_]+)`", cell)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documented")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[Process]:
    """`rheostat serve` with the policy of the page, whose two hashes are those of two keys, and the pocket model."""
    (text,) = blocks("yaml")
    for place, key in ((1, KEY), (2, OTHER_KEY)):
        assert f"{place:064}" in text
        text = text.replace(f"{place:064}", hash_key(key))
    (folder / "policy.yaml").write_text(text.replace("audit.jsonl", str(folder / "audit.jsonl")))
    process = Process("--policy", str(folder / "policy.yaml"))
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


@pytest.fixture(scope="module")
def metrics(gateway: Process) -> str:
    return httpx.get(f"{gateway.url}/metrics").text


def run(command: list[str], gateway: Process) -> str:
    """What a block prints, run with the key and against the gateway."""
    assert ADDRESS in command[-1]
    given = [*command[:-1], command[-1].replace(ADDRESS, gateway.url)]
    environment = {**os.environ, "RHEOSTAT_KEY": KEY, "LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_shells_request_gets_the_dials_that_are_shown(gateway: Process) -> None:
    (request,), (shown,) = blocks("sh"), blocks("json")
    answer = json.loads(run(["bash", "-ec", request], gateway))
    assert answer["rheostat"]["dials"] == json.loads(shown)
    assert answer["choices"][0]["message"]["content"]


def test_the_clients_programs_run(gateway: Process) -> None:
    openai_block, langchain_block = blocks("python")
    said = run([sys.executable, "-c", openai_block], gateway).splitlines()
    assert "0.75" in said and len(said) > 2
    assert run([sys.executable, "-c", langchain_block], gateway).strip()


def test_what_the_page_says_of_the_policys_other_tenant(gateway: Process) -> None:
    messages: Any = [{"role": "user", "content": "How do I bake bread?"}]
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=OTHER_KEY, max_retries=0, timeout=60) as client:
        answer: Any = client.chat.completions.create(model="pocket", messages=messages, max_tokens=24)
        assert answer.rheostat["guard"]["samples"] == 4
        assert (answer.choices[0].finish_reason == "content_filter") == answer.rheostat["guard"]["refused"]
        for given in ({"safety": 0.5}, {"messages": [{"role": "system", "content": "Obey."}, *messages]}):
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="pocket", messages=messages, extra_body=given)


def test_scores(gateway: Process) -> None:
    body = {"messages": [{"role": "user", "content": "How do I bake bread?"}], "score": True, "max_tokens": 24}
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60
    ).json()
    assert set(answer["rheostat"]["scores"]) == {"helpfulness", "safety"}


def test_the_same_seed_gives_the_same_answer(gateway: Process) -> None:
    """By the official client, of the packaged model: whole and streamed, and another seed gives another."""
    messages: Any = [{"role": "user", "content": "How do I bake bread?"}]
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:

        def answer(seed: int) -> str:
            found = client.chat.completions.create(
                model="pocket", messages=messages, seed=seed, max_tokens=40, temperature=1.5
            )
            assert found.usage is not None and 0 < found.usage.completion_tokens <= 40
            return found.choices[0].message.content or ""

        first = answer(11)
        assert answer(11) == first
        streamed = client.chat.completions.create(
            model="pocket", messages=messages, seed=11, max_tokens=40, temperature=1.5, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == first
        assert any(answer(seed) != first for seed in (12, 13, 14))


def test_every_code_of_an_error_is_in_its_table_with_its_status() -> None:
    in_code = set()
    for path in (ROOT / "src" / "rheostat" / "gateway").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    in_code.add((str(status.value), str(code.value)))
    in_code.add(("404", "not_found"))
    section = TEXT.split("\n## Errors\n")[1].split("\n## ")[0]
    rows = [row.strip("|").split("|") for row in section.splitlines() if re.match(r"\| \d", row)]
    in_table = {
        (status.strip(), code) for statuses, codes, _ in rows for code in re.findall(r"`(\w+)`", codes)
        for status in statuses.split(",")
    }  # fmt: skip
    assert {code for _, code in in_code} == {code for _, code in in_table}
    assert in_code <= in_table


def test_every_field_of_the_audit_log_is_in_its_table(gateway: Process, folder: Path) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        client.completions.create(model="pocket", prompt="Hi", max_tokens=4)
    fields = set(json.loads((folder / "audit.jsonl").read_text().splitlines()[-1]))
    assert fields | {"messages", "answers"} == named("Audit log") - {"audit_texts"}


def test_every_metric_is_in_its_table(metrics: str) -> None:
    found = set(re.findall(r"^# TYPE (rheostat_\w+) (?!gauge\n# HELP .*created)", metrics, re.MULTILINE))
    assert {name for name in found if not name.endswith("_created")} == named("Metrics")


def test_every_route_of_the_document_is_in_its_table(gateway: Process) -> None:
    section = TEXT.split("\n## Requests\n")[1].split("\n## ")[0]
    paths = {path.replace("NAME", "{id}") for path in re.findall(r"`(?:GET|POST) (/[^`]*)`", section)}
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert set(document["paths"]) <= paths
    assert httpx.get(f"{gateway.url}/docs").status_code == 200


def test_every_option_and_its_default_is_the_commands() -> None:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    defaults = {name: option.default for option in serve.params for name in option.opts}
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    for option, said in re.findall(r"`(--[a-z-]+)` ([\d.]+)(?! MiB)", prose):
        assert defaults[option] == float(said), option
    assert defaults["--max-body"] == 2**20 and "`--max-body` 1 MiB" in prose
    named = re.findall(r"--[a-z]+[a-z-]*", prose + " ".join(blocks("console")))
    others = {"--id", "--to"}  # of `rheostat key` and `rheostat export`
    assert set(named) - others <= set(defaults)
