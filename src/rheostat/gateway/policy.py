"""The policy file: who may turn which dial how far. Read and checked whole, against the models that are served. Pure.

A file that fails in any point gives no policy at all: `read_policy` raises with every problem, and whoever calls it
keeps the last good policy, or does not start.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, ValidationError, field_validator

from rheostat import yaml_text
from rheostat.config_blocks import Block
from rheostat.config_fields import describe_fault
from rheostat.control import ControlFormat
from rheostat.errors import ConfigError, DialError, did_you_mean
from rheostat.gateway.dials import BelowFloor, DialLimits
from rheostat.gateway.keys import find_key

HINT = "`rheostat policy FILE` checks a policy file; docs/gateway.md has every key"
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _lower(text: str) -> str:
    return text.lower()


class KeyBlock(Block):
    """An API key, by its hash."""

    id: Name = Field(description="what the audit log calls it")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(_lower)] = Field(
        description="the hash that `rheostat key` printed"
    )
    expires: AwareDatetime | None = Field(None, description="from when on it opens nothing, as 2027-01-31T00:00:00Z")


class GuardBlock(Block):
    """Guarded answers: several are drawn and scored, the one nearest the dials is given, none below a floor."""

    samples: Annotated[int, Field(ge=1, le=64)] = Field(8, description="answers drawn for each that is given")
    refusal: Annotated[str, StringConstraints(min_length=1)] = Field(
        "I cannot answer that here.", description="what is said where no answer scores at or above every floor"
    )


class LimitsBlock(Block):
    """What a tenant may do; every key may be left out."""

    floors: dict[str, Share] = Field(default_factory=dict, description="lowest level of a dial, by dial")
    ceilings: dict[str, Share] = Field(default_factory=dict, description="highest level of a dial, by dial")
    defaults: dict[str, Share] = Field(
        default_factory=dict, description="level of a dial that a request does not give; else the model's default"
    )
    below_floor: BelowFloor | None = Field(
        None, description="what becomes of a value below a floor: `raise` (to it), or `refuse` (403); null: raise"
    )
    models: list[str] | None = Field(None, description="models that may be asked; null: all that are served")
    system_turn: Literal["allow", "refuse"] | None = Field(
        None, description="whether a request may bring a system turn; null: allow"
    )
    requests_per_minute: Count | None = Field(None, description="null: no limit")
    tokens_per_minute: Count | None = Field(
        None, description="of prompts and answers together, all samples of a guarded one included; null: no limit"
    )
    max_tokens: Count | None = Field(None, description="longest answer; null: what the model's context leaves")
    guard: GuardBlock | None = Field(None, description="absent: answers are given as they are drawn")
    scores: bool | None = Field(
        None, description="whether a request may have its answer scored (`score: true`); null: no"
    )
    audit_texts: bool | None = Field(None, description="whether the audit log holds what was said; null: no")


class TenantBlock(LimitsBlock):
    """A tenant: its keys, and where it differs from `everyone`."""

    keys: list[KeyBlock] = Field(default_factory=list, description="the tenant's keys; two while one replaces another")


class AuditBlock(Block):
    """The audit log: one line of JSON a request. Changes to this block need a restart."""

    path: Annotated[str, StringConstraints(min_length=1)] = Field(description="the file; its folder must exist")
    rotate_mb: Annotated[float, Field(gt=0)] = Field(64, description="size at which a new file is begun")
    keep: Annotated[int, Field(ge=1)] = Field(16, description="older files that are kept")
    on_failure: Literal["stop", "serve"] = Field(
        "stop", description="when a line cannot be written: refuse service until it can, or serve on and say so"
    )
    fsync: bool = Field(False, description="whether each line is on the disk before its answer goes out")


class PolicyFile(Block):
    """A whole policy file."""

    version: Literal[1]
    everyone: LimitsBlock = Field(
        LimitsBlock(),
        description="what holds for every tenant; a tenant may set more narrowly, never lower its floors or raise "
        "its ceilings",
    )
    tenants: dict[Name, TenantBlock] = Field(min_length=1, description="by name")
    audit: AuditBlock | None = Field(None, description="absent: no audit log is kept")

    @field_validator("tenants")
    @classmethod
    def _keys_differ(cls, tenants: dict[str, TenantBlock]) -> dict[str, TenantBlock]:
        keys = [key for tenant in tenants.values() for key in tenant.keys]
        for what, values in (("id", [key.id for key in keys]), ("sha256", [key.sha256 for key in keys])):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"got the key {what} {', '.join(twice)} twice, allowed is each once")
        return tenants


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as the gateway uses it: everyone's limits and its own made one."""

    name: str
    limits: DialLimits
    dials: Mapping[str, ControlFormat]
    """By model that it may ask, its dials between floor and ceiling."""
    allows_system_turn: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_tokens: int | None
    guard: GuardBlock | None
    allows_scores: bool
    audits_texts: bool


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a tenant, by one of its keys."""

    tenant: Tenant
    key_id: str


@dataclass(frozen=True, slots=True)
class _Key:
    caller: Caller
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy in force; `digest` is the SHA-256 of its text."""

    tenants: Mapping[str, Tenant]
    audit: AuditBlock | None
    digest: str
    _hashes: tuple[str, ...]
    _keys: tuple[_Key, ...]

    def caller(self, key: str, now: datetime | None = None) -> Caller | None:
        """Whose key it is; None where it is nobody's, or has expired."""
        place = find_key(key, self._hashes)
        if place is None:
            return None
        found = self._keys[place]
        if found.expires is not None and (now or datetime.now(UTC)) >= found.expires:
            return None
        return found.caller


