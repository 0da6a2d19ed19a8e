"""`rheostat serve`: the parts put together, and what is said at the start."""

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rheostat.control import ControlFormat, level_text
from rheostat.errors import InputError
from rheostat.gateway.admission import Admission
from rheostat.gateway.app import build_app
from rheostat.gateway.audit import AuditLog
from rheostat.gateway.backend import Backend
from rheostat.gateway.connection import ConnectionLimits
from rheostat.gateway.guard import Guard
from rheostat.gateway.hangup import at_hangup, hangups_taken
from rheostat.gateway.http_exchange import BodyLimits
from rheostat.gateway.keys import new_key
from rheostat.gateway.limits import RateLimits
from rheostat.gateway.playground import figures_of
from rheostat.gateway.policy_source import CallerSource, LocalSource, PolicySource
from rheostat.gateway.server import build_server, listen, room_for
from rheostat.gateway.service import Service
from rheostat.gateway.telemetry import Telemetry

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """A server that answers: what it calls the model, and the environment variable that has its key."""

    url: str
    model: str | None
    key_variable: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `rheostat serve`; their defaults are the command line's; times in seconds."""

    run: Path | None
    method: str | None
    name: str | None
    upstream: UpstreamAddress | None
    rewards: Path | None
    policy: Path | None
    is_insecure: bool
    host: str
    port: int
    concurrency: int
    queue: int
    timeout_s: float
    drain_s: float
    max_body: int
    request_s: float
    connections: int
    allow_origins: tuple[str, ...]
    device: str


