"""Events as the API shows them."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import Exists, Manager, OuterRef, QuerySet
from django.db.models.functions import Coalesce

from core.json_response import Fragment
from core.query import DEFAULT_LIMIT
from events.models import Event, EventStatus


def render_event(event: Event) -> dict[str, Any]:
    """Return the event with the producer's `data` as it was sent."""
    shown: dict[str, Any] = {
        "id": str(event.id),
        "type": event.type,
        "status": event.status,
        "created_at": event.created_at,
        "processed_at": event.processed_at,
        "dedup_id": event.dedup_id,
        "data": Fragment(event.data),
    }
    if event.last_error:
        shown["error"] = event.last_error
        shown["failed_attempts"] = event.failed_attempts
    return shown


_COLUMNS = {"type": "type", "status": "status", "since": "created_at__gte", "until": "created_at__lt"}
# The same words in the same order as the index webhooks_delivery_undelivered.
_UNDELIVERED = ("pending", "delivering", "held", "failed")


def _filters(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return {prefix + column: parameters[name] for name, column in _COLUMNS.items() if name in parameters}


def _deliveries() -> Manager[Any]:
    """Return the deliveries; not imported, because they stand above events: Django's reverse relation leads there."""
    manager: Manager[Any] = Event._meta.get_field("deliveries").related_model._default_manager
    return manager


def find_events(organization_id: uuid.UUID, parameters: dict[str, Any]) -> QuerySet[Event]:
    """Return the organization's events that the filters `type`, `status`, `since`, `until`, `undelivered` leave.

    With `undelivered` true they are ordered by id, and no more are returned than the page at `cursor`
    with its `limit` and one beyond needs.
    """
    rows = Event.objects.filter(organization_id=organization_id, **_filters(parameters))
    if "undelivered" not in parameters:
        return rows
    if parameters["undelivered"]:
        return Event.objects.filter(id__in=_undelivered_ids(organization_id, parameters))
    missing = Exists(_deliveries().filter(event_id=OuterRef("id"), status__in=_UNDELIVERED))
    return rows.filter(~missing, status=EventStatus.PROCESSED)


def _undelivered_ids(organization_id: uuid.UUID, parameters: dict[str, Any]) -> list[uuid.UUID]:
    """Return the ids of the next events that some subscription hasn't received, or that await their fan-out.

    Walks what is undelivered, and not the history, in which there may be one such event among millions.
    """
    wanted = parameters.get("limit", DEFAULT_LIMIT) + 1
    missing = _deliveries().filter(
        organization_id=organization_id, status__in=_UNDELIVERED, **_filters(parameters, "event__")
    )
    waiting = Event.objects.filter(organization_id=organization_id, **_filters(parameters))
    if "cursor" in parameters:
        before = parameters["cursor"][1]
        missing, waiting = missing.filter(event_id__lt=before), waiting.filter(id__lt=before)
    found = set(missing.order_by("-event_id").values_list("event_id", flat=True).distinct()[:wanted])
    for status in (EventStatus.ACCEPTED, EventStatus.ERROR):
        # Each has a small index of its own.  Ordered by an expression, because the planner might else
        # walk the primary key in the hope of soon meeting enough of them.
        newest = waiting.filter(status=status).order_by(Coalesce("id", "id").desc())
        found.update(newest.values_list("id", flat=True)[:wanted])
    return sorted(found, reverse=True)[:wanted]


def render_deliveries(event: Event) -> list[dict[str, Any]]:
    """Return a line for each of the event's deliveries, the oldest first."""
    fields = ("id", "subscription_id", "status", "attempt_count", "next_attempt_at", "completed_at")
    return [
        {name: str(value) if isinstance(value, uuid.UUID) else value for name, value in row.items()}
        for row in event.deliveries.order_by("created_at", "id").values(*fields)[:1000]
    ]
