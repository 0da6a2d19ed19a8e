"""The playground: one page at `/` and what it loads, all from this server. It asks through the API, like any client."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from rheostat.errors import RheostatError
from rheostat.gateway.faults import refusal_of
from rheostat.gateway.permitted import no_such_model
from rheostat.gateway.policy import Tenant
from rheostat.gateway.refusals import Refusal
from rheostat.measured import read_measured

TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}
"""By ending, what a file is sent as; a file of another ending is not sent."""

KEPT = "no-cache"
"""With every file: a browser keeps it, and asks by its ETag whether it still stands. Door adds what else is sent."""

Figures = Callable[[str], Mapping[str, Any] | None]
"""By a model's name what was measured of it, or None; raises `RheostatError` where that cannot be read."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str
    etag: str


@lru_cache(maxsize=1)
def assets() -> Mapping[str, Asset]:
    """The page's files by name."""
    return dict(_read())


def _read() -> Iterator[tuple[str, Asset]]:
    for file in (resources.files("rheostat.gateway") / "playground").iterdir():
        media_type = TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            yield file.name, Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def playground_routes() -> APIRouter:
    """`/` and `/playground/…`, which need no key: they hold nothing of the model, the policy or the caller."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page(request: Request) -> Response:
        return _sent(assets()["index.html"], request)

    @router.get("/playground/{name}")
    def asset(name: str, request: Request) -> Response:
        found = assets().get(name)
        return Response(status_code=404) if found is None else _sent(found, request)

    return router


def figures_of(places: Mapping[str, tuple[Path, str | None]]) -> Figures:
    """The figures of models that were loaded from a folder, by name, and of a run's tuned methods from this one."""

    @cache
    def figures(model: str) -> Mapping[str, Any] | None:
        return read_measured(*places[model]) if model in places else None

    return figures


def measured_for(tenant: Tenant, model: str | None, figures: Figures) -> Mapping[str, Any]:
    """The figures of a model, or of the first one that the tenant may ask.

    Raises `Refusal`: 404 for a model that it may not ask and for one that was never measured, 503 where the figures
    cannot be read.
    """
    name = next(iter(tenant.dials), None) if model is None else model
    if name is None or name not in tenant.dials:
        raise no_such_model(name)
    try:
        found = figures(name)
    except RheostatError as error:
        raise refusal_of(error) from error
    if found is None:
        raise Refusal(
            404,
            "not_measured",
            f"nothing was measured of the model {name!r}",
            "serve a run that was evaluated, or a folder exported from one",
            param="model",
        )
    return found


def _sent(asset: Asset, request: Request) -> Response:
    headers = {"Cache-Control": KEPT, "ETag": asset.etag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")}
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
