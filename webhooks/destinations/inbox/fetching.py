"""Fetching from an inbox under leases: lease, acknowledge, give back, extend.

A delivery in an inbox is `pending` until it is acknowledged.  What is fetched stays `pending`, with a lease, and
`next_attempt_at` is the end of the lease: from then on it can be fetched again, and no process has to end the lease.
Consumers never wait for each other, because each takes the rows that no other has locked, and none of them locks the
queue.  The clock is the database's.

The statements are SQL, because the ORM has neither LATERAL joins nor one statement that locks, changes, and returns
rows, and because plans are kept.
"""

from __future__ import annotations

import collections
import datetime
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row, scalar_row

from core.db import KEEP_PLANS, KEEP_PLANS_WITHOUT_WAITING, in_transaction, pipelined, server_cursor
from core.ids import new_id
from core.metrics.kinds import Counter
from events.models import ERASED

FETCHES = Counter("triggers_inbox_fetches_total", "Fetches from inboxes that got events, or none.", ["result"])
FETCHED = Counter(
    "triggers_inbox_events_fetched_total", "Events returned by fetches; one that is fetched again counts again."
)
CHANGES = Counter(
    "triggers_inbox_changes_total",
    "Events that were acknowledged, given back, or kept longer, or were to be, by what became of them.",
    ["outcome"],
)

MAX_EVENTS = 1000
# One fetch returns at most about this much data, but at least one event.
MAX_BYTES = 8 * 1_048_576
# The most types that a fetch with a prefix finds; it looks at about as many deliveries of them.
MAX_LOOKED_AT = 10_000
# The lease of what was given back: none, but it was fetched before.
GIVEN_BACK = uuid.UUID(int=0)


