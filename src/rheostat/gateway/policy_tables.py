"""A policy as tables for a terminal: the dials, the limits and the keys of its tenants."""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from rheostat.control import level_text
from rheostat.gateway.policy import Policy, Tenant
from rheostat.gateway.policy_file import GuardBlock
from rheostat.tables import titled

NONE = "–"


def policy_tables(policy: Policy, now: datetime) -> Sequence[Table]:
    """What each tenant may do, and which keys open it at the moment `now`."""
    return [_dials_table(policy), _limits_table(policy), _keys_table(policy, now)]


def _dials_table(policy: Policy) -> Table:
    table = titled("Dials")
    for name in ("tenant", "model", "dial"):
        table.add_column(name, overflow="fold")
    for name in ("floor", "ceiling", "default"):
        table.add_column(name, justify="right")
    table.add_column("below the floor")
    for tenant in policy.tenants.values():
        for model, control_format in tenant.dials.items():
            for dial in control_format.names:
                levels = control_format.levels_of(dial)
                floor, ceiling = levels[0], levels[-1]
                has_floor, has_ceiling = dial in tenant.limits.floors, dial in tenant.limits.ceilings
                below = ("refused" if tenant.limits.below_floor == "refuse" else "raised") if has_floor else NONE
                table.add_row(
                    Text(tenant.name),
                    Text(model),
                    dial,
                    Text(level_text(floor), style="bold" if has_floor else "dim"),
                    Text(level_text(ceiling), style="bold" if has_ceiling else "dim"),
                    level_text(control_format.default_of(dial)),
                    below,
                )
    table.caption, table.caption_justify = "Bold: set by the policy; else the end of the model's own dial.", "left"
    return table


def _limits_table(policy: Policy) -> Table:
    table = titled("Limits")
    table.add_column("tenant", overflow="fold")
    for name in ("requests\n/min", "tokens\n/min", "at\nonce", "max.\ntokens"):
        table.add_column(name, justify="right")
    for name in ("guard", "system", "scores", "texts"):
        table.add_column(name)
    for tenant in policy.tenants.values():
        table.add_row(
            Text(tenant.name),
            *map(_number, _limits_of(tenant)),
            _guard(tenant.guard),
            *map(_yes, (tenant.allows_system_turn, tenant.allows_scores, tenant.audits_texts)),
        )
    table.caption_justify = "left"
    table.caption = "system: may bring a system turn. scores: may have answers scored. texts: are in the audit log."
    return table


def _limits_of(tenant: Tenant) -> tuple[int | None, ...]:
    return tenant.requests_per_minute, tenant.tokens_per_minute, tenant.requests_at_once, tenant.max_tokens


def _keys_table(policy: Policy, now: datetime) -> Table:
    table = titled("Keys")
    for name in ("key", "tenant"):
        table.add_column(name, overflow="fold")
    for name in ("hash", "expires", "opens"):
        table.add_column(name, no_wrap=True)
    for key in policy.keys:
        is_open = key.opens(now)
        table.add_row(
            Text(key.caller.key_id),
            Text(key.caller.tenant.name),
            f"{key.sha256[:8]}…",
            "never" if key.expires is None else key.expires.isoformat(timespec="minutes"),
            Text("yes" if is_open else "no, expired", style="" if is_open else "bold red"),
        )
    return table


def _guard(guard: GuardBlock | None) -> str:
    return NONE if guard is None else f"best of {guard.samples}"


def _number(limit: int | None) -> str:
    return NONE if limit is None else f"{limit:,}"


def _yes(is_allowed: bool) -> str:
    return "yes" if is_allowed else "no"
