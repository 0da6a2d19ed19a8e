"""The keys of the policy file, and what each may hold. Strict: a number is no text, and `yes` is no number."""

from collections import Counter
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from rheostat.config_blocks import Block, Level
from rheostat.gateway.dials import BelowFloor
from rheostat.gateway.keys import NAME_PATTERN, is_hash

Count = Annotated[int, Field(ge=1, le=10**12)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Models = Annotated[list[str], Field(min_length=1)]


class PolicyBlock(Block):
    """A block of keys whose values are taken as they are: YAML's `yes` is true, and no level of a dial."""

    model_config = ConfigDict(strict=True)


def _hash(value: Any) -> str:
    """A hash in lower case; what else was given is not repeated, since it may be the key."""
    if not isinstance(value, str) or not is_hash(value.lower()):
        kind = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
        raise ValueError(f"got {kind}, allowed are the 64 hexadecimal digits that `rheostat key` prints")
    return value.lower()


def _moment(value: Any) -> Any:
    """A moment as YAML reads it, or text in the same form."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        shown = f"got {value.isoformat()}, " if isinstance(value, date) else "got another value, "
        raise ValueError(f"{shown}allowed is a moment with its time zone, as 2027-01-31T00:00:00Z")
    return value


class KeyBlock(PolicyBlock):
    """An API key, by its hash."""

    id: Name = Field(description="what the audit log calls it")
    sha256: Annotated[str, BeforeValidator(_hash)] = Field(description="the hash that `rheostat key` printed")
    expires: Annotated[AwareDatetime, BeforeValidator(_moment)] | None = Field(
        None, description="from when on it opens nothing, as 2027-01-31T00:00:00Z"
    )


class GuardBlock(PolicyBlock):
    """Guarded answers: several are drawn and scored, the one nearest the dials is given, none below a floor."""

    samples: Annotated[int, Field(ge=1, le=64)] = Field(8, description="answers drawn for each that is given")
    refusal: Annotated[str, StringConstraints(min_length=1)] = Field(
        "I cannot answer that here.", description="what is said where no answer reaches every floor (docs/gateway.md)"
    )


class LimitsBlock(PolicyBlock):
    """What a tenant may do; every key may be left out."""

    floors: dict[str, Level] = Field(default_factory=dict, description="lowest level of a dial, by dial")
    ceilings: dict[str, Level] = Field(default_factory=dict, description="highest level of a dial, by dial")
    defaults: dict[str, Level] = Field(
        default_factory=dict, description="level of a dial that a request does not give; else the model's default"
    )
    below_floor: BelowFloor | None = Field(
        None, description="what becomes of a value below a floor: `raise` (to it), or `refuse` (403); null: raise"
    )
    models: Models | None = Field(None, description="models that may be asked; null: all that are served")
    system_turn: Literal["allow", "refuse"] | None = Field(
        None, description="whether a request may bring a system turn; null: allow"
    )
    requests_per_minute: Count | None = Field(None, description="null: no limit")
    tokens_per_minute: Count | None = Field(
        None, description="of prompts and answers together, all samples of a guarded one included; null: no limit"
    )
    requests_at_once: Count | None = Field(
        None, description="requests under way, those that wait their turn included; null: what the gateway has room for"
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


class AuditBlock(PolicyBlock):
    """The audit log: one line of JSON a request. Changes to this block need a restart."""

    path: Annotated[str, StringConstraints(min_length=1)] = Field(description="the file; its folder must exist")
    rotate_mb: Annotated[float, Field(gt=0)] = Field(64, description="size at which a new file is begun")
    keep: Annotated[int, Field(ge=1)] = Field(16, description="older files that are kept")
    on_failure: Literal["stop", "serve"] = Field(
        "stop", description="when a line cannot be written: refuse service until it can, or serve on and say so"
    )
    fsync: bool = Field(False, description="whether each line is on the disk before its answer goes out")


class PolicyFile(PolicyBlock):
    """A whole policy file."""

    version: Annotated[int, Field(ge=1, le=1)] = Field(description="of the format of this file")
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
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"got the key {what} {', '.join(twice)} twice, allowed is each once")
        return tenants
