"""Subscription queues: the locks and marks that fan-out, dispatch, and upkeep share.

Whoever moves a delivery into or out of `delivering` holds the lock of its subscription's queue, so that `in_flight`
is exact over all workers.  Locks are taken in the order of the ids, queues before deliveries, so that two workers
never wait for each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from django.conf import settings
from psycopg.rows import class_row

from core.arrays import plain_array
from core.db import server_cursor


@dataclass(frozen=True, slots=True)
class LockedQueue:
    """A queue's state under its lock.  paused_for and failing_for in seconds; failing_for is None when it isn't.

    failures_in_period: recent failures within DISABLE_AFTER_FAILING_FOR.
    """

    subscription_id: uuid.UUID
    accepts_deliveries: bool
    is_deleted: bool
    concurrency_window: int
    consecutive_failures: int
    breaker_trips: int
    paused_for: float
    failing_for: float | None
    failures_in_period: int
    max_in_flight: int
    is_full: bool


# Of a queue `q` and its subscription `s`: whether requests may be made now; whether a new delivery needn't wait for
# anything; and how many more may be in flight.
IS_OPEN = "q.accepts_deliveries AND (q.paused_until IS NULL OR q.paused_until <= clock_timestamp())"
IS_IDLE = f"""{IS_OPEN} AND NOT q.has_backlog
           AND (q.next_due_at IS NULL OR q.next_due_at > clock_timestamp())
           AND s.deliveries_per_second IS NULL"""
ROOM = "least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s)) - q.in_flight"

# SQL, here and below, because these run in pipelines with plans that are kept, and because an UPDATE has to take its
# locks in order.  Everything that is decided under the lock comes with it.
_LOCK_QUEUES = """
SELECT q.subscription_id, q.accepts_deliveries, s.deleted_at IS NOT NULL AS is_deleted, q.concurrency_window,
       q.consecutive_failures, q.breaker_trips,
       coalesce(greatest(0, extract(epoch FROM q.paused_until - clock_timestamp())), 0)::float8 AS paused_for,
       extract(epoch FROM clock_timestamp() - q.failing_since)::float8 AS failing_for,
       (SELECT count(*) FROM unnest(q.recent_failures) AS failed_at
        WHERE failed_at >= clock_timestamp() - make_interval(secs => %(failing_period)s)) AS failures_in_period,
       coalesce(s.max_in_flight, %(max_in_flight)s) AS max_in_flight,
       q.in_flight >= least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s)) AS is_full
FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
WHERE q.subscription_id = ANY(%(ids)s::uuid[]) ORDER BY q.subscription_id FOR UPDATE OF q
"""

# now() is when the transaction began, which is before the time of any delivery that it inserted, however long it
# waited for the lock.  A queue that was closed meanwhile has to hold the new deliveries.  An inbox's is never due.
_MARK_DUE = """
UPDATE webhooks_subscriptionqueue
SET next_due_at = CASE WHEN NOT is_fetched THEN least(next_due_at, now() + make_interval(secs => %(delay)s)) END,
    needs_resync = needs_resync OR NOT accepts_deliveries
WHERE subscription_id IN (
    SELECT subscription_id FROM webhooks_subscriptionqueue WHERE subscription_id = ANY(%(ids)s::uuid[])
    ORDER BY subscription_id FOR UPDATE
)
"""

# Without their state, and without a result to wait for.
_LOCK_ONLY = """
SELECT FROM webhooks_subscriptionqueue WHERE subscription_id = ANY(%s::uuid[]) ORDER BY subscription_id FOR UPDATE
"""

# The opposite: a queue that was opened meanwhile has to release what is held.
_MARK_HELD = """
UPDATE webhooks_subscriptionqueue SET needs_resync = needs_resync OR accepts_deliveries
WHERE subscription_id IN (
    SELECT subscription_id FROM webhooks_subscriptionqueue WHERE subscription_id = ANY(%s::uuid[])
    ORDER BY subscription_id FOR UPDATE
)
"""


def lock_queues(subscription_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, LockedQueue]:
    """Lock the queues until the transaction ends, and return their state."""
    ids = list(subscription_ids)
    if not ids:
        return {}
    with begin_locking(ids) as locking:
        return locked_queues(locking)


def begin_locking(subscription_ids: Iterable[uuid.UUID]) -> psycopg.Cursor[LockedQueue]:
    """Do as `lock_queues`, in a pipeline, without waiting for the locks; `locked_queues` does."""
    locking = server_cursor(class_row(LockedQueue))
    parameters = {
        "ids": plain_array(subscription_ids),
        "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION,
        "failing_period": settings.DISABLE_AFTER_FAILING_FOR,
    }
    return locking.execute(_LOCK_QUEUES, parameters)


def locked_queues(locking: psycopg.Cursor[LockedQueue]) -> dict[uuid.UUID, LockedQueue]:
    """Return the state of the queues that `begin_locking` locks."""
    return {row.subscription_id: row for row in locking.fetchall()}


def lock_only(subscription_ids: Iterable[uuid.UUID], cursor: psycopg.Cursor[object]) -> None:
    """Lock the queues until the transaction ends."""
    cursor.execute(_LOCK_ONLY, (list(subscription_ids),))


def mark_due(
    subscription_ids: Iterable[uuid.UUID], delay: float = 0.0, cursor: psycopg.Cursor[object] | None = None
) -> None:
    """Note that deliveries which this transaction made pending are due in `delay` seconds."""
    _mark(_MARK_DUE, {"ids": list(subscription_ids), "delay": delay}, cursor)


def mark_held(subscription_ids: Iterable[uuid.UUID], cursor: psycopg.Cursor[object] | None = None) -> None:
    """Note that this transaction made held deliveries: a queue that was opened meanwhile has to release them."""
    _mark(_MARK_HELD, (list(subscription_ids),), cursor)


def _mark(
    statement: str, parameters: Mapping[str, object] | Sequence[object], cursor: psycopg.Cursor[object] | None
) -> None:
    if cursor is not None:
        cursor.execute(statement, parameters)
        return
    with server_cursor() as own:
        own.execute(statement, parameters)
