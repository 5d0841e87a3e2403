"""One line in the log for each attempt, once it is stored, and the metrics of attempts."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from core.logs import output
from core.metrics.kinds import Counter, Histogram
from events.origin import unpack_request_id
from webhooks.destinations.exchange import Exchange, milliseconds
from webhooks.destinations.outcome import Failure
from webhooks.models import DeliveryStatus
from webhooks.states import DeliveryState

log = structlog.get_logger()

# The outcome of an attempt that was recorded after its lease had ended.
LATE = "late"

ATTEMPTS = Counter(
    "triggers_delivery_attempts_total",
    "Attempts that were recorded, by outcome and class of status.",
    ["outcome", "status"],
)
DELIVERIES = Counter(
    "triggers_deliveries_completed_total", "Deliveries that came to their end with an attempt.", ["status"]
)
DURATIONS = Histogram(
    "triggers_delivery_attempt_duration_seconds",
    "How long attempts took, from resolving the name to the end of the response.",
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LATENCIES = Histogram(
    "triggers_delivery_latency_seconds",
    "From accepting an event to the 2xx of an endpoint, for what was delivered by the schedule.",
    bounds=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0),
)
_COMPLETED = (DeliveryStatus.DELIVERED.value, DeliveryStatus.FAILED.value, DeliveryStatus.CANCELLED.value)


@dataclass(slots=True)
class LoggedAttempt:
    """A stored attempt.

    became: the delivery's status after it, or LATE.  request_id, trace: the event's, as `events.origin` stores them.
    latency: seconds from accepting the event to the endpoint's response, if this attempt delivered it by the schedule.
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
    latency: float | None = None


def count_attempts(attempts: Sequence[LoggedAttempt]) -> None:
    """Count attempts whose transaction is committed, all at once."""
    outcomes: dict[tuple[str, int], int] = {}
    became: dict[str, int] = {}
    durations, latencies = [], []
    for attempt in attempts:
        outcome = attempt.error.value if attempt.error is not None else "delivered", (attempt.status or 0) // 100
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        became[attempt.became] = became.get(attempt.became, 0) + 1
        if attempt.error is not Failure.WORKER_LOST:
            durations.append(attempt.duration_ms / 1000)
        if attempt.latency is not None:
            latencies.append(attempt.latency)
    for (name, hundreds), number in outcomes.items():
        ATTEMPTS.inc(name, f"{hundreds}xx" if 1 <= hundreds <= 5 else "none", by=number)
    for status in _COMPLETED:
        if number := became.get(status, 0):
            DELIVERIES.inc(status, by=number)
    DURATIONS.observe_all(durations)
    LATENCIES.observe_all(latencies)


def log_attempts(attempts: Iterable[LoggedAttempt]) -> None:
    """Log attempts whose transaction is committed."""
    with output.together():
        for attempt in attempts:
            _log_attempt(attempt)


def _log_attempt(attempt: LoggedAttempt) -> None:
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
