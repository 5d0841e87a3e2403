"""The outcome of one attempt, whatever the kind of destination."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from webhooks.destinations.exchange import Exchange


class Failure(StrEnum):
    """Why an attempt failed, as the API, the admin, and the logs name it."""

    HTTP_STATUS = "http_status"
    REDIRECT = "redirect"
    TIMEOUT = "timeout"
    DNS_FAILED = "dns_failed"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_FAILED = "connection_failed"
    CONNECTION_LOST = "connection_lost"
    TLS_FAILED = "tls_failed"
    INVALID_RESPONSE = "invalid_response"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    PROXY_FAILED = "proxy_failed"
    OAUTH_FAILED = "oauth_failed"
    TRANSFORM_FAILED = "transform_failed"
    PAYLOAD_ERASED = "payload_erased"
    INTERNAL_ERROR = "internal_error"
    WORKER_LOST = "worker_lost"
    # Not of an attempt: why a delivery was cancelled, or is in its inbox again.
    HELD_TOO_LONG = "held_too_long"
    NOT_FETCHED = "not_fetched"
    GIVEN_BACK = "given_back"


# Statuses that mean "slow down".  They halve the concurrency window, as every 5xx does, and a `Retry-After` that comes
# with them is honored.  The circuit breaker counts them like any other failure.
SLOW_DOWN = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an attempt: a status code, or the failure that kept one from arriving.

    detail: a sentence for the tenant.  body: the first bytes of the response, as text.  retry_after: the value of the
    `Retry-After` header, if there was one.  exchange: what was on the wire, if a request was sent.
    """

    status_code: int | None = None
    failure: Failure | None = None
    detail: str = ""
    body: str = ""
    retry_after: str | None = None
    exchange: Exchange | None = None

    @property
    def succeeded(self) -> bool:
        """Return whether the endpoint accepted the webhook, which only a 2xx means."""
        return self.failure is None

    @property
    def error_class(self) -> str:
        """The failure's name, as it is stored; empty for a success."""
        return self.failure.value if self.failure is not None else ""

    @property
    def is_gone(self) -> bool:
        """Return whether the endpoint asked to be unsubscribed (410 Gone, Standard Webhooks)."""
        return self.status_code == 410

    @property
    def is_permanent(self) -> bool:
        """Return whether no request was made because of the subscription's own expression, or because its payload is
        missing.

        That says nothing about the endpoint, and the same event would fail in the same way on every attempt.
        """
        return self.failure in {Failure.TRANSFORM_FAILED, Failure.PAYLOAD_ERASED}

    @property
    def is_overload(self) -> bool:
        """Return whether a failure is about load or reachability, and not about this one event.

        A 4xx that isn't in SLOW_DOWN means that the endpoint refuses this event, which is no reason to send fewer
        requests.
        """
        status = self.status_code or 0
        return self.failure is not Failure.HTTP_STATUS or status in SLOW_DOWN or status >= 500


def classify_response(status_code: int) -> Failure | None:
    """Return the failure that an HTTP status stands for, or None for a 2xx.  Redirects are never followed."""
    if 200 <= status_code <= 299:
        return None
    if 300 <= status_code <= 399:
        return Failure.REDIRECT
    return Failure.HTTP_STATUS
