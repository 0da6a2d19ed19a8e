"""The OpenAPI document: requests made up from it, by schemathesis, over a real socket; and what the document itself says."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.gateway.live_gateway import LiveGateway, live_gateway
from tests.gateway.policies import KEY
from tests.gateway.stub_backend import StubBackend


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with live_gateway(StubBackend(), tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def document(gateway: LiveGateway) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{gateway.root}/openapi.json")


made_up = schemathesis.pytest.from_fixture("document")


@made_up.parametrize()
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_with_a_key(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})


@made_up.parametrize()
@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_without_a_key(case: schemathesis.Case) -> None:
    case.call_and_validate()
