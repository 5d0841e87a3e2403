"""What the API says, and logs, of events that were sent: the same from the DRF views and from the front door."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from core.problems import Problem
from core.url_prefix import full_path
from events.api import serializers as shapes
from events.ingest import Ingested, IngestStatus
from events.payload import NewEvent

log = structlog.get_logger()

# The words of the log that operators' dashboards look for.
_LOGGED = {
    IngestStatus.ACCEPTED: "persisted",
    IngestStatus.DUPLICATE: "duplicate",
    IngestStatus.CONFLICT: "already_exists",
}

_receipt = shapes.EventReceipt()
_item_receipt = shapes.BatchItemReceipt()


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
        for event in events:
            log.warning(
                "event_ingested",
                outcome="error",
                error=type(error).__name__,
                type=event.type,
                organization_id=str(organization_id),
                duration_ms=round((time.perf_counter() - started) * 1000, 3),
            )
        raise


def log_result(organization_id: uuid.UUID, event: NewEvent, result: Ingested, started: float) -> None:
    """Log what became of an event."""
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
    """How a request is answered.  location: of the event, if it was one."""

    status: int
    document: dict[str, Any]
    location: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Location": self.location} if self.location else {}


def receipt(result: Ingested) -> Receipt:
    """Return what answers one event.  Raises Problem 409 for a conflict."""
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
    """Return what answers a batch.

    items: what was sent, in order.  results: what became of the valid ones.
    """
    remaining = iter(results)
    became = [next(remaining) if isinstance(item, NewEvent) else item for item in items]
    accepted = accepted_count(results)
    document = {"accepted": accepted, "data": [_item_receipt.to_representation(one) for one in became]}
    return Receipt(202 if accepted else 200, document)


def accepted_count(results: Sequence[Ingested]) -> int:
    """Return how many of the results are newly accepted events."""
    return sum(result.status is IngestStatus.ACCEPTED for result in results)