def serve_forever(options: ServeOptions, *, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises `InputError`, `ConfigError` and `ModelError` before it serves."""
    _check(options)
    with hangups_taken():
        _serve(options, tell)


def _serve(options: ServeOptions, tell: Callable[[str], None]) -> None:
    opened = listen(options.host, options.port, only_loopback=options.policy is None)
    with opened:
        backend = load_backend(options)
        formats = {name: model.control_format for name, model in backend.models.items()}
        key = new_key() if options.policy is None and not options.is_insecure else None
        callers: CallerSource
        callers = (
            LocalSource(formats, key=key) if options.policy is None else PolicySource(options.policy, formats)
        )
        at_hangup(callers.reload_soon)
        audit = None if callers.audit is None else AuditLog(callers.audit)
        try:
            service = _service(options, backend, callers, audit, load_guard(options, backend, callers))
            app = build_app(
                service,
                body_limits=BodyLimits(options.max_body, options.request_s),
                only_loopback_names=options.policy is None,
                allow_origins=options.allow_origins,
                figures=figures_of(
                    {name: (measured_folder(options), options.method) for name in backend.models}
                ),
            )
            limits = ConnectionLimits(
                request_s=options.request_s + 5, connections=room_for(options.connections)
            )
            server = build_server(
                app, service, limits=limits, drain_s=options.drain_s, on_ready=lambda: tell("ready")
            )
            # Every request that is no HTTP would write a line to the log.
            logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
            for line in announcement(options, opened, formats, key):
                tell(line)
            server.run([opened])
        finally:
            if audit is not None:
                audit.close()


def _check(options: ServeOptions) -> None:
    if options.policy is not None and options.is_insecure:
        raise InputError(
            "got --policy and --insecure-local, allowed is one of them", hint="leave --insecure-local out"
        )
    if options.method is not None and options.run is None:
        raise InputError(
            "got --method without --run, allowed is both", hint="give the run that trained it with --run DIR"
        )
    if options.upstream is None:
        return
    if options.run is None:
        raise InputError(
            "got --upstream without --run, allowed is both",
            hint="give the exported model that it serves with --run DIR",
        )
    if options.method is not None:
        raise InputError(
            "got --upstream and --method, allowed is one of them", hint="an exported model is one method's"
        )
    if options.device != "auto":
        raise InputError(
            "got --upstream and --device, allowed is one of them", hint="the server that answers has its own"
        )


def load_backend(options: ServeOptions) -> Backend:
    """What answers. Raises `ModelError`."""
    if options.upstream is not None:
        return _upstream(options, options.upstream)
    from rheostat.dialled import load
    from rheostat.gateway.inprocess import in_process
    from rheostat.gateway.served import served_name

    name = options.name or served_name(options.run)
    return in_process({name: load(options.run, method=options.method, device=options.device)})


def load_guard(options: ServeOptions, backend: Backend, callers: CallerSource) -> Guard | None:
    """What scores answers: with `--rewards`, where a policy has anyone's scored, or without one the packaged model's.

    A policy that is read later can ask for no other: to load a run's reward models for a policy that has no use for
    them would take the memory of as many models again. Raises `ConfigError` for a tenant whose answers cannot be
    scored, `ModelError` where the rewards cannot be loaded.
    """
    from rheostat.gateway.guard_rewards import check_guards, has_rewards, load_scorer

    if options.rewards is not None:
        is_needed = True
    elif isinstance(callers, PolicySource):
        is_needed = any(
            each.guard is not None or each.allows_scores for each in callers.policy.tenants.values()
        )
    else:
        is_needed = options.run is None
    rewards = load_scorer(options.run, options.rewards) if is_needed else None
    if isinstance(callers, PolicySource):
        callers.check = partial(
            check_guards,
            scored=None if rewards is None else rewards.dials,
            are_left_out=not is_needed and has_rewards(options.run),
        )
        callers.check(callers.policy)
    return None if rewards is None else Guard(backend, rewards.scorer)


def measured_folder(options: ServeOptions) -> Path:
    """Where the figures of what is served are read."""
    from rheostat.model_files import PACKAGED, resolve

    return Path(resolve(PACKAGED)) if options.run is None else options.run


def _upstream(options: ServeOptions, address: UpstreamAddress) -> Backend:
    from rheostat.gateway.upstream import Upstream
    from rheostat.gateway.upstream_client import UpstreamOptions

    assert options.run is not None
    whole = UpstreamOptions(
        base_url=address.url,
        model=address.model,
        api_key_env=address.key_variable,
        connections=options.concurrency,
        whole_s=options.timeout_s,
    )
    return Upstream(options.run, whole, name=options.name)


def _service(
    options: ServeOptions,
    backend: Backend,
    callers: CallerSource,
    audit: AuditLog | None,
    guard: Guard | None,
) -> Service:
    telemetry = Telemetry()
    admission = Admission(in_work=options.concurrency, queue=options.queue)
    telemetry.watch("in_work", "Requests in work", lambda: admission.working)
    telemetry.watch("queue_length", "Requests that wait for their turn", lambda: admission.waiting)
    telemetry.watch("backend_waiting", "Asks that have no token yet", lambda: backend.waiting)
    telemetry.watch(
        "policy_reloads", "Policy files taken over since the start", lambda: callers.status().reloads
    )
    telemetry.watch(
        "policy_failures", "Policy files refused since the start", lambda: callers.status().failures
    )
    if audit is not None:
        telemetry.watch("audit_lines", "Lines written to the audit log", lambda: audit.lines)
        telemetry.watch("audit_lost", "Lines that could not be written", lambda: audit.lost)
        telemetry.watch(
            "audit_rotation_fails",
            "1 where an older audit file could not be set aside when it was last tried",
            lambda: audit.rotation_fails,
        )
    return Service(
        backend=backend,
        callers=callers,
        limits=RateLimits(),
        admission=admission,
        telemetry=telemetry,
        audit=audit,
        guard=guard,
        timeout_s=options.timeout_s,
    )


def announcement(
    options: ServeOptions, opened: socket.socket, formats: Mapping[str, ControlFormat], key: str | None
) -> list[str]:
    """What is served, to whom, where, and what is not set."""
    address = opened.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    lines = [
        f"playground  {url}/{'' if key is None else f'#key={key}'}",
        f"API         {url}/v1 (documented at {url}/docs)",
    ]
    for name, dials in formats.items():
        said = [
            f"{dial} {level_text(dials.levels_of(dial)[0])} to {level_text(dials.levels_of(dial)[-1])}"
            for dial in dials.names
        ]
        lines.append(f"model       {name}: {', '.join(said)}")
    if options.policy is not None:
        lines.append(f"policy      {options.policy}")
    elif key is not None:
        lines.append(
            "policy      none: whoever has the key in the address above turns the dials freely, on this machine"
        )
    else:
        lines.append(
            "policy      none, and no key is asked for: anyone on this machine turns the dials freely"
        )
    return lines