def read_policy(text: str, models: Mapping[str, ControlFormat], *, name: str = "policy") -> Policy:
    """The policy of a YAML text, for the dials of the models that are served. Raises `ConfigError` with all problems.

    A floor, ceiling or default must be a level of that dial of every model that the tenant may ask.
    """
    try:
        values = yaml_text.parse(text)
    except ValueError as error:
        raise ConfigError([f"{name}: {error}"], hint=HINT) from None
    try:
        file = PolicyFile.model_validate(values)
    except ValidationError as error:
        problems = [f"{name}: {describe_fault(detail, PolicyFile)}" for detail in error.errors()]
        raise ConfigError(problems, hint=HINT) from None
    problems = []
    tenants = {}
    for tenant, block in file.tenants.items():
        try:
            tenants[tenant] = _tenant(tenant, block, file.everyone, models)
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems, hint=HINT)
    keys = [(key, Caller(tenants[tenant], key.id)) for tenant, block in file.tenants.items() for key in block.keys]
    return Policy(
        tenants,
        file.audit,
        hashlib.sha256(text.encode()).hexdigest(),
        tuple(key.sha256 for key, _ in keys),
        tuple(_Key(caller, key.expires) for key, caller in keys),
    )


def local_tenant(models: Mapping[str, ControlFormat], name: str = "local") -> Tenant:
    """Who asks where no policy file is: the person at this machine, without limits."""
    return _tenant(name, TenantBlock(scores=True), LimitsBlock(), models)


def _tenant(name: str, own: TenantBlock, everyone: LimitsBlock, models: Mapping[str, ControlFormat]) -> Tenant:
    where = f"tenants.{name}"
    asked, limits = _asked(own, everyone, models), _limits(own, everyone)
    problems = [
        f"{where}.models: got {model!r}, allowed are {', '.join(models)}{did_you_mean(model, list(models))}"
        for model in asked
        if model not in models
    ]
    dials = {}
    for model in asked:
        if model in models:
            try:
                dials[model] = limits.on(models[model])
            except DialError as error:
                problems.append(f"{where}: for the model {model}: {error.message}")
    problems += _crossed(where, limits)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), hint=HINT)
    return Tenant(
        name=name,
        limits=limits,
        dials=dials,
        allows_system_turn=_first(own.system_turn, everyone.system_turn, "allow") == "allow"
        and everyone.system_turn != "refuse",
        requests_per_minute=_lowest(own.requests_per_minute, everyone.requests_per_minute),
        tokens_per_minute=_lowest(own.tokens_per_minute, everyone.tokens_per_minute),
        max_tokens=_lowest(own.max_tokens, everyone.max_tokens),
        guard=_first(own.guard, everyone.guard, None),
        allows_scores=_first(own.scores, everyone.scores, False),
        audits_texts=_first(own.audit_texts, everyone.audit_texts, False),
    )


def _asked(own: LimitsBlock, everyone: LimitsBlock, models: Mapping[str, ControlFormat]) -> list[str]:
    """The models that a tenant may ask: of its own those that everyone may."""
    if own.models is None:
        return list(models) if everyone.models is None else everyone.models
    return own.models if everyone.models is None else [each for each in own.models if each in everyone.models]


def _limits(own: LimitsBlock, everyone: LimitsBlock) -> DialLimits:
    floors, ceilings = dict(everyone.floors), dict(everyone.ceilings)
    for dial, level in own.floors.items():
        floors[dial] = max(level, floors.get(dial, 0.0))
    for dial, level in own.ceilings.items():
        ceilings[dial] = min(level, ceilings.get(dial, 1.0))
    refuses = "refuse" in (own.below_floor, everyone.below_floor)
    return DialLimits(floors, ceilings, {**everyone.defaults, **own.defaults}, "refuse" if refuses else "raise")


def _crossed(where: str, limits: DialLimits) -> Iterator[str]:
    for dial, floor in limits.floors.items():
        if floor > (ceiling := limits.ceilings.get(dial, 1.0)):
            yield f"{where}: {dial}: got the floor {floor:g} above the ceiling {ceiling:g}"


def _first(*values: Any) -> Any:
    return next((value for value in values[:-1] if value is not None), values[-1])


def _lowest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
