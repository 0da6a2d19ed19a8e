"""The playground's files and figures as they are served."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.gateway.policies import KEY
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import FORMAT, StubBackend

from rheostat.gateway.app import build_app
from rheostat.gateway.playground import assets, figures_of
from rheostat.gateway.policy_source import LocalSource
from rheostat.measured import FILE, read_measured

BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str | None]]:
    """Folders of models: the stub's has figures, the broken one's cannot be read."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / FILE).write_text('{"schema": 1, "headline": "It moves."}')
    return {"stub": (folder, None)}


@pytest.fixture(scope="module")
def gateway(places: dict[str, tuple[Path, str | None]]) -> Iterator[Served]:
    service = service_over(StubBackend(), callers=LocalSource({"stub": FORMAT}, key=KEY))
    with served(service, app=build_app(service, figures=figures_of(places))) as found:
        yield found


def get(gateway: Served, path: str, **headers: str) -> httpx.Response:
    return httpx.get(gateway.url + path, headers=headers, trust_env=False, timeout=30)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/playground/main.js", "text/javascript; charset=utf-8"),
        ("/playground/style.css", "text/css; charset=utf-8"),
        ("/playground/icon.svg", "image/svg+xml"),
        ("/playground/ibm-plex-sans.woff2", "font/woff2"),
    ],
)
def test_a_file_is_sent_once_and_then_known_by_its_tag(gateway: Served, path: str, media_type: str) -> None:
    first = get(gateway, path)
    assert first.status_code == 200 and first.headers["content-type"] == media_type
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-security-policy"].startswith("default-src 'self';")
    assert first.headers["x-content-type-options"] == "nosniff"
    tag = first.headers["etag"]
    again = get(gateway, path, **{"If-None-Match": f'W/{tag}, "other"'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get(gateway, path, **{"If-None-Match": '"other"'}).content == first.content


@pytest.mark.parametrize("name", ["absent.js", "..%2fplayground.py", "%2e%2e/playground.py", "index.html/"])
def test_nothing_else_is_sent(gateway: Served, name: str) -> None:
    assert get(gateway, f"/playground/{name}").status_code == 404


def test_the_page_names_no_other_place() -> None:
    """Nothing in the files is fetched from elsewhere, and no script or style stands in the markup itself."""
    for name, asset in assets().items():
        if asset.media_type.partition(";")[0] in ("text/html", "text/css", "text/javascript", "image/svg+xml"):
            text = asset.content.decode()
            links = [word for word in text.replace('"', " ").replace("'", " ").split() if "://" in word]
            assert set(links) <= {"http://www.w3.org/2000/svg"}, (name, links)
    page = assets()["index.html"].content.decode()
    assert "style=" not in page and "onclick" not in page and "<script>" not in page and "<style" not in page
    assert "innerHTML" not in "".join(each.content.decode() for name, each in assets().items() if name.endswith(".js"))


def test_figures_are_for_callers_only(gateway: Served) -> None:
    assert get(gateway, "/v1/measured").status_code == 401
    assert get(gateway, "/v1/measured", **BEARER).json() == {"schema": 1, "headline": "It moves."}
    assert get(gateway, "/v1/measured?model=stub", **BEARER).status_code == 200
    other = get(gateway, "/v1/measured?model=other", **BEARER)
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_figures_that_are_absent_or_broken_are_said(
    gateway: Served, places: dict[str, tuple[Path, str | None]], tmp_path: Path
) -> None:
    for content, status, code in ((None, 404, "not_measured"), ("{", 500, "internal_error")):
        if content is not None:
            (tmp_path / FILE).write_text(content)
        service = service_over(StubBackend())
        with served(service, app=build_app(service, figures=figures_of({"stub": (tmp_path, None)}))) as found:
            answer = get(found, "/v1/measured")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert str(tmp_path) not in answer.text


def test_a_folder_without_figures_has_none(tmp_path: Path) -> None:
    assert read_measured(tmp_path) is None
