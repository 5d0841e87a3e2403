"""One line in the log for each attempt, once it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from events.origin import unpack_request_id
from webhooks.destinations.exchange import milliseconds
from webhooks.dispatch.delivery import AttemptResult
from webhooks.models import DeliveryStatus

log = structlog.get_logger()

# The outcome of an attempt whose lease had ended before it was recorded.
LATE = "late"
# What people call a delivery that goes back to its queue after an attempt.
RETRYING = "retrying"


@dataclass(frozen=True, slots=True)
class RecordedAttempt:
    """A stored attempt.  became: the delivery's status after it, or LATE."""

    result: AttemptResult
    number: int
    became: str


def log_attempts(attempts: Sequence[RecordedAttempt]) -> None:
    """Log attempts of which the transaction is committed."""
    for attempt in attempts:
        delivery, outcome = attempt.result.delivery, attempt.result.outcome
        exchange = outcome.exchange
        line: dict[str, Any] = {
            "outcome": RETRYING if attempt.became == DeliveryStatus.PENDING else attempt.became,
            "delivery_id": delivery.delivery_id,
            "attempt": attempt.number,
            "event_id": delivery.event_id,
            "subscription_id": delivery.subscription_id,
            "organization_id": delivery.organization_id,
            "status": outcome.status_code,
            "error": outcome.failure,
            "duration_ms": round(attempt.result.duration_ms, 2),
        }
        if exchange is not None:
            line |= {
                "dns_ms": milliseconds(exchange.dns_us),
                "connect_ms": milliseconds(exchange.connect_us),
                "tls_ms": milliseconds(exchange.tls_us),
                "first_byte_ms": milliseconds(exchange.first_byte_us),
                "remote_address": exchange.remote_address,
                "reused": exchange.is_reused,
            }
        if delivery.event_request_id is not None:
            line["request_id"] = unpack_request_id(delivery.event_request_id)
        if delivery.event_trace is not None:
            line["trace_id"] = delivery.event_trace[3:35]
        log.info("delivery_attempt", **line)
