"""Deletes settled events, with their deliveries and attempts, that are older than their organization's retention days.

Most are dropped with their partition (`partitions`), which costs next to nothing.  This module deletes the others row
by row: those of organizations that keep events for fewer days than others, and those in the default partition.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections import deque
from dataclasses import dataclass

from psycopg.rows import class_row, scalar_row

from core.db import in_transaction, server_cursor
from webhooks.models import DeliveryStatus

BATCH = 500
# An event may have a delivery for each of a thousand subscriptions: a transaction deletes about this many.
PURGED_AT_A_TIME = 5000
# Finished replays and recoveries that belong to no organization.
RUNS_KEPT_DAYS = 30


# Cheaper than the ORM's DELETE of a sliced query: by the place of the locked rows, because the planner might read the
# whole table for a join.
_DELETE_EXPIRED_DEDUP_KEYS = """
DELETE FROM events_dedupkey WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM events_dedupkey
    WHERE expires_at <= statement_timestamp() ORDER BY expires_at LIMIT %s
    FOR UPDATE SKIP LOCKED
))
"""

_DELETE_EXPIRED_IDEMPOTENCY_KEYS = _DELETE_EXPIRED_DEDUP_KEYS.replace("events_dedupkey", "orgs_idempotencykey")

# SQL, because of the LATERAL join.  Organizations that have anything old enough, and their days, found with one look at
# the list index for each.  The organizations that keep events longest wait some days more, so that partitions can be
# dropped instead.
_FIND_ORGANIZATIONS_WITH_EXPIRED = """
SELECT o.id, o.days FROM (
    SELECT id, CASE WHEN retention_days < max(retention_days) OVER () THEN retention_days
                    ELSE retention_days + %s END AS days
    FROM orgs_organization
) AS o
CROSS JOIN LATERAL (
    SELECT 1 FROM events_event e WHERE e.organization_id = o.id AND e.status IN ('processed', 'error')
      AND e.created_at < statement_timestamp() - make_interval(days => o.days)
    ORDER BY e.created_at, e.id LIMIT 1
) AS expired
ORDER BY o.id
"""

# SQL, because a place is two columns that are compared together.  The next events of one organization that are old
# enough, settled or not, after a place: a pass looks only once at what has to stay, however much that is.
_FIND_EXPIRED_EVENTS = """
SELECT e.id, e.created_at,
       e.status = 'processed' AND NOT EXISTS (
           SELECT 1 FROM webhooks_delivery d WHERE d.event_id = e.id AND d.status IN ('pending', 'held')
       ) AND NOT EXISTS (
           SELECT 1 FROM webhooks_delivery d WHERE d.event_id = e.id AND d.status = 'delivering'
       ) AS is_settled,
       (SELECT count(*) FROM webhooks_delivery d
        WHERE d.event_id = e.id AND d.status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')) AS deliveries
FROM events_event e
WHERE e.organization_id = %(organization)s AND e.status IN ('processed', 'error')
  AND e.created_at < statement_timestamp() - make_interval(days => %(days)s)
  AND (e.created_at, e.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
ORDER BY e.created_at, e.id LIMIT %(rows)s
"""


@dataclass(frozen=True, slots=True)
class _ExpiredEvent:
    """A row of _FIND_EXPIRED_EVENTS."""

    id: uuid.UUID
    created_at: datetime.datetime
    is_settled: bool
    deliveries: int


# SQL, here and below, because the ORM would write up to thousands of ids into the text of each statement.

# An event that is locked is in use, and stays until the next pass.
_LOCK_EVENTS = """
SELECT id FROM events_event WHERE id = ANY(%s::uuid[]) AND status = 'processed' ORDER BY id FOR UPDATE SKIP LOCKED
"""
# By two indexes in one statement: a delivery is always in one of them.
_FIND_DELIVERIES = """
SELECT id FROM webhooks_delivery
WHERE event_id = ANY(%(events)s::uuid[]) AND status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')
UNION ALL SELECT id FROM webhooks_delivery WHERE event_id = ANY(%(events)s::uuid[]) AND status = 'delivering'
"""
# In the order of their ids, as everywhere.
_LOCK_DELIVERIES = (
    "SELECT id, event_id, status FROM webhooks_delivery WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE"
)
# And because the ORM would first read what it deletes.
_DELETE_ATTEMPTS = "DELETE FROM webhooks_deliveryattempt WHERE delivery_id = ANY(%s::uuid[])"
_DELETE_DELIVERIES = "DELETE FROM webhooks_delivery WHERE id = ANY(%s::uuid[])"
# SQL, because the ORM's DELETE has no LIMIT.  Runs are kept as long as the events of their organization; without one,
# for RUNS_KEPT_DAYS.
_DELETE_FINISHED_RUNS = """
DELETE FROM webhooks_bulkrun WHERE id IN (
    SELECT r.id FROM webhooks_bulkrun r LEFT JOIN orgs_organization o ON o.id = r.organization_id
    WHERE r.state <> 'running'
      AND r.finished_at < clock_timestamp() - make_interval(days => coalesce(o.retention_days, %(days)s))
    LIMIT %(rows)s FOR UPDATE OF r SKIP LOCKED
)
"""

# Deleted subscriptions stay while deliveries refer to them, and for the organization's days.  In the order of an index
# and with a LIMIT, because the planner would otherwise join with all deliveries.
_FIND_FORGETTABLE_SUBSCRIPTIONS = """
SELECT s.id FROM webhooks_subscription s JOIN orgs_organization o ON o.id = s.organization_id
WHERE s.deleted_at < clock_timestamp() - make_interval(days => o.retention_days)
  AND (SELECT id FROM webhooks_delivery d
       WHERE d.subscription_id = s.id AND d.status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')
       ORDER BY created_at, id LIMIT 1) IS NULL
  AND (SELECT in_flight FROM webhooks_subscriptionqueue q WHERE q.subscription_id = s.id) = 0
LIMIT %s FOR UPDATE OF s SKIP LOCKED
"""
# In this order, because of the foreign keys.
_FORGET_SUBSCRIPTIONS = (
    "DELETE FROM webhooks_bulkrun WHERE subscription_id = ANY(%s::uuid[])",
    "DELETE FROM webhooks_subscriptionqueue WHERE subscription_id = ANY(%s::uuid[])",
    "DELETE FROM webhooks_subscription WHERE id = ANY(%s::uuid[])",
)

_UNSETTLED = (DeliveryStatus.PENDING, DeliveryStatus.DELIVERING, DeliveryStatus.HELD)

_Place = tuple[datetime.datetime | str, uuid.UUID]
_START: _Place = ("-infinity", uuid.UUID(int=0))


@dataclass
class Purged:
    """How many rows were deleted.  is_complete: a whole pass was made, and nothing expired is left."""

    events: int = 0
    deliveries: int = 0
    attempts: int = 0
    dedup_keys: int = 0
    bulk_runs: int = 0
    subscriptions: int = 0
    is_complete: bool = False


@dataclass
class _Pass:
    """A pass over all that is old enough: the organizations that are left, in turn, and the place in each."""

    places: deque[tuple[uuid.UUID, int, _Place]]


class Purge:
    """Deletes expired rows in small transactions, and remembers its place from one call to the next.

    An event is deleted when it is older than its organization's `retention_days`, is processed, and all its deliveries
    are settled (delivered, failed, or cancelled).  Nothing unsettled is ever deleted: an event in `error` was never
    fanned out and stays until somebody reprocesses it.  A pass looks only once at what has to stay, so that no amount
    of it delays the rest.
    """

    def __init__(self, patience: int = 0) -> None:
        """patience: how many days events may wait for their partition to be dropped."""
        self._pass: _Pass | None = None
        self._patience = patience

    def run(self, seconds: float | None = None) -> Purged:
        """Continue until the pass is complete, or for `seconds`; return what was deleted."""
        ends = time.monotonic() + seconds if seconds is not None else float("inf")
        total = Purged()
        keys_left = runs_left = subscriptions_left = True
        while True:
            if keys_left:
                keys = in_transaction(lambda: _delete(_DELETE_EXPIRED_DEDUP_KEYS, (BATCH,)))
                total.dedup_keys += keys
                idempotency_keys = in_transaction(lambda: _delete(_DELETE_EXPIRED_IDEMPOTENCY_KEYS, (BATCH,)))
                keys_left = max(keys, idempotency_keys) >= BATCH
            if runs_left:
                runs = in_transaction(lambda: _delete(_DELETE_FINISHED_RUNS, {"days": RUNS_KEPT_DAYS, "rows": BATCH}))
                total.bulk_runs += runs
                runs_left = runs >= BATCH
            if subscriptions_left:
                forgotten = in_transaction(_forget_subscriptions)
                total.subscriptions += forgotten
                subscriptions_left = forgotten >= BATCH
            walked = self._step(total)
            if walked and not keys_left and not runs_left and not subscriptions_left:
                total.is_complete = True
                return total
            if time.monotonic() >= ends:
                return total

    def _step(self, total: Purged) -> bool:
        """Look at the next events; return True at the end of the pass."""
        if self._pass is None:
            with server_cursor() as cursor:
                found = cursor.execute(_FIND_ORGANIZATIONS_WITH_EXPIRED, (self._patience,)).fetchall()
            self._pass = _Pass(deque((organization, days, _START) for organization, days in found))
        if not self._pass.places:
            self._pass = None
            return True
        organization, days, place = self._pass.places[0]
        following, events, deliveries, attempts = in_transaction(lambda: _purge_events(organization, days, place))
        total.events += events
        total.deliveries += deliveries
        total.attempts += attempts
        self._pass.places.popleft()
        if following is not None:  # after the others: an organization with millions of rows must not delay them
            self._pass.places.append((organization, days, following))
        return False


def purge_expired() -> Purged:
    """Delete everything that is expired, whatever partition it is in; return how many rows."""
    return Purge().run()


def _purge_events(organization: uuid.UUID, days: int, place: _Place) -> tuple[_Place | None, int, int, int]:
    """Delete those of an organization's next events that are settled.

    Returns the next place (None at the end) and the numbers of events, deliveries, and attempts.
    """
    with server_cursor(class_row(_ExpiredEvent)) as cursor:
        parameters: dict[str, object] = {"organization": organization, "days": days, "rows": BATCH}
        parameters |= {"after_at": place[0], "after_id": place[1]}
        found = cursor.execute(_FIND_EXPIRED_EVENTS, parameters).fetchall()
    chosen: list[uuid.UUID] = []
    following: _Place | None = None
    deliveries = 0
    for event in found:
        if chosen and deliveries + event.deliveries > PURGED_AT_A_TIME:
            break
        following = (event.created_at, event.id)
        if event.is_settled:
            chosen.append(event.id)
            deliveries += event.deliveries
    else:
        if len(found) < BATCH:
            following = None
    with server_cursor(scalar_row) as cursor:
        chosen = cursor.execute(_LOCK_EVENTS, (chosen,)).fetchall()
        # Checked again under the lock: a delivery may have been replayed since.
        ids = cursor.execute(_FIND_DELIVERIES, {"events": chosen}).fetchall()
    with server_cursor() as cursor:
        locked = cursor.execute(_LOCK_DELIVERIES, (ids,)).fetchall()
        unsettled = {event_id for _, event_id, status in locked if status in _UNSETTLED}
        chosen = [event_id for event_id in chosen if event_id not in unsettled]
        if not chosen:
            return following, 0, 0, 0
        ids = [delivery_id for delivery_id, event_id, _ in locked if event_id not in unsettled]
        attempts = cursor.execute(_DELETE_ATTEMPTS, (ids,)).rowcount
        deliveries = cursor.execute(_DELETE_DELIVERIES, (ids,)).rowcount
        events = cursor.execute("DELETE FROM events_event WHERE id = ANY(%s::uuid[])", (chosen,)).rowcount
        return following, events, deliveries, attempts


def _forget_subscriptions() -> int:
    """Delete subscriptions that were deleted long ago and that nothing refers to any more."""
    with server_cursor(scalar_row) as cursor:
        ids = cursor.execute(_FIND_FORGETTABLE_SUBSCRIPTIONS, (BATCH,)).fetchall()
        for statement in _FORGET_SUBSCRIPTIONS if ids else ():
            cursor.execute(statement, (ids,))
    return len(ids)


def _delete(statement: str, parameters: tuple[int, ...] | dict[str, int]) -> int:
    with server_cursor() as cursor:
        return cursor.execute(statement, parameters).rowcount
