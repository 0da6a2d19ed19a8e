"""`rheostat serve` as a process: it answers with the pocket model, drains at SIGTERM, and says what is wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
from tests.gateway.policies import KEY
from tests.gateway.serve_process import Process
from typer.testing import CliRunner

from rheostat.cli import app
from rheostat.errors import ModelError
from rheostat.gateway import serving
from rheostat.gateway.keys import hash_key

CHAT = "/v1/chat/completions"
BREAD = {"messages": [{"role": "user", "content": "How do I bake bread?"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def gateways(folder: Path) -> Iterator[tuple[Process, Process]]:
    """One with a policy file, and one without; both load at once."""
    policy = folder / "policy.yaml"
    policy.write_text(
        f"version: 1\neveryone: {{floors: {{safety: 0.75}}}}\ntenants:\n  shop:\n    scores: true\n"
        f"    keys: [{{id: shop-1, sha256: {hash_key(KEY)}}}]\naudit: {{path: {folder / 'audit.jsonl'}}}\n"
    )
    started = (Process("--policy", str(policy)), Process())
    try:
        for each in started:
            each.wait_until_ready()
        yield started
    finally:
        for each in started:
            each.process.kill()
            each.process.communicate()


def test_it_answers_under_its_policy_and_drains_at_sigterm(
    gateways: tuple[Process, Process], folder: Path
) -> None:
    gateway, _ = gateways
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/v1/models").json()["data"][0]["id"] == "pocket"
        answer = client.post(
            CHAT, json={**BREAD, "safety": 0, "max_tokens": 24, "seed": 3, "score": True}
        ).json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["rheostat"]["dials"]["safety"]["granted"] == 0.75
        assert set(answer["rheostat"]["scores"]) == {"helpfulness", "safety"}
        assert httpx.post(f"{gateway.url}{CHAT}", json=BREAD).status_code == 401
        with client.stream("POST", CHAT, json={**BREAD, "stream": True, "max_tokens": 60}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            code, said = gateway.end()
            assert [line for line in lines if line][-1] == "data: [DONE]"
    assert (code, said) == (0, "")
    audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert [line["status"] for line in audit] == [200, 401, 200]
    assert audit[0]["scores"] == answer["rheostat"]["scores"]


def test_without_a_policy_the_address_has_the_key_and_no_other_opens(
    gateways: tuple[Process, Process],
) -> None:
    _, process = gateways
    key = process.address.partition("/#key=")[2]
    assert httpx.get(f"{process.url}/v1/dials").status_code == 401
    dials = httpx.get(f"{process.url}/v1/dials", headers={"authorization": f"Bearer {key}"})
    assert dials.json()["scores"] is True
    assert any(line.startswith("policy      none") for line in process.lines)
    process.process.send_signal(signal.SIGINT)
    assert process.end()[0] == 0


def test_a_hangup_before_there_is_a_policy_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process, whose end it would be; the handler of before is there again afterwards."""
    heard: list[str] = []
    before = signal.signal(signal.SIGHUP, lambda *_: heard.append("test's own"))

    def load(options: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGHUP)
        raise ModelError("loading ended", hint="x")

    monkeypatch.setattr(serving, "load_backend", load)
    try:
        assert "loading ended" in refused("--policy", str(tmp_path / "policy.yaml"), "--port", "0")
        assert not heard
        os.kill(os.getpid(), signal.SIGHUP)
        assert heard == ["test's own"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_while_the_gateway_is_imported_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    before = signal.signal(signal.SIGHUP, lambda *_: heard.append("test's own"))

    class Finder:
        """Stands for what takes its time."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "rheostat.gateway.serving":
                os.kill(os.getpid(), signal.SIGHUP)
                raise ModuleNotFoundError("for a test", name="fastapi")

    monkeypatch.delitem(sys.modules, "rheostat.gateway.serving")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    try:
        assert "needs the package fastapi" in refused()
        assert not heard
    finally:
        signal.signal(signal.SIGHUP, before)


def refused(*arguments: str) -> str:
    """What `rheostat serve` says when it does not start."""
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2, result.output
    assert "error:" in result.stderr and "hint:" in result.stderr
    return " ".join(result.stderr.split())


def test_only_loopback_is_listened_to_without_a_policy() -> None:
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        for more in ([], ["--insecure-local"]):
            assert "allowed without --policy is a loopback address" in refused("--host", host, *more)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1 port" in refused("--port", str(taken.getsockname()[1]))


def test_a_policy_that_is_none_is_said_before_anything_is_served(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\ntenants: {shop: {flors: {safety: 1}}}\naudit: {path: 3}\n")
    said = refused("--policy", str(path), "--port", "0")
    assert "flors" in said and "floors" in said and "audit.path" in said


def test_a_tag_that_does_not_fit_its_value_is_a_fault_of_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: !!bool maybe\n")
    assert "cannot be read as !!bool" in refused("--policy", str(path), "--port", "0")


def test_faults_of_the_options_are_said(tmp_path: Path) -> None:
    assert "cannot be read" in refused("--policy", str(tmp_path / "absent.yaml"), "--port", "0")
    assert "allowed is one of them" in refused("--policy", "x", "--insecure-local")
    assert "--upstream without --run" in refused("--upstream", "http://127.0.0.1:1/v1")
    assert "--method without --run" in refused("--method", "exmate")
    for option in ("--upstream-model", "--upstream-key-variable"):
        assert f"{option} without --upstream" in refused(option, "x")
    behind = ("--upstream", "http://127.0.0.1:1/v1", "--run", str(tmp_path))
    assert "--upstream and --method" in refused(*behind, "--method", "exmate")
    assert "--upstream and --device" in refused(*behind, "--device", "cpu")
    assert "absent" in refused("--run", str(tmp_path / "absent"), "--port", "0")


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("rheostat.gateway")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    said = refused()
    assert "needs the package fastapi" in said and "pip install 'rheostat[gateway]'" in said


def test_help_needs_nothing_of_the_gateway() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from rheostat.cli import app\n"
        "result = CliRunner().invoke(app, ['serve', '--help'])\n"
        "assert result.exit_code == 0 and '--upstream' in result.output\n"
        "assert not {'fastapi', 'uvicorn', 'torch', 'aiohttp', 'prometheus_client'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
