"""What the engine is asked for what a request asked: everything in it allowed by the tenant's policy. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from rheostat.gateway.asked import Asked
from rheostat.gateway.backend import Ask, ServedModel
from rheostat.gateway.dials import Grant, grant
from rheostat.gateway.policy import Tenant
from rheostat.gateway.refusals import Refusal

LONGEST_ANSWER = 1024
"""Tokens of an answer whose request does not say how long it may be."""

_BYTES_A_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Permitted:
    """An ask and how its dials were granted."""

    ask: Ask
    grant: Grant


def permitted(
    asked: Asked, tenant: Tenant, models: Mapping[str, ServedModel], *, has_rewards: bool
) -> Permitted:
    """The ask of a request. Raises `Refusal`: 400, 403 for what the policy forbids, 404 for a model not allowed."""
    model = models[_model_name(asked.model, tenant, models)]
    granted = grant(asked.dials, tenant.limits, tenant.dials[model.name])
    if asked.has_system_turn and not tenant.allows_system_turn:
        raise Refusal(
            403,
            "system_turn_refused",
            "got a system turn, allowed is none",
            "leave it out",
            param="messages.0.role",
        )
    if asked.wants_scores:
        _check_scores(asked, tenant, has_rewards)
    if tenant.guard is not None and asked.samples > 1:
        raise Refusal(
            400,
            "invalid_value",
            "n: got more than 1, allowed is 1: answers are guarded",
            "leave it out",
            param="n",
        )
    wanted = LONGEST_ANSWER if asked.max_tokens is None else asked.max_tokens
    bounds = (tenant.max_tokens, None if model.context is None else model.context - 1)
    ask = Ask(
        model=model.name,
        messages=asked.messages,
        control=granted.control,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=min([wanted, *(bound for bound in bounds if bound is not None)]),
        seed=asked.seed,
        stop=asked.stop,
        samples=asked.samples,
        stream=asked.streams,
    )
    return Permitted(ask, granted)


def prompt_estimate(ask: Ask) -> int:
    """About how many tokens a conversation has, before anyone has counted them."""
    return sum(len(turn.content.encode()) for turn in ask.messages) // _BYTES_A_TOKEN + 1


def _model_name(name: str | None, tenant: Tenant, models: Mapping[str, ServedModel]) -> str:
    found = name or next((each for each in models if each in tenant.dials), None)
    if found is None or found not in tenant.dials or found not in models:
        raise no_such_model(found)
    return found


def no_such_model(name: str | None) -> Refusal:
    """In the same words for a model that there is not, and for one that the caller may not ask."""
    said = "no model" if name is None else f"no model {name[:80]!r}"
    return Refusal(
        404,
        "model_not_found",
        f"there is {said} here for this key",
        "GET /v1/models lists the models",
        param="model",
    )


def _check_scores(asked: Asked, tenant: Tenant, has_rewards: bool) -> None:
    if not tenant.allows_scores:
        raise Refusal(
            403, "scores_refused", "score: got true, allowed is false", "leave it out", param="score"
        )
    if not has_rewards:
        raise Refusal(
            400,
            "scores_unavailable",
            "score: got true, and there are no rewards here",
            "leave it out",
            param="score",
        )
    if asked.samples > 1:
        raise Refusal(400, "invalid_value", "score: got true with n above 1", "ask for one answer", param="n")
