"""How many accepted events are waiting, and whether more may be accepted."""

from __future__ import annotations

import threading
import time

from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, Min
from django.db.models.functions import Now

from core.db import server_cursor
from events.models import Event, EventStatus

_FRESH_SECONDS = 1.0

# Counting stops at the limit: nobody needs to know how far over it is, and the count stays cheap.  SQL because the
# ORM selects the primary key in such a count, for which PostgreSQL must read the rows beside the index.
_COUNT_ACCEPTED = """
SELECT count(*) FROM (SELECT 1 FROM events_event WHERE status = 'accepted' LIMIT %s) AS waiting
"""


def waiting_events(most: int) -> int:
    """Return how many accepted events are not processed yet; counting stops at `most`."""
    with server_cursor() as cursor:
        row = cursor.execute(_COUNT_ACCEPTED, (most,)).fetchone()
    return int(row[0]) if row else 0


def oldest_waiting_seconds() -> float:
    """Return how long the oldest accepted event has waited, in seconds; 0 when none is waiting."""
    waited = Event.objects.filter(status=EventStatus.ACCEPTED).aggregate(
        longest=ExpressionWrapper(Now() - Min("due_at"), output_field=DurationField())
    )["longest"]
    return 0.0 if waited is None else max(0.0, waited.total_seconds())


class BacklogEstimate:
    """The number of waiting events, counted at most once a second, plus what this process has accepted since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted_at = float("-inf")
        self._length = 0

    def has_room(self, events: int) -> bool:
        """Return whether `events` more may be accepted under MAX_QUEUE_LENGTH, and add them if so."""
        limit: int = settings.MAX_QUEUE_LENGTH
        with self._lock:
            stale = time.monotonic() - self._counted_at > _FRESH_SECONDS
            if stale:
                # Set before the count is made: meanwhile other threads go on with the old figure.
                self._counted_at = time.monotonic()
        if stale:
            length = waiting_events(limit + 1)
            with self._lock:
                self._length = length
        with self._lock:
            if self._length >= limit:
                return False
            self._length += events
            return True

    def reset(self) -> None:
        """Forget the figure, so that the next call counts again."""
        with self._lock:
            self._counted_at = float("-inf")
            self._length = 0


estimate = BacklogEstimate()


def has_room(events: int) -> bool:
    """Return whether `events` more may be accepted under MAX_QUEUE_LENGTH, by this process's estimate."""
    return estimate.has_room(events)
