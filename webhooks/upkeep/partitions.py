"""The partitions of events, deliveries, and attempts: made before they are needed, dropped when everything in them is
old.

The functions in the database do it, with the rights of the role that owns the tables (webhooks/migrations).  They wait
only a moment for locks, because everybody else waits behind them; the next round of the sweep repeats that.  SQL calls
them, because the ORM knows no functions that return rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import structlog
from django.conf import settings
from django.db import OperationalError, transaction
from psycopg.rows import class_row, scalar_row

from core.db import server_cursor

log = structlog.get_logger()

# For how many coming periods partitions are made.  Rows without a partition go to the default partition.
AHEAD = 2
# A partition isn't dropped while more events than this have to stay: they are moved under a lock.
MOST_KEPT = 10_000

_MAKE = "SELECT triggers_make_partitions(%s, %s)"
_DROP = "SELECT suffix, events, kept FROM triggers_drop_partition(%s) WHERE suffix IS NOT NULL"


@dataclass(frozen=True, slots=True)
class _Dropped:
    """A row of _DROP.  events: about how many the period had; kept: those that stay, because something isn't
    settled."""

    suffix: str
    events: int
    kept: int


def make_ahead() -> None:
    """Make the partitions of the periods to come."""
    with server_cursor(scalar_row) as cursor:
        periods = cursor.execute(_MAKE, (settings.PARTITION_DAYS, AHEAD)).fetchone()
    if periods:
        log.info("partitions_made", periods=periods)


def drop_expired() -> int:
    """Drop the partitions that are older than every organization's retention days; return how many periods."""
    periods = 0
    while True:
        with transaction.atomic(), server_cursor(class_row(_Dropped)) as cursor:
            dropped = cursor.execute(_DROP, (MOST_KEPT,)).fetchone()
        if dropped is None:
            return periods
        periods += 1
        log.info("partition_dropped", period=dropped.suffix, events=dropped.events, kept=dropped.kept)


def look_after() -> None:
    """Make what is missing and drop what is old, unless somebody holds a lock for long."""
    for work in (make_ahead, drop_expired):
        try:
            work()
        except (OperationalError, psycopg.errors.LockNotAvailable) as error:
            cause = error if isinstance(error, psycopg.Error) else error.__cause__
            if not isinstance(cause, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                raise
            log.info("partitions_busy", error=type(cause).__name__)