class ItemStatus(StrEnum):
    """What became of one item of a request."""

    ACKNOWLEDGED = "acknowledged"
    ALREADY_ACKNOWLEDGED = "already_acknowledged"
    GIVEN_BACK = "given_back"
    EXTENDED = "extended"
    LEASE_EXPIRED = "lease_expired"  # somebody else has fetched it since, or it was given back
    NOT_LEASED = "not_leased"
    CANCELLED = "cancelled"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class FetchedEvent:
    """An event that was fetched.  attempt: how often it has been, with this time; 0 if it was erased and cancelled."""

    delivery_id: uuid.UUID
    event_id: uuid.UUID
    event_type: str
    event_data: str
    event_trace: str | None
    event_created_at: datetime.datetime
    attempt: int
    lease_expires_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one delivery.

    at: when it was acknowledged, now or before; of one that was given back or extended now, when its lease ends.
    """

    status: ItemStatus
    at: datetime.datetime | None = None


# A fetch locks deliveries and leases them by a second statement.  When one statement did both, PostgreSQL 18.6 crashed
# under ten consumers, in perform_pruning_base_step.  Presumably the copy of the plan by which it checks a row that has
# changed since the snapshot shares what the plan prunes partitions by; so what locks here doesn't prune while it runs.

# What was fetched before comes first.  In two parts, because an index has what was fetched, and only that.
_INBOX = """
inbox AS MATERIALIZED (
    SELECT id FROM webhooks_subscription
    WHERE id = %(inbox)s AND kind = 'inbox' AND is_active AND deleted_at IS NULL
)"""
# Of all types, or of one.
_BY_ORDER = """
WITH {inbox}, again AS MATERIALIZED (
    SELECT d.id, d.event_id, d.created_at FROM inbox CROSS JOIN LATERAL (
        SELECT id, event_id, created_at FROM webhooks_delivery
        WHERE subscription_id = inbox.id AND status = 'pending' AND lease_id IS NOT NULL{of_type}
          AND next_attempt_at <= statement_timestamp()
        ORDER BY next_attempt_at, id LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS d
), fresh AS MATERIALIZED (
    SELECT d.id, d.event_id, d.created_at FROM inbox CROSS JOIN LATERAL (
        SELECT id, event_id, created_at FROM webhooks_delivery
        WHERE subscription_id = inbox.id AND status = 'pending' AND lease_id IS NULL{of_type}
          AND next_attempt_at <= statement_timestamp()
        ORDER BY next_attempt_at, id LIMIT greatest(0, %(limit)s - (SELECT count(*) FROM again))
        FOR UPDATE SKIP LOCKED
    ) AS d
)
SELECT * FROM again UNION ALL SELECT * FROM fresh
"""

# The types with a prefix, each found by one step along the index from the one before it, and of each the oldest.  Among
# these the oldest are taken that no other consumer is taking.
_TYPES = """
{name}_types(type, number) AS (
    (SELECT d.inbox_type, 1 FROM inbox CROSS JOIN LATERAL (
        SELECT inbox_type FROM webhooks_delivery
        WHERE subscription_id = inbox.id AND status = 'pending' AND lease_id {lease}
          AND inbox_type >= %(prefix)s AND inbox_type < %(beyond)s
        ORDER BY inbox_type LIMIT 1
    ) AS d)
    UNION ALL
    (SELECT d.inbox_type, t.number + 1 FROM {name}_types t CROSS JOIN inbox CROSS JOIN LATERAL (
        SELECT inbox_type FROM webhooks_delivery
        WHERE subscription_id = inbox.id AND status = 'pending' AND lease_id {lease}
          AND inbox_type > t.type AND inbox_type < %(beyond)s
        ORDER BY inbox_type LIMIT 1
    ) AS d WHERE t.number < %(looked_at)s)
), {name} AS (
    SELECT d.id, {part} AS part, d.next_attempt_at FROM inbox CROSS JOIN {name}_types t CROSS JOIN LATERAL (
        SELECT id, next_attempt_at FROM webhooks_delivery
        WHERE subscription_id = inbox.id AND status = 'pending' AND lease_id {lease} AND inbox_type = t.type
          AND next_attempt_at <= statement_timestamp()
        ORDER BY next_attempt_at, id
        LIMIT least(%(most)s, greatest(1, %(looked_at)s / (SELECT count(*) FROM {name}_types)))
    ) AS d
)"""
# What may be fetched of the types with a prefix, without a lock.
_FIND_PREFIX = """
WITH RECURSIVE {inbox}, {again}, {fresh}
SELECT id FROM (SELECT * FROM again UNION ALL SELECT * FROM fresh) AS found
ORDER BY part, next_attempt_at, id LIMIT %(most)s
"""
# Locks what was found, except what others have locked or leased meanwhile.
_LOCK_FOUND = """
SELECT id, event_id, created_at FROM webhooks_delivery
WHERE id = ANY (%(found)s::uuid[]) AND id >= %(first_found)s AND id <= %(last_found)s
  AND status = 'pending' AND next_attempt_at <= statement_timestamp()
ORDER BY lease_id IS NULL, next_attempt_at, id LIMIT %(limit)s
FOR UPDATE SKIP LOCKED
"""

# What an erased event said can't be had any more: its delivery is cancelled instead.  That is only one that was queued
# again while the event was erased, because erasing cancels what waits. What was given back counts as fetched again: its
# error is cleared. The bounds of the ids leave out the partitions that have none of them.
_LEASE = """
WITH picked AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::uuid[], %(event_ids)s::uuid[], %(places)s::timestamptz[])
        AS p(id, event_id, created_at)
), loaded AS MATERIALIZED (
    SELECT p.id, p.created_at AS place, e.id AS event_id, e.type AS event_type, e.data AS event_data,
           e.trace AS event_trace, e.created_at AS event_created_at, e.data = %(erased)s AS is_erased,
           octet_length(e.data) AS size,
           sum(octet_length(e.data)) OVER (ORDER BY p.created_at, p.id ROWS UNBOUNDED PRECEDING) AS total
    FROM picked p CROSS JOIN LATERAL (SELECT * FROM events_event WHERE id = p.event_id LIMIT 1) AS e
), leased AS (
    UPDATE webhooks_delivery d
    SET lease_id = %(lease)s, attempt_count = attempt_count + 1, last_error = '',
        next_attempt_at = clock_timestamp() + make_interval(secs => %(seconds)s)
    WHERE d.id = ANY (ARRAY (SELECT id FROM loaded WHERE total - size < %(bytes)s AND NOT is_erased))
      AND d.id >= %(least)s AND d.id <= %(greatest)s
    RETURNING d.id, d.attempt_count, d.next_attempt_at
), cancelled AS (
    UPDATE webhooks_delivery d
    SET status = 'cancelled', last_error = 'payload_erased', last_status_code = NULL, next_attempt_at = NULL,
        lease_id = NULL, completed_at = clock_timestamp()
    WHERE d.id = ANY (ARRAY (SELECT id FROM loaded WHERE is_erased))
      AND d.id >= %(least)s AND d.id <= %(greatest)s
    RETURNING d.id, 0, d.completed_at
), done AS (
    SELECT * FROM leased UNION ALL SELECT * FROM cancelled
)
SELECT done.id AS delivery_id, l.event_id, l.event_type, l.event_data, l.event_trace, l.event_created_at,
       done.attempt_count AS attempt, done.next_attempt_at AS lease_expires_at
