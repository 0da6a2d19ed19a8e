"""The playground: one page at `/` and what it loads, all from this server. It asks through the API, like any client."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from fastapi import APIRouter, Request, Response

TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}
"""By ending, what a file is sent as; a file of another ending is not sent."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""With every file. `no-cache`: a browser keeps a file, and asks by its ETag whether it still stands."""


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


def _sent(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")}
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
