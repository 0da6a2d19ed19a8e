"""The policy: who may turn which dial how far. A file read and checked whole, against the models that are served. Pure.

A file that fails in any point gives no policy at all: `read_policy` raises with every problem, and whoever calls it
keeps the last good policy, or does not start.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from rheostat import yaml_text
from rheostat.config_fields import describe_fault
from rheostat.control import ControlFormat, level_text
from rheostat.errors import ConfigError, did_you_mean
from rheostat.gateway.dials import DialLimits
from rheostat.gateway.keys import find_key, lines_with_keys
from rheostat.gateway.policy_file import AuditBlock, GuardBlock, LimitsBlock, PolicyFile, TenantBlock

HINT = "docs/policy.md has every key; `rheostat policy FILE` checks a file, `rheostat policy --example` prints one"
_KINDS = ("floors", "ceilings", "defaults")


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
    requests_at_once: int | None
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
class Key:
    """A key of the policy, by its hash; it opens nothing from `expires` on."""

    sha256: str
    caller: Caller
    expires: datetime | None

    def opens(self, now: datetime) -> bool:
        """Whether it opens anything at a moment."""
        return self.expires is None or now < self.expires


@dataclass(frozen=True)
class Policy:
    """A policy in force; `digest` is the SHA-256 of its text."""

    tenants: Mapping[str, Tenant]
    audit: AuditBlock | None
    digest: str
    keys: tuple[Key, ...]

    @cached_property
    def _hashes(self) -> tuple[str, ...]:
        return tuple(key.sha256 for key in self.keys)

    def caller(self, key: str, now: datetime) -> Caller | None:
        """Whose key it is at a moment; None where it is nobody's, or has expired."""
        place = find_key(key, self._hashes)
        if place is None:
            return None
        found = self.keys[place]
        return found.caller if found.opens(now) else None


def read_policy(text: str, models: Mapping[str, ControlFormat], *, name: str = "policy") -> Policy:
    """The policy of a YAML text, for the dials of the models that are served. Raises `ConfigError` with all problems.

    A floor, ceiling or default must be a level of that dial of every model that the tenant may ask. No message repeats
    a key.
    """
    file = _parsed(text, name)
    tenants: dict[str, Tenant] = {}
    problems: list[str] = []
    for tenant, block in file.tenants.items():
        try:
            tenants[tenant] = _tenant(tenant, block, file.everyone, models)
        except ConfigError as error:
            problems += error.problems
    if problems:  # everyone's are every tenant's
        raise ConfigError([f"{name}: {problem}" for problem in dict.fromkeys(problems)], hint=HINT)
    keys = tuple(
        Key(key.sha256, Caller(tenants[tenant], key.id), key.expires)
        for tenant, block in file.tenants.items()
        for key in block.keys
    )
    return Policy(tenants, file.audit, hashlib.sha256(text.encode()).hexdigest(), keys)


def local_tenant(models: Mapping[str, ControlFormat], name: str = "local") -> Tenant:
    """Who asks where no policy file is: the person at this machine, without limits."""
    return _tenant(name, TenantBlock(scores=True), LimitsBlock(), models)


def _parsed(text: str, name: str) -> PolicyFile:
    if lines := lines_with_keys(text):
        raise ConfigError(
            [f"{name}: line {line}: got a key itself, allowed is only its hash" for line in lines],
            hint="`rheostat key --hash -` gives the hash of a key; make a new one if others could read this file",
        )
    try:
        values = yaml_text.parse(text, aliases=False)
        if not isinstance(values, dict):
            raise ValueError(f"got {yaml_text.shown(values)}, allowed is a block of keys")
        return PolicyFile.model_validate(values)
    except ValidationError as error:
        problems = [f"{name}: {describe_fault(detail, PolicyFile)}" for detail in error.errors()]
        raise ConfigError(problems, hint=HINT) from None
    except ValueError as error:
        raise ConfigError([f"{name}: {error}"], hint=HINT) from None