FROM done JOIN loaded l ON l.id = done.id ORDER BY l.place, l.id
"""
_LOCK = _BY_ORDER.format(inbox=_INBOX, of_type="")
_LOCK_TYPE = _BY_ORDER.format(inbox=_INBOX, of_type=" AND inbox_type = %(type)s")
_FIND_TYPES = _FIND_PREFIX.format(
    inbox=_INBOX,
    again=_TYPES.format(name="again", lease="IS NOT NULL", part=0),
    fresh=_TYPES.format(name="fresh", lease="IS NULL", part=1),
)


@dataclass(frozen=True, slots=True)
class _Picked:
    """A delivery that a fetch has locked, and its place in the order of the inbox."""

    id: uuid.UUID
    event_id: uuid.UUID
    created_at: datetime.datetime


def fetch(
    inbox_id: uuid.UUID, limit: int, seconds: float, event_type: str | None = None
) -> tuple[uuid.UUID, list[FetchedEvent]]:
    """Lease up to `limit` events for `seconds`; return the lease's id and the events, in their order.

    event_type: an exact type or a prefix (`order.*`).  An inbox that is disabled or deleted has none.
    """
    lease_id = new_id()

    def work() -> list[FetchedEvent]:
        with server_cursor(class_row(_Picked)) as locking, server_cursor() as other, pipelined():
            # A crash that forgets this commit ends the lease early, as if the consumer had died.
            other.execute(KEEP_PLANS_WITHOUT_WAITING)
            picked = _lock(locking, inbox_id, limit, event_type)
            if not picked:
                return []
            ids = [row.id for row in picked]
            parameters = {
                "ids": ids, "event_ids": [row.event_id for row in picked],
                "places": [row.created_at for row in picked], "least": min(ids), "greatest": max(ids),
                "lease": lease_id, "seconds": seconds, "bytes": MAX_BYTES, "erased": ERASED,
            }  # fmt: skip
            with server_cursor(class_row(FetchedEvent)) as leasing:
                return leasing.execute(_LEASE, parameters).fetchall()

    events: list[FetchedEvent] = []
    while not events and (found := in_transaction(work)):
        events = [event for event in found if event.attempt]
    FETCHES.inc("events" if events else "none")
    if events:
        FETCHED.inc(by=len(events))
    return lease_id, events


def _lock(cursor: psycopg.Cursor[_Picked], inbox_id: uuid.UUID, limit: int, event_type: str | None) -> list[_Picked]:
    """Lock up to `limit` deliveries that can be fetched, and return them."""
    parameters: dict[str, Any] = {"inbox": inbox_id, "limit": limit}
    if event_type is None or event_type == "*":
        return cursor.execute(_LOCK, parameters).fetchall()
    if not event_type.endswith(".*"):
        return cursor.execute(_LOCK_TYPE, {**parameters, "type": event_type}).fetchall()
    prefix = event_type[:-1]
    # In the collation "C", "/" follows ".".  Some more than the limit, because others may be taking the first.
    bounds = {"prefix": prefix, "beyond": prefix[:-1] + "/", "looked_at": MAX_LOOKED_AT, "most": 2 * limit}
    with server_cursor(scalar_row) as finding:
        found = finding.execute(_FIND_TYPES, {**parameters, **bounds}).fetchall()
    if not found:
        return []
    among = {"found": found, "first_found": min(found), "last_found": max(found)}
    return cursor.execute(_LOCK_FOUND, {**parameters, **among}).fetchall()


# Locked in the order of their ids, so that two requests for the same ones don't wait for each other.
_LOCKED = """
WITH locked AS MATERIALIZED (
    SELECT id, status, lease_id, completed_at FROM webhooks_delivery
    WHERE id = ANY (%(ids)s::uuid[]) AND id >= %(least)s AND id <= %(greatest)s AND subscription_id = %(inbox)s
    ORDER BY id FOR UPDATE
), fitting AS MATERIALIZED (
    SELECT id FROM locked
    WHERE status IN ('pending', 'held') AND (%(lease)s::uuid IS NULL OR lease_id = %(lease)s::uuid)
      AND (%(unleased)s OR (lease_id IS NOT NULL AND lease_id <> '00000000-0000-0000-0000-000000000000'))
), changed AS (
    UPDATE webhooks_delivery d SET {changes}
    WHERE d.id = ANY (ARRAY (SELECT id FROM fitting)) AND d.id >= %(least)s AND d.id <= %(greatest)s
    RETURNING d.id, {at} AS at
)
SELECT l.id, l.status, l.lease_id, c.id IS NOT NULL AS is_changed, coalesce(c.at, l.completed_at) AS at
FROM locked l LEFT JOIN changed c ON c.id = l.id
"""
_ACKNOWLEDGE = _LOCKED.format(
    changes="status = 'delivered', completed_at = clock_timestamp(), lease_id = NULL, last_error = ''",
    at="d.completed_at",
)
_GIVE_BACK = _LOCKED.format(
    changes=(
        "lease_id = '00000000-0000-0000-0000-000000000000', last_error = 'given_back', "
        "next_attempt_at = clock_timestamp() + make_interval(secs => %(seconds)s)"
    ),
    at="d.next_attempt_at",
)
_EXTEND = _LOCKED.format(
    changes="next_attempt_at = clock_timestamp() + make_interval(secs => %(seconds)s)", at="d.next_attempt_at"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the statements above, with what it was before."""

    id: uuid.UUID
    status: str
    lease_id: uuid.UUID | None
    is_changed: bool
    at: datetime.datetime | None


