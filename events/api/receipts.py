"""Responses about events that were sent, for the DRF views and for the front door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.problems import Problem
from core.query import boolean, parse_parameters
from core.url_prefix import full_path
from events.api import serializers as shapes
from events.ingest import Ingested, IngestStatus
from events.payload import NewEvent

_receipt = shapes.EventReceipt()
_unstored_receipt = shapes.EventNotStored()
_batch_receipt = shapes.BatchReceipt()


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
