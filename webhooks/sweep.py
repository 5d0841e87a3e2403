"""The sweep: what every worker looks after between jobs, so that a lost wake-up costs seconds.

One worker at a time does it; a PostgreSQL advisory lock decides which.  None of it needs Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from core.db import server_cursor
from events.backlog import waiting_events
from webhooks import bulk, leases, sql
from webhooks.models import Lane
from webhooks.retention import purge_expired
from webhooks.subscriptions import resync

log = structlog.get_logger()

SWEEP_LOCK = 71_002
PURGE_EVERY_SECONDS = 60.0
FORGOTTEN_EVERY_SECONDS = 30.0
PURGE_SLICE_SECONDS = 5.0


@contextmanager
def _only_one() -> Iterator[bool]:
    """Hold the sweep's lock if it is free; it ends with the session, so no crash keeps it."""
    with server_cursor() as cursor:
        row = cursor.execute("SELECT pg_try_advisory_lock(%s)", (SWEEP_LOCK,)).fetchone()
    held = bool(row and row[0])
    try:
        yield held
    finally:
        if held:
            with server_cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", (SWEEP_LOCK,))


class Sweep:
    """Remembers when its rarer parts ran last.  events_waiting: called when accepted events wait."""

    def __init__(self, events_waiting: Callable[[], None]) -> None:
        self._events_waiting = events_waiting
        self._purged_at = time.monotonic()
        self._looked_for_forgotten_at = float("-inf")

    def run(self) -> None:
        """Do one round.  Raises what the database raises; the next round starts afresh."""
        with _only_one() as mine:
            if mine:
                self._tidy()
        # Not under the lock: processing may take a while, and any worker can help.
        if waiting_events(1):
            self._events_waiting()

    def _tidy(self) -> None:
        while leases.expire() >= 1000:
            pass
        for subscription_id in Lane.objects.filter(needs_resync=True).values_list("pk", flat=True)[:100]:
            resync(subscription_id)
        bulk.advance_recoveries()
        now = time.monotonic()
        if now - self._looked_for_forgotten_at >= FORGOTTEN_EVERY_SECONDS:
            self._looked_for_forgotten_at = now
            remember_forgotten_lanes()
        if now - self._purged_at >= PURGE_EVERY_SECONDS:
            self._purged_at = now
            purged = purge_expired(PURGE_SLICE_SECONDS)
            if purged.events or purged.dedup_keys:
                log.info("purged", events=purged.events, deliveries=purged.deliveries, dedup_keys=purged.dedup_keys)


def remember_forgotten_lanes() -> int:
    """Mark lanes as due that have due deliveries but don't say so; return how many.

    The code never leaves one; a row that was changed by hand might.
    """
    with server_cursor() as cursor:
        forgotten = [row[0] for row in cursor.execute(sql.FIND_FORGOTTEN_LANES).fetchall()]
        if forgotten:
            cursor.execute(sql.ANNOUNCE_DUE, {"ids": forgotten, "delay": 0})
            log.warning("lanes_repaired", lanes=len(forgotten))
    return len(forgotten)
