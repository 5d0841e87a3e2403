"""Deleting what is old: settled events with their deliveries and attempts, past the organisation's days."""

from __future__ import annotations

import time
from dataclasses import dataclass

from core.db import in_transaction, server_cursor
from events import sql as events_sql
from webhooks import sql

BATCH = 500


@dataclass
class Purged:
    """How many rows went."""

    events: int = 0
    deliveries: int = 0
    attempts: int = 0
    dedup_keys: int = 0


def purge_expired(seconds: float | None = None) -> Purged:
    """Delete expired rows in small transactions until none is left, or for `seconds`; return how many.

    An event goes when it is older than its organisation's `retention_days`, is processed, and all its
    deliveries are settled (delivered, failed or cancelled).  Nothing unsettled is ever deleted.
    """
    ends = time.monotonic() + seconds if seconds is not None else None
    total = Purged()
    while True:
        events, deliveries, attempts = in_transaction(_purge_events)
        keys = in_transaction(_purge_dedup_keys)
        total.events += events
        total.deliveries += deliveries
        total.attempts += attempts
        total.dedup_keys += keys
        if events < BATCH and keys < BATCH:
            return total
        if ends is not None and time.monotonic() >= ends:
            return total


def _purge_events() -> tuple[int, int, int]:
    with server_cursor() as cursor:
        cursor.execute(sql.FIND_EXPIRED_EVENTS, (BATCH, BATCH))
        ids = [row[0] for row in cursor.fetchall()]
        # Locked and looked at again: a delivery may have been replayed since.
        cursor.execute(sql.LOCK_DELIVERIES_OF_EVENTS, (ids,))
        unsettled = {event_id for event_id, status in cursor.fetchall() if status in sql.UNSETTLED}
        ids = [event_id for event_id in ids if event_id not in unsettled]
        if not ids:
            return 0, 0, 0
        cursor.execute(sql.DELETE_ATTEMPTS, (ids,))
        attempts = cursor.rowcount
        cursor.execute(sql.DELETE_DELIVERIES, (ids,))
        deliveries = cursor.rowcount
        cursor.execute("DELETE FROM events_event WHERE id = ANY(%s::uuid[])", (ids,))
        return cursor.rowcount, deliveries, attempts


def _purge_dedup_keys() -> int:
    with server_cursor() as cursor:
        cursor.execute(events_sql.DELETE_EXPIRED_DEDUP_KEYS, (BATCH,))
        return cursor.rowcount
