"""Events as the API shows them."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from core.http import Fragment
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
        shown["tries"] = event.tries
    return shown


def find_events(organization_id: uuid.UUID, parameters: dict[str, Any]) -> QuerySet[Event]:
    """Return the organisation's events that the filters `type`, `status`, `since`, `until`, `undelivered` leave."""
    rows = Event.objects.filter(organization_id=organization_id)
    if "type" in parameters:
        rows = rows.filter(type=parameters["type"])
    if "status" in parameters:
        rows = rows.filter(status=parameters["status"])
    if "since" in parameters:
        rows = rows.filter(created_at__gte=parameters["since"])
    if "until" in parameters:
        rows = rows.filter(created_at__lt=parameters["until"])
    if "undelivered" in parameters:
        # Not imported: deliveries stand above events.  Django's reverse relation leads there.
        deliveries = Event._meta.get_field("deliveries").related_model
        missing = Exists(
            deliveries._default_manager.filter(event_id=OuterRef("id")).exclude(status__in=["delivered", "cancelled"])
        )
        undelivered = missing | ~Q(status=EventStatus.PROCESSED)
        rows = rows.filter(undelivered if parameters["undelivered"] else ~undelivered)
    return rows


def render_deliveries(event: Event) -> list[dict[str, Any]]:
    """Return a line for each of the event's deliveries, the oldest first."""
    fields = ("id", "subscription_id", "status", "attempt_count", "next_attempt_at", "completed_at")
    return [
        {name: str(value) if isinstance(value, uuid.UUID) else value for name, value in row.items()}
        for row in event.deliveries.order_by("created_at", "id").values(*fields)[:1000]
    ]
