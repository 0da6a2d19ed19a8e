"""The OpenAPI document: what the routes say of themselves beyond their types."""

import base64
import hashlib
import re
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rheostat.gateway.bodies import BodyTypes, ChatBody, CompletionBody
from rheostat.gateway.schemas import ChatCompletionChunk, CompletionChunk, Error

DESCRIPTION = """Chat completions with dials, under the policy of whoever runs this gateway.

The API is OpenAI's; the dials are more fields of a request (`"safety": 0.75`), headers (`X-Rheostat-Safety: 0.75`) or
`chat_template_kwargs`, and `rheostat` in the answer says what was granted and why."""

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
"""The end of every content security policy."""

_STATIC = "/static-offline-docs"
_ERRORS = {
    400: "The request cannot be answered as it is.",
    401: "No key, or one that is not known.",
    403: "The policy does not allow it.",
    404: "There is no such thing.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much at once; Retry-After says when to ask again.",
    500: "The gateway failed.",
    502: "The model's server failed.",
    503: "Not now: it is starting, shutting down, or the model cannot answer.",
    504: "No whole answer in time.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route."""
    return {status: {"model": Error, "description": _ERRORS[status]} for status in statuses}


def answers(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The good response of a route that streams where it is asked to: `chunk` is what an event holds."""
    what = f"The answer; with `stream: true` server-sent events, each a `{chunk.__name__}`, then `[DONE]`."
    held = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(chunk.__name__), _reference(Error.__name__)]},
        "description": "an error ends the stream",
    }
    event = {
        "type": "object",
        "description": "one event of the stream: OpenAPI 3.1 has no word of its own for it",
        "properties": {"data": {"type": "string", "anyOf": [held, {"const": "[DONE]"}]}},
        "required": ["data"],
    }
    return {
        200: {
            "description": what,
            "content": {"text/event-stream": {"schema": event}},
            "headers": {
                "X-Rheostat-Dials": {"description": "the dials as granted", "schema": {"type": "string"}},
                "X-Request-Id": {
                    "description": "the request's id, as the audit log has it",
                    "schema": {"type": "string"},
                },
            },
        }
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def metrics() -> dict[int | str, dict[str, Any]]:
    """The response of `/metrics`."""
    return {200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}}


def describe_bodies(app: FastAPI, types: BodyTypes) -> None:
    """Puts the bodies, which the routes read themselves, and the keys into the document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, types)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, types: BodyTypes) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema(
        [
            (types.chat, "validation"),
            (types.completion, "validation"),
            (ChatCompletionChunk, "serialization"),
            (CompletionChunk, "serialization"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = made["components"]
    components["schemas"] |= definitions["$defs"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, kind in ((CHAT, types.chat), (COMPLETIONS, types.completion)):
        made["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(kind.__name__), "examples": _examples(kind)}},
        }
    for path, methods in made["paths"].items():
        for operation in methods.values():
            if path.startswith("/v1/"):
                operation["security"] = [{"key": []}, {}]
                operation["responses"].pop("422", None)
    return made


def _examples(kind: type[ChatBody] | type[CompletionBody]) -> dict[str, Any]:
    """Requests that are answered as they stand, with the dials that are served."""
    said: dict[str, Any] = {"prompt": "How do I bake bread?"}
    if issubclass(kind, ChatBody):
        said = {"messages": [{"role": "user", "content": "How do I bake bread?"}]}
    base = ChatBody if issubclass(kind, ChatBody) else CompletionBody
    dials = [name for name in kind.model_fields if name not in base.model_fields]
    return {
        "plain": {"summary": "With the dials at their defaults", "value": said},
        "dials": {"summary": "With the dials turned", "value": {**said, **dict.fromkeys(dials, 1)}},
        "stream": {"summary": "As a stream", "value": {**said, "stream": True, "max_tokens": 100}},
    }


def add_docs(app: FastAPI) -> None:
    """`/docs`, from files of this machine alone; its one inline script is allowed by its hash."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{app.title}: the API",
        swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{_STATIC}/favicon.png",
    )
    hashes = [
        base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{each}'" for each in hashes)
    page.headers["content-security-policy"] = (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"{CLOSED}"
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page
