"""Completions go past the framework's routing: what its middleware and errors would have done still holds."""

from collections.abc import Iterator

import httpx
import pytest
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import StubBackend

from rheostat.gateway.app import build_app

BODY = {"messages": [{"role": "user", "content": "How do I boil an egg?"}]}
PAGE = "https://example.org"


@pytest.fixture(scope="module")
def closed() -> Iterator[Served]:
    with served(service_over(StubBackend())) as running:
        yield running


@pytest.fixture(scope="module")
def opened() -> Iterator[Served]:
    service = service_over(StubBackend())
    with served(service, app=build_app(service, allow_origins=[PAGE])) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "//v1/chat/completions", "/v1/Chat/completions"])
def test_another_spelling_of_the_path_is_another_path(closed: Served, path: str) -> None:
    answer = httpx.post(closed.url + path, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_another_method_is_refused(closed: Served) -> None:
    answer = httpx.get(f"{closed.url}/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "wrong_method")


@pytest.mark.parametrize("body", [BODY, {}])
def test_a_page_that_may_ask_can_read_answers_and_errors(opened: Served, body: object) -> None:
    answer = httpx.post(f"{opened.url}/v1/chat/completions", json=body, headers={"origin": PAGE})
    assert answer.status_code == (200 if body else 400)
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("gateway", ["closed", "opened"])
def test_every_answer_carries_the_id_and_the_headers_against_mischief(
    gateway: str, request: pytest.FixtureRequest
) -> None:
    running: Served = request.getfixturevalue(gateway)
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=BODY)
    assert len(answer.headers["x-request-id"]) == 24
    assert answer.headers["x-content-type-options"] == "nosniff"