def _tenant(name: str, own: TenantBlock, everyone: LimitsBlock, models: Mapping[str, ControlFormat]) -> Tenant:
    blocks = {"everyone": everyone, f"tenants.{name}": own}
    limits = _limits(own, everyone)
    problems = list(_unknown_models(f"tenants.{name}", own, everyone, list(models)))
    asked = {model: models[model] for model in _first(own.models, everyone.models, models) if model in models}
    for model, control_format in (asked or models).items():  # without one it fails, and for all there is to say
        found = [problem for where, block in blocks.items() for problem in _unfit(where, block, model, control_format)]
        problems += found or _crossed(f"tenants.{name}", limits, model, control_format)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), hint=HINT)
    return Tenant(
        name=name,
        limits=limits,
        dials={model: limits.on(control_format) for model, control_format in asked.items()},
        allows_system_turn="refuse" not in (own.system_turn, everyone.system_turn),
        requests_per_minute=_lowest(own.requests_per_minute, everyone.requests_per_minute),
        tokens_per_minute=_lowest(own.tokens_per_minute, everyone.tokens_per_minute),
        requests_at_once=_lowest(own.requests_at_once, everyone.requests_at_once),
        max_tokens=_lowest(own.max_tokens, everyone.max_tokens),
        guard=_first(own.guard, everyone.guard, None),
        allows_scores=False not in (own.scores, everyone.scores) and True in (own.scores, everyone.scores),
        audits_texts=_first(own.audit_texts, everyone.audit_texts, False),
    )


def _limits(own: LimitsBlock, everyone: LimitsBlock) -> DialLimits:
    floors, ceilings = dict(everyone.floors), dict(everyone.ceilings)
    for dial, level in own.floors.items():
        floors[dial] = max(level, floors.get(dial, 0.0))
    for dial, level in own.ceilings.items():
        ceilings[dial] = min(level, ceilings.get(dial, 1.0))
    refuses = "refuse" in (own.below_floor, everyone.below_floor)
    return DialLimits(floors, ceilings, {**everyone.defaults, **own.defaults}, "refuse" if refuses else "raise")


def _unknown_models(where: str, own: LimitsBlock, everyone: LimitsBlock, served: Sequence[str]) -> Iterator[str]:
    """Models that are not served, and a tenant's own that not everyone may ask."""
    allowed = served
    for place, models in (("everyone", everyone.models), (where, own.models)):
        for model in models or ():
            if model not in allowed:
                near = did_you_mean(model, allowed)
                yield f"{place}.models: got {yaml_text.shown(model)}{near}, allowed are {', '.join(allowed)}"
        allowed = allowed if models is None else models


def _unfit(where: str, block: LimitsBlock, model: str, control_format: ControlFormat) -> Iterator[str]:
    """What a block says of dials that the model lacks, and of levels that its dials have not."""
    for kind in _KINDS:
        for dial, level in getattr(block, kind).items():
            if dial not in control_format.names:
                near = did_you_mean(dial[:80], control_format.names)
                names = ", ".join(control_format.names)
                yield f"{where}.{kind}.{dial}: the model {model} has no such dial{near}; it has {names}"
            elif level not in (levels := control_format.levels_of(dial)):
                allowed = ", ".join(map(level_text, levels))
                yield f"{where}.{kind}.{dial}: got {level!r}, allowed are the levels of the model {model}: {allowed}"


def _crossed(where: str, limits: DialLimits, model: str, control_format: ControlFormat) -> Iterator[str]:
    """What a tenant's limits, everyone's among them, say against each other; all are levels of the model."""
    for dial in control_format.names:
        levels = control_format.levels_of(dial)
        floor, ceiling = limits.floors.get(dial, levels[0]), limits.ceilings.get(dial, levels[-1])
        default = limits.defaults.get(dial, floor)
        if floor > ceiling:
            yield f"{where}: {dial}: got the floor {level_text(floor)} above the ceiling {level_text(ceiling)}"
        elif not floor <= default <= ceiling:
            yield (
                f"{where}: {dial}: got the default {level_text(default)}, allowed is from the floor "
                f"{level_text(floor)} to the ceiling {level_text(ceiling)}"
            )


def _first(*values: Any) -> Any:
    return next((value for value in values[:-1] if value is not None), values[-1])


def _lowest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
