"""Erasing what an event says, while what became of it stays."""

from __future__ import annotations

import uuid

from django.db.models.functions import Now

from events.delivery_lookup import delivery_lookup
from events.models import ERASED, Event, EventStatus


def erase(organization_id: uuid.UUID, event_id: uuid.UUID) -> Event | None:
    """Erase an event's data, in the caller's transaction, and return the event; None if there is none.

    What waits to be delivered is cancelled, and a fan-out that is still to come makes nothing.  A request that is on
    its way can't be called back.
    """
    event = Event.objects.select_for_update().filter(organization_id=organization_id, pk=event_id).first()
    if event is None:
        return None
    if not event.is_erased:
        Event.objects.filter(pk=event.pk).update(data=ERASED, cloudevent=None, last_error="")
        Event.objects.filter(pk=event.pk, status__in=[EventStatus.ACCEPTED, EventStatus.ERROR]).update(
            status=EventStatus.PROCESSED, processed_at=Now()
        )
    # Of an erased event, too: a request that was on its way then may have been responded to since.
    delivery_lookup().erase(event.pk)
    return event
