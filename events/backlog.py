"""How many accepted events wait, and whether one more may be taken."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from django.conf import settings

from core.db import server_cursor
from events import sql

_FRESH_SECONDS = 1.0


@dataclass
class _Sample:
    taken_at: float = float("-inf")
    length: int = 0


_sample = _Sample()
_lock = threading.Lock()


def waiting_events(most: int) -> int:
    """Return how many accepted events are not processed yet, counting to `most` at the furthest."""
    with server_cursor() as cursor:
        row = cursor.execute(sql.COUNT_ACCEPTED, (most,)).fetchone()
    return int(row[0]) if row else 0


def oldest_waiting_seconds() -> float:
    """Return how long the oldest accepted event has waited, in seconds; 0 when none does."""
    with server_cursor() as cursor:
        row = cursor.execute(sql.OLDEST_ACCEPTED).fetchone()
    return max(0.0, float(row[0])) if row and row[0] is not None else 0.0


def has_room(events: int) -> bool:
    """Tell whether `events` more may be accepted under MAX_QUEUE_LENGTH.

    The count is at most a second old; what this process has let in since is added.
    """
    bound: int = settings.MAX_QUEUE_LENGTH
    with _lock:
        if time.monotonic() - _sample.taken_at > _FRESH_SECONDS:
            # Claim the refresh before it is done: other threads go on with the old figure meanwhile.
            _sample.taken_at = time.monotonic()
            refresh = True
        else:
            refresh = False
    if refresh:
        length = waiting_events(bound + 1)
        with _lock:
            _sample.length = length
    with _lock:
        if _sample.length >= bound:
            return False
        _sample.length += events
        return True


def forget() -> None:
    """Drop the kept figure, so that the next question counts afresh."""
    with _lock:
        _sample.taken_at = float("-inf")
        _sample.length = 0
