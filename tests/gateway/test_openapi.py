"""The OpenAPI document: what it says of itself, and a thousand requests that schemathesis makes up from it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from pydantic import BaseModel
from schemathesis.core.result import Err
from tests.gateway.live_gateway import DEADLINE_S, LiveGateway, live_gateway
from tests.gateway.policies import KEY
from tests.gateway.stub_backend import StubBackend

from rheostat.gateway.schemas import ChatCompletionChunk, CompletionChunk

AUTHORIZATION = f"Authorization: Bearer {KEY}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with live_gateway(StubBackend(), tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: LiveGateway) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=gateway.root, headers={"authorization": f"Bearer {KEY}"}, timeout=DEADLINE_S
    ) as made:
        yield made


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    made: dict[str, Any] = client.get("/openapi.json").json()
    return made


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    """Against the specification's own JSON schema, all references resolved."""
    assert document["openapi"].startswith("3.1.")
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    assert schema.statistic.operations.total >= 8
    assert not [each for each in schema.get_all_operations() if isinstance(each, Err)]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"]) and len(references) > 20


@pytest.mark.parametrize(
    ("path", "body", "chunk"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}, ChatCompletionChunk),
        ("/v1/completions", {"prompt": "Hi", "n": 2}, CompletionChunk),
    ],
)
def test_every_event_of_a_stream_is_as_documented(
    client: httpx.Client, path: str, body: dict[str, Any], chunk: type[BaseModel]
) -> None:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *events, done, end = client.post(path, json=body).text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    for event in events:
        whole = chunk.model_validate_json(event.removeprefix("data: "))
        assert whole.model_dump(exclude_unset=True) == json.loads(event.removeprefix("data: ")), "no field besides"


def test_its_examples_are_answered(document: dict[str, Any], client: httpx.Client) -> None:
    count = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in body.get("examples", {}).items():
                response = client.request(method, path, json=example["value"])
                assert response.status_code == 200, (path, name, response.text)
                count += 1
    assert count == 6


def made_up(gateway: LiveGateway, folder: Path, *options: str) -> str:
    """What schemathesis reports of requests that it makes up, by a fixed seed; all of its checks hold.

    But for one: that what fits the schema is accepted. A schema cannot say that the last turn is the user's, or that
    one dial has one value: `test_openai_client` says what is accepted.
    """
    run = subprocess.run(
        [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
            f"{gateway.root}/openapi.json", "--checks", "all", "--exclude-checks", "positive_data_acceptance",
            "--seed", "5", "--generation-database", "none", "--no-color", *options,
        ],
        cwd=folder, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def statuses(gateway: LiveGateway) -> set[int]:
    """Those that the gateway has answered with."""
    metrics = gateway.service.telemetry.text().decode()
    return {int(status) for status in re.findall(r'_requests_total{.*status="(\d+)"', metrics)}


def test_requests_made_up_with_a_key(gateway: LiveGateway, tmp_path: Path) -> None:
    """No 5xx; statuses, types, bodies and headers are those of the document; what does not fit it is refused."""
    report = made_up(gateway, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "20", "-H", AUTHORIZATION)
    assert re.search(r"(\d+) selected / \1 total", report)
    found = statuses(gateway)
    assert {200, 400} <= found and max(found) < 500
    assert len(gateway.asks) > 20, "some fit well enough to be answered"


def test_requests_made_up_without_a_key(gateway: LiveGateway, tmp_path: Path) -> None:
    asks = len(gateway.asks)
    made_up(gateway, tmp_path, "--phases", "fuzzing", "--max-examples", "10")
    assert len(gateway.asks) == asks, "none got through"
    assert 401 in statuses(gateway)
