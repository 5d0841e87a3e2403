"""Repairing events whose fan-out failed for good."""

from __future__ import annotations

from django.db.models import QuerySet
from django.db.models.functions import Now

from core.wakeups import EVENTS, wake
from events.models import Event, EventStatus


def reprocess(events: QuerySet[Event]) -> int:
    """Give those of `events` that are in error a new fan-out with a fresh set of attempts; return how many."""
    changed = events.filter(status=EventStatus.ERROR).update(
        status=EventStatus.ACCEPTED, failed_attempts=0, due_at=Now()
    )
    if changed:
        wake(EVENTS)
    return changed
