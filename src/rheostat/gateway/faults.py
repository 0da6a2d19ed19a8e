"""The errors of the package as the gateway's refusals: the one place where they are matched with a status."""

from rheostat.errors import DialError, EndpointError, InputError, ModelError, PromptTooLong, RheostatError
from rheostat.gateway.refusals import Refusal

_SLOW = (408, 504)
_BUSY = (429, 503)


def refusal_of(error: RheostatError) -> Refusal:
    """What a client is told.

    Of what it sent, all; of a model or a server that fails, only that it does: addresses and paths are for the log.
    """
    if isinstance(error, PromptTooLong):
        return Refusal(400, "context_length_exceeded", error.message, error.hint, param="messages")
    if isinstance(error, DialError):
        return Refusal(400, "invalid_dial", error.message, error.hint)
    if isinstance(error, InputError):
        return Refusal(400, "invalid_conversation", error.message, error.hint, param="messages")
    if isinstance(error, EndpointError):
        if error.status in _SLOW:
            return Refusal(504, "upstream_timeout", "the model's server took too long", "try again")
        if error.status in _BUSY:
            return Refusal(
                503, "upstream_busy", "the model's server is busy", "try again soon", retry_after_s=2
            )
        return Refusal(502, "upstream_failed", "the model's server failed", "try again", retry_after_s=2)
    if isinstance(error, ModelError):
        return Refusal(503, "model_unavailable", "the model cannot answer now", "try again", retry_after_s=5)
    return Refusal(500, "internal_error", "the gateway failed", "tell its operator the request's id")
