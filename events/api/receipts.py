"""Responses and log lines about events that were sent, for the DRF views and for the front door."""

from __future__ import annotations

import time
import uuid
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from core.db import after_transaction
from core.metrics.kinds import Counter
from core.problems import Problem
from core.query import boolean, parse_parameters
from core.url_prefix import full_path
from events.api import serializers as shapes
from events.ingest import Ingested, IngestStatus
from events.payload import NewEvent

log = structlog.get_logger()

# The words of the log that operators' dashboards search for.
_LOGGED = {
    IngestStatus.ACCEPTED: "persisted",
    IngestStatus.DUPLICATE: "duplicate",
    IngestStatus.CONFLICT: "already_exists",
}

EVENTS = Counter(
    "triggers_events_total",
    "Events that were read, by what became of each. Those of a request that was refused as a whole are not in it.",
    ["outcome"],
)
INVALID = "invalid"  # an item of a batch

_receipt = shapes.EventReceipt()
_unstored_receipt = shapes.EventNotStored()
_batch_receipt = shapes.BatchReceipt()


@contextmanager
def failure_logged(organization_id: uuid.UUID, events: Sequence[NewEvent], started: float) -> Iterator[None]:
    """Log each of the events with the outcome `error` when storing them raises something other than a Problem.

    started: `time.perf_counter()` when the request came.
    """
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        name = type(error).__name__
        # Not for an attempt that is repeated.
        after_transaction(lambda: _log_failure(organization_id, events, name, started), even_if_it_fails=True)
        raise


def _log_failure(organization_id: uuid.UUID, events: Sequence[NewEvent], error: str, started: float) -> None:
    for event in events:
        log.warning(
            "event_ingested",
            outcome="error",
            error=error,
            type=event.type,
            organization_id=str(organization_id),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )


def count_conflicts(events: int) -> None:
    """Count the events of a request that is refused because of its idempotency key or a dedup id."""
    if events:
        EVENTS.inc(IngestStatus.CONFLICT.value, by=events)


def count_events(results: Sequence[Ingested], invalid: int = 0) -> None:
    """Count the events of a request.  invalid: how many of a batch weren't valid."""
    if len(results) == 1:  # nearly always
        EVENTS.inc(results[0].status.value)
    else:
        for status, number in Counts(result.status for result in results).items():
            EVENTS.inc(status.value, by=number)
    if invalid:
        EVENTS.inc(INVALID, by=invalid)


def log_result(organization_id: uuid.UUID, event: NewEvent, result: Ingested, started: float) -> None:
    """Log the result of an event."""
    log.info(
        "event_ingested",
        outcome=_LOGGED[result.status],
        event_id=result.event_id,
        type=event.type,
        organization_id=organization_id,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
    )


@dataclass(frozen=True, slots=True)
class Receipt:
    """The response to a request.  location: of the event, if it was one."""

    status: int
    document: dict[str, Any]
    location: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Location": self.location} if self.location else {}


def receipt(result: Ingested) -> Receipt:
    """Return the response to one event.  Raises Problem 409 for a conflict."""
    location = full_path(f"/api/events/{result.event_id}")
    if result.status is IngestStatus.CONFLICT:
        raise Problem(
            "dedup_conflict",
            "This dedup_id was used for an event with different content.",
            errors=[("/dedup_id", f"stands for the event {result.event_id}, whose content differs")],
            headers={"Location": location},
            extra={"event_id": str(result.event_id)},
        )
    status = 202 if result.status is IngestStatus.ACCEPTED else 200
    return Receipt(status, _receipt.to_representation(result), location)


def batch_receipt(items: Sequence[NewEvent | shapes.FieldErrors], results: Sequence[Ingested]) -> Receipt:
    """Return the response to a batch.

    items: what was sent, in order.  results: what became of the valid ones.
    """
    remaining = iter(results)
    became = [next(remaining) if isinstance(item, NewEvent) else item for item in items]
    accepted = accepted_count(results)
    document = _batch_receipt.to_representation(shapes.BatchResult(accepted, became))
    return Receipt(202 if accepted else 200, document)


def validate_only(request: Any) -> bool:
    """Return whether a request wants its events only to be validated.  request: with `query_params`.

    Raises Problem 400 for any other parameter: one that is misspelled would store the events.
    """
    return bool(parse_parameters(request, {"validate_only": boolean}).get("validate_only", False))


def validated_receipt(event: NewEvent) -> Receipt:
    """Return the response to an event that is valid and was only to be validated."""
    return Receipt(200, _unstored_receipt.to_representation(event))


def validated_batch_receipt(items: Sequence[NewEvent | shapes.FieldErrors]) -> Receipt:
    """Return the response to a batch that was only to be validated."""
    return Receipt(200, _batch_receipt.to_representation(shapes.BatchResult(0, items)))


def accepted_count(results: Sequence[Ingested]) -> int:
    """Return how many of the results are newly accepted events."""
    return sum(result.status is IngestStatus.ACCEPTED for result in results)