def acknowledge(
    inbox_id: uuid.UUID, delivery_ids: Iterable[uuid.UUID], lease_id: uuid.UUID | None = None
) -> dict[uuid.UUID, Changed]:
    """Settle deliveries, and return what became of each that is in the inbox.

    lease_id: only those that no other consumer has fetched since this lease began.  Without it, whether or not they are
    leased.  When this returns, it is committed.
    """
    rows = _change(_ACKNOWLEDGE, inbox_id, delivery_ids, lease_id, unleased=True)
    return _changed(rows, ItemStatus.ACKNOWLEDGED)


def give_back(
    inbox_id: uuid.UUID, delivery_ids: Iterable[uuid.UUID], seconds: float = 0, lease_id: uuid.UUID | None = None
) -> dict[uuid.UUID, Changed]:
    """End leases: the deliveries may be fetched again in `seconds`.  Otherwise as `acknowledge`."""
    rows = _change(_GIVE_BACK, inbox_id, delivery_ids, lease_id, seconds=seconds)
    return _changed(rows, ItemStatus.GIVEN_BACK)


# As if they had not been fetched; they come first in the next fetch.
_TAKE_BACK = _LOCKED.format(
    changes=(
        "lease_id = '00000000-0000-0000-0000-000000000000', attempt_count = attempt_count - 1, "
        "next_attempt_at = clock_timestamp()"
    ),
    at="d.next_attempt_at",
)


