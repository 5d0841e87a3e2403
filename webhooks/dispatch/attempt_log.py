"""One line in the log for each attempt, once it is stored."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import structlog

from events.origin import unpack_request_id
from webhooks.destinations.exchange import Exchange, milliseconds
from webhooks.destinations.outcome import Failure
from webhooks.models import DeliveryStatus
from webhooks.states import DeliveryState

log = structlog.get_logger()

# The outcome of an attempt whose lease had ended before it was recorded.
LATE = "late"


@dataclass(slots=True)
class LoggedAttempt:
    """A stored attempt.

    became: the delivery's status after it, or LATE.  request_id, trace: the event's, as `events.origin` stores them.
    """

    became: str
    delivery_id: uuid.UUID
    number: int
    event_id: uuid.UUID
    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    request_id: bytes | None
    trace: str | None
    error: Failure | None = None
    status: int | None = None
    duration_ms: float = 0.0
    exchange: Exchange | None = None


def log_attempt(attempt: LoggedAttempt) -> None:
    """Log an attempt of which the transaction is committed."""
    line: dict[str, Any] = {
        "outcome": DeliveryState.RETRYING.value if attempt.became == DeliveryStatus.PENDING else attempt.became,
        "delivery_id": attempt.delivery_id,
        "attempt": attempt.number,
        "event_id": attempt.event_id,
        "subscription_id": attempt.subscription_id,
        "organization_id": attempt.organization_id,
        "status": attempt.status,
        "error": attempt.error,
        "duration_ms": round(attempt.duration_ms, 2),
    }
    exchange = attempt.exchange
    if exchange is not None:
        line["dns_ms"] = milliseconds(exchange.dns_us)
        line["connect_ms"] = milliseconds(exchange.connect_us)
        line["tls_ms"] = milliseconds(exchange.tls_us)
        line["first_byte_ms"] = milliseconds(exchange.first_byte_us)
        line["remote_address"] = exchange.remote_address
        line["reused"] = exchange.is_reused
    if attempt.request_id is not None:
        line["request_id"] = unpack_request_id(attempt.request_id)
    if attempt.trace is not None:
        line["trace_id"] = attempt.trace[3:35]
    log.info("delivery_attempt", **line)
