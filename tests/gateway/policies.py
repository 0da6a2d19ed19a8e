"""Models and policy files that the gateway's tests share."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rheostat.control import ControlFormat
from rheostat.gateway.dials import DialLimits
from rheostat.gateway.keys import hash_key
from rheostat.gateway.policy import Caller, Policy, Tenant, read_policy
from rheostat.gateway.policy_source import SourceStatus, known_caller
from rheostat.plugins import attribute

KEY = "rheo-" + "k" * 43
OTHER_KEY = "rheo-" + "o" * 43
EXPIRED_KEY = "rheo-" + "x" * 43
UNKNOWN_KEY = "rheo-" + "u" * 43

FORMAT = ControlFormat((attribute("safety"), attribute("helpfulness")))
MODELS: Mapping[str, ControlFormat] = {"pocket": FORMAT}

POLICY = f"""\
version: 1
everyone:
  floors: {{safety: 0.5}}
tenants:
  shop:
    requests_per_minute: 60
    keys:
      - {{id: shop-1, sha256: {hash_key(KEY)}}}
      - {{id: shop-0, sha256: {hash_key(EXPIRED_KEY)}, expires: 2020-01-01T00:00:00Z}}
  lab:
    floors: {{safety: 0.75}}
    keys:
      - {{id: lab-1, sha256: {hash_key(OTHER_KEY)}}}
"""


def policy(text: str = POLICY, models: Mapping[str, ControlFormat] = MODELS) -> Policy:
    return read_policy(text, models)


def policy_of(own: str, models: Mapping[str, ControlFormat]) -> Policy:
    """Of one tenant, shop, with KEY and what `own` says of it."""
    keys = f"keys: [{{id: shop-1, sha256: {hash_key(KEY)}}}]"
    return policy(f"version: 1\ntenants: {{shop: {{{own}, {keys}}}}}", models)


@dataclass
class FixedSource:
    """The callers of a policy that no file holds; a test may replace it."""

    policy: Policy
    audit: None = None

    def caller(self, key: str | None) -> Caller:
        return known_caller(None if key is None else self.policy.caller(key, datetime.now(UTC)))

    def status(self) -> SourceStatus:
        return SourceStatus(None, self.policy.digest)

    def reload_soon(self) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def tenant(
    name: str = "shop",
    *,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    requests_at_once: int | None = None,
) -> Tenant:
    return Tenant(
        name=name,
        limits=DialLimits(),
        dials=MODELS,
        allows_system_turn=True,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        requests_at_once=requests_at_once,
        max_tokens=None,
        guard=None,
        allows_scores=False,
        audits_texts=False,
    )


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