def take_back(inbox_id: uuid.UUID, delivery_ids: Iterable[uuid.UUID], lease_id: uuid.UUID) -> None:
    """End a lease whose events reached no consumer."""
    _change(_TAKE_BACK, inbox_id, delivery_ids, lease_id)


def extend(
    inbox_id: uuid.UUID, delivery_ids: Iterable[uuid.UUID], seconds: float, lease_id: uuid.UUID | None = None
) -> dict[uuid.UUID, Changed]:
    """Let leases end in `seconds`, also those that have ended, if no consumer has fetched their deliveries since.

    Otherwise as `acknowledge`.
    """
    rows = _change(_EXTEND, inbox_id, delivery_ids, lease_id, seconds=seconds)
    return _changed(rows, ItemStatus.EXTENDED)


def _change(
    statement: str,
    inbox_id: uuid.UUID,
    delivery_ids: Iterable[uuid.UUID],
    lease_id: uuid.UUID | None,
    *,
    seconds: float = 0,
    unleased: bool = False,
) -> Sequence[_Row]:
    ids = list(delivery_ids)
    if not ids:
        return []
    parameters: Mapping[str, Any] = {
        "ids": ids, "least": min(ids), "greatest": max(ids), "inbox": inbox_id, "lease": lease_id,
        "seconds": seconds, "unleased": unleased,
    }  # fmt: skip

    def work() -> list[_Row]:
        with server_cursor(class_row(_Row)) as changing, server_cursor() as other, pipelined():
            other.execute(KEEP_PLANS)
            return changing.execute(statement, parameters).fetchall()

    return in_transaction(work)


def _changed(rows: Sequence[_Row], changed: ItemStatus) -> dict[uuid.UUID, Changed]:
    """Return what became of each, and count it."""
    found = {
        row.id: Changed(_became(row, changed), row.at if row.is_changed or changed is ItemStatus.ACKNOWLEDGED else None)
        for row in rows
    }
    for status, number in collections.Counter(one.status for one in found.values()).items():
        CHANGES.inc(status.value, by=number)
    return found


def _became(row: _Row, changed: ItemStatus) -> ItemStatus:
    if row.is_changed:
        return changed
    if row.status == "delivered":
        return ItemStatus.ALREADY_ACKNOWLEDGED
    if row.status == "cancelled":
        return ItemStatus.CANCELLED
    return ItemStatus.NOT_LEASED if row.lease_id is None else ItemStatus.LEASE_EXPIRED


# Each inbox is looked into for one delivery at most, by its index.
_WITH_NEWS = """
SELECT inbox.id FROM unnest(%s::uuid[]) AS inbox(id)
WHERE (SELECT true FROM webhooks_delivery d WHERE d.subscription_id = inbox.id AND d.status = 'pending'
       AND d.next_attempt_at <= statement_timestamp() LIMIT 1)
   OR (SELECT NOT is_active OR deleted_at IS NOT NULL FROM webhooks_subscription s WHERE s.id = inbox.id)
"""


def with_news(inbox_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Return those of the inboxes that have something to fetch, or are disabled or deleted."""
    with server_cursor(scalar_row) as cursor:
        return cursor.execute(_WITH_NEWS, (list(inbox_ids),)).fetchall()
