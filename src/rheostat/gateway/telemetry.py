"""The metrics for Prometheus, in a registry of their own for each app.

Labels only take values that the operator chose or the code knows (tenants, models, dials, routes, statuses): no caller
can add one.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from rheostat.gateway.dials import DialReport

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
NOBODY = ""
"""The tenant of a request whose caller is not known."""


class Telemetry:
    """What has happened, counted."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "rheostat_requests",
            "Requests by how they ended",
            ("route", "status", "tenant"),
            registry=registry,
        )
        self._seconds = Histogram(
            "rheostat_request_seconds",
            "From a request's coming to its end",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "rheostat_first_token_seconds",
            "From a request's coming to the first text of its answer",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = Histogram(
            "rheostat_queue_seconds", "Waited for a place in work", buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter(
            "rheostat_tokens", "Tokens by kind", ("kind", "model", "tenant"), registry=registry
        )
        self._dials = Counter(
            "rheostat_dials", "Dials granted otherwise than requested", ("dial", "change"), registry=registry
        )
        self._guard = Counter(
            "rheostat_guard", "Guarded answers by what became of them", ("outcome",), registry=registry
        )
        self._known: dict[tuple[str, int, str], Counter] = {}
        self._seconds_of: dict[str, Histogram] = {}

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"rheostat_{name}", what, registry=self.registry).set_function(value)

    def ended(self, route: str, status: int, tenant: str, seconds: float) -> None:
        """A request has ended; a client that went is status 499."""
        key = (route, status, tenant)
        if (counter := self._known.get(key)) is None:
            counter = self._known[key] = self._requests.labels(route, str(status), tenant)
        counter.inc()
        if (histogram := self._seconds_of.get(route)) is None:
            histogram = self._seconds_of[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def queued(self, seconds: float) -> None:
        """A request got its place in work."""
        self._queued.observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """The first text of an answer came."""
        self._first_token.labels(model).observe(seconds)

    def tokens(self, model: str, tenant: str, prompt: int, completion: int) -> None:
        """Tokens of an answered request."""
        self._tokens.labels("prompt", model, tenant).inc(prompt)
        self._tokens.labels("completion", model, tenant).inc(completion)

    def granted(self, dials: Mapping[str, DialReport]) -> None:
        """Dials of a request were granted; those at their default, or as requested, are not counted."""
        for name, report in dials.items():
            if report.requested is not None and report.granted != report.requested:
                change = "raised" if report.granted > report.requested else "lowered"
                reason = "policy" if report.is_by_policy else "level"
                self._dials.labels(name, f"{change} by {reason}").inc()

    def guarded(self, outcome: str) -> None:
        """A guarded answer was given, replaced by the refusal, or failed."""
        self._guard.labels(outcome).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
