"""The HTTP API as an ASGI application: its routes, its errors, its OpenAPI document."""

import logging
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from rheostat.errors import ModelError
from rheostat.gateway import api_document
from rheostat.gateway.api_document import CHAT, COMPLETIONS
from rheostat.gateway.bodies import BodyTypes
from rheostat.gateway.door import Door
from rheostat.gateway.http_exchange import (
    BodyLimits,
    CompletionEndpoint,
    Receive,
    Scope,
    Send,
    bearer_key,
    internal_error,
)
from rheostat.gateway.limits import RATE_HEADERS
from rheostat.gateway.permitted import no_such_model
from rheostat.gateway.playground import Figures, measured_for, playground_routes
from rheostat.gateway.policy import Tenant
from rheostat.gateway.refusals import Refusal
from rheostat.gateway.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Dials,
    Health,
    Model,
    ModelList,
    Part,
)
from rheostat.gateway.service import Service
from rheostat.gateway.telemetry import CONTENT_TYPE
from rheostat.version import __version__

_logger = logging.getLogger(__name__)


def build_app(
    service: Service,
    *,
    body_limits: BodyLimits | None = None,
    only_loopback_names: bool = True,
    allow_origins: Sequence[str] = (),
    figures: Figures = lambda model: None,
) -> Any:
    """The application around a service, which whoever serves it starts and stops.

    `figures` has what was measured of its models; without it nothing was.
    """

    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        title="Rheostat",
        version=__version__,
        description=api_document.DESCRIPTION,
        redirect_slashes=False,
    )
    types = BodyTypes.of(
        [dial for model in service.backend.models.values() for dial in model.control_format.attributes]
    )
    limits = body_limits or BodyLimits()
    endpoints = {
        CHAT: CompletionEndpoint(service, "chat", f"POST {CHAT}", types.chat, limits),
        COMPLETIONS: CompletionEndpoint(
            service, "completion", f"POST {COMPLETIONS}", types.completion, limits
        ),
    }
    _add_completions(app, endpoints)
    _add_models(app, service, figures)
    _add_state(app, service)
    app.add_exception_handler(Refusal, _on_refusal)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_exception)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _on_exception)
    if allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-rheostat-dials", "retry-after", *RATE_HEADERS],
        )
    api_document.describe_bodies(app, types)
    api_document.add_docs(app)
    app.include_router(playground_routes())
    direct = {} if allow_origins else {("POST", path): endpoint for path, endpoint in endpoints.items()}
    return Door(app, service.telemetry, only_loopback_names=only_loopback_names, direct=direct)


class _Handed(Response):
    """Leaves the response to an ASGI application."""

    def __init__(self, endpoint: CompletionEndpoint) -> None:
        super().__init__()
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)


def _add_completions(app: FastAPI, endpoints: Mapping[str, CompletionEndpoint]) -> None:
    chat, completion = (_Handed(endpoints[path]) for path in (CHAT, COMPLETIONS))
    errors = api_document.errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)

    @app.post(
        CHAT,
        response_model=ChatCompletion,
        responses=api_document.answers(ChatCompletionChunk) | errors,
        tags=["completions"],
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        return chat

    @app.post(
        COMPLETIONS,
        response_model=Completion,
        responses=api_document.answers(CompletionChunk) | errors,
        tags=["completions"],
    )
    async def completions(request: Request) -> Response:
        """Answer a prompt, which is read as one user turn."""
        return completion


def _add_models(app: FastAPI, service: Service, figures: Figures) -> None:
    started = int(time())
    errors = api_document.errors(401, 500, 503)

    def tenant_of(request: Request) -> Tenant:
        tenant = service.callers.caller(bearer_key(request.scope["headers"])).tenant
        request.scope["state"]["tenant"] = tenant.name
        return tenant

    @app.get("/v1/models", responses=errors, tags=["models"])
    async def models(request: Request) -> ModelList:
        """The models that the caller may ask, the default one first."""
        allowed = tenant_of(request).dials
        return ModelList(
            data=[Model(id=name, created=started) for name in service.backend.models if name in allowed]
        )

    @app.get("/v1/models/{id:path}", responses=errors | api_document.errors(404), tags=["models"])
    async def model(id: str, request: Request) -> Model:
        """One of the models."""
        if id not in tenant_of(request).dials:
            raise no_such_model(id)
        return Model(id=id, created=started)

    @app.get("/v1/dials", responses=errors, tags=["models"])
    async def dials(request: Request) -> Dials:
        """The dials as this caller may turn them."""
        return Dials.of(tenant_of(request), has_rewards=service.guard is not None)

    @app.get("/v1/measured", responses=errors | api_document.errors(404), tags=["models"])
    def measured(request: Request, model: str | None = None) -> dict[str, Any]:
        """What the run measured of a model, or of the default one (docs/formats.md)."""
        return dict(measured_for(tenant_of(request), model, figures))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get(
        "/health",
        responses={503: {"model": Health, "description": "It does not answer now."}},
        tags=["operation"],
    )
    async def health(response: Response) -> Health:
        """Whether the gateway answers requests; no key is needed."""
        found = await _health(service)
        response.status_code = 200 if found.status == "ok" else 503
        return found

    @app.get("/metrics", response_class=Response, tags=["operation"], responses=api_document.metrics())
    async def metrics() -> Response:
        """The metrics in Prometheus' text format; no key is needed."""
        return Response(service.telemetry.text(), headers={"content-type": CONTENT_TYPE})


async def _health(service: Service) -> Health:
    model = Part(status="ok")
    try:
        await service.backend.check()
    except ModelError as error:
        _logger.warning("the model cannot answer: %s", error.message)
        model = Part(status="failing", detail="the model cannot answer now")
    source = service.callers.status()
    policy = Part(status="ok")
    if source.last_error is not None:
        policy = Part(
            status="failing", detail="the newest policy file was refused; the last good one is in force"
        )
    elif source.path is not None and not source.is_watched:
        policy = Part(
            status="failing", detail="the policy file is not watched; the one that was read last is in force"
        )
    audit = Part(status="ok")
    if service.audit is not None and service.audit.probe() is not None:
        audit = Part(status="failing", detail="the audit log cannot be written")
    is_audit_ok = audit.status == "ok" or service.audit is None or not service.audit.stops
    is_ok = model.status == "ok" and is_audit_ok
    return Health(
        status="draining" if service.admission.is_draining else "ok" if is_ok else "failing",
        model=model,
        policy=policy,
        audit=audit,
        in_work=service.admission.working,
        waiting=service.admission.waiting,
    )


async def _on_refusal(request: Request, refusal: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refusal.headers()}
    return JSONResponse(refusal.body(), refusal.status, headers)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        refusal = Refusal(
            405, "wrong_method", f"got {request.method}, which this address does not take", "see /docs"
        )
    else:
        refusal = Refusal(
            error.status_code, "not_found", "there is nothing at this address", "/docs lists the addresses"
        )
    return JSONResponse(refusal.body(), refusal.status, error.headers)


async def _on_exception(request: Request, error: Exception) -> Response:
    """What no code expected: the server logs the traceback, the client learns the request's id."""
    request_id = request.scope["state"]["request_id"]
    _logger.error("request %s failed", request_id)
    return JSONResponse(internal_error(request_id).body(), 500)
