"""Erases an event's data, and keeps its history."""

from __future__ import annotations

import uuid

from django.db.models.functions import Now

from events.delivery_lookup import delivery_lookup
from events.models import ERASED, Event, EventStatus


def erase(organization_id: uuid.UUID, event_id: uuid.UUID) -> Event | None:
    """Erase an event's data, in the caller's transaction, and return the event; None if there is none.

    Deliveries that wait are cancelled, and a later fan-out creates none.  A request that is on its way can't be called
    back.
    """
    event = Event.objects.select_for_update().filter(organization_id=organization_id, pk=event_id).first()
    if event is None:
        return None
    if not event.is_erased:
        Event.objects.filter(pk=event.pk).update(data=ERASED, cloudevent=None, last_error="")
        Event.objects.filter(pk=event.pk, status__in=[EventStatus.ACCEPTED, EventStatus.ERROR]).update(
            status=EventStatus.PROCESSED, processed_at=Now()
        )
    # Also for an event that was erased before: a response to a request that was on its way may have come since.
    delivery_lookup().erase(event.pk)
    return event
