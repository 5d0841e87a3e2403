"""Ends leases without a result: those that have expired, and those that are given back.  Extends others."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
from django.db.models import Q
from django.db.models.functions import Now
from psycopg.rows import class_row

from core.db import in_transaction, server_cursor
from webhooks.destinations.outcome import Failure
from webhooks.dispatch.attempt_log import LoggedAttempt, count_attempts, log_attempts
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.models import Delivery, DeliveryStatus, NoticeKind
from webhooks.notices import Note, failed_delivery, note
from webhooks.queues import lock_queues
from webhooks.rollups import count_lost_attempts

log = structlog.get_logger()

# A delivery that has lost this many workers in a row is given up: it may be the reason why they died.
MAX_WORKERS_LOST = 20


@dataclass(frozen=True, slots=True)
class _Leased:
    """A delivery under a lease, and whose it is."""

    id: uuid.UUID
    subscription_id: uuid.UUID


# SQL, here and below, because of UPDATE … FROM, RETURNING, and the INSERT of what an UPDATE returns.

# leases: those that may be ended, or NULL for those that have expired.
_END_LEASES = """
UPDATE webhooks_delivery d SET
    status = CASE WHEN s.deleted_at IS NOT NULL THEN 'cancelled' WHEN s.is_active THEN 'pending' ELSE 'held' END,
    next_attempt_at = clock_timestamp(), lease_id = NULL, lease_expires_at = NULL,
    completed_at = CASE WHEN s.deleted_at IS NOT NULL THEN clock_timestamp() END
FROM webhooks_subscription s
WHERE s.id = d.subscription_id AND d.id = ANY(%(ids)s::uuid[]) AND d.status = 'delivering'
  AND CASE WHEN %(leases)s::uuid[] IS NULL THEN d.lease_expires_at <= clock_timestamp()
           ELSE d.lease_id = ANY(%(leases)s::uuid[]) END
RETURNING d.id, d.subscription_id
"""

_RETURN_TO_QUEUES = """
UPDATE webhooks_subscriptionqueue q
SET in_flight = q.in_flight - v.returned, next_due_at = least(q.next_due_at, clock_timestamp())
FROM unnest(%(queues)s::uuid[], %(returned)s::int[]) AS v(subscription_id, returned)
WHERE q.subscription_id = v.subscription_id
"""

# Adds an attempt for each lost worker; returns how many workers in a row each delivery had lost before this one.
_NOTE_LOST_ATTEMPTS = """
WITH lost AS (
    UPDATE webhooks_delivery SET attempt_count = attempt_count + 1, last_error = 'worker_lost', last_status_code = NULL
    WHERE id = ANY(%s::uuid[])
    RETURNING id, attempt_count, cause, status, event_id, subscription_id, organization_id
), noted AS (
    INSERT INTO webhooks_deliveryattempt (
        delivery_id, number, cause, started_at, duration_ms, error, error_detail, response_body
    )
    SELECT id, attempt_count, cause, clock_timestamp(), 0, 'worker_lost',
           'The worker that had claimed this delivery stopped. Whether the request was sent is unknown.', ''
    FROM lost
)
SELECT lost.id, lost.attempt_count AS number, lost.status, lost.event_id, lost.subscription_id, lost.organization_id,
       e.packed_request_id AS request_id, e.trace, (
    SELECT count(*) FROM webhooks_deliveryattempt a WHERE a.delivery_id = lost.id AND a.number > coalesce((
        SELECT max(b.number) FROM webhooks_deliveryattempt b
        WHERE b.delivery_id = lost.id AND b.error <> 'worker_lost'
    ), 0)
) AS lost_before
FROM lost LEFT JOIN LATERAL (
    SELECT packed_request_id, trace FROM events_event WHERE id = lost.event_id LIMIT 1
) AS e ON true
"""


# What somebody has locked is about to be recorded, and isn't waited for.
_EXTEND = """
UPDATE webhooks_delivery SET lease_expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = ANY (ARRAY (
    SELECT d.id FROM unnest(%(ids)s::uuid[], %(leases)s::uuid[]) AS held(id, lease_id)
    CROSS JOIN LATERAL (
        SELECT id FROM webhooks_delivery
        WHERE id = held.id AND status = 'delivering' AND lease_id = held.lease_id FOR UPDATE SKIP LOCKED
    ) AS d
)) AND id >= %(least)s AND id <= %(greatest)s
"""


@dataclass(frozen=True, slots=True)
class _LostDelivery:
    """A row of _NOTE_LOST_ATTEMPTS."""

    id: uuid.UUID
    number: int
    status: str
    event_id: uuid.UUID
    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    request_id: bytes | None
    trace: str | None
    lost_before: int

    @property
    def is_given_up(self) -> bool:
        """Return whether the delivery has failed for good."""
        return self.status == DeliveryStatus.PENDING and self.lost_before + 1 >= MAX_WORKERS_LOST


# After the first loss, the delivery waits twice as long after each one; after the last one allowed, it is given up.
_DELAY_LOST = """
UPDATE webhooks_delivery d SET
    next_attempt_at = clock_timestamp() + make_interval(secs => least(3600, power(2, v.before))),
    status = CASE WHEN d.status = 'pending' AND v.before + 1 >= %(most)s THEN 'failed' ELSE d.status END,
    completed_at = CASE WHEN d.status = 'pending' AND v.before + 1 >= %(most)s THEN clock_timestamp()
                   ELSE d.completed_at END
FROM unnest(%(ids)s::uuid[], %(before)s::int[]) AS v(id, before)
WHERE d.id = v.id AND d.status IN ('pending', 'held')
"""


def _find(condition: Q, limit: int | None = None) -> list[_Leased]:
    """Return leased deliveries, without a lock: their queues have to be locked first.

    So `_return` checks again whether the lease may be ended.
    """
    leased = Delivery.objects.filter(condition, status=DeliveryStatus.DELIVERING)
    return [_Leased(*row) for row in leased.values_list("id", "subscription_id")[:limit]]


def release(lease_ids: Iterable[uuid.UUID]) -> int:
    """Give back what is still claimed under these leases, at once; return how many deliveries."""
    leases = list(lease_ids)

    def work() -> int:
        return len(_return(_find(Q(lease_id__in=leases)), leases))

    return in_transaction(work) if leases else 0


def extend(deliveries: Sequence[ClaimedDelivery], seconds: float) -> int:
    """Let the leases of deliveries end so many seconds from now, as far as they last; return how many were extended."""
    ids = [delivery.delivery_id for delivery in deliveries]
    with server_cursor() as cursor:
        cursor.execute(
            _EXTEND,
            {
                "ids": ids,
                "leases": [delivery.lease_id for delivery in deliveries],
                "seconds": seconds,
                "least": min(ids),
                "greatest": max(ids),
            },
        )
        return cursor.rowcount


def expire(limit: int = 1000) -> int:
    """Take back deliveries whose lease has ended, because their worker died.  Return how many."""

    def work() -> list[_LostDelivery]:
        returned = _return(_find(Q(lease_expires_at__lte=Now()), limit), None)
        return _note_lost(returned) if returned else []

    lost = in_transaction(work)
    attempts = [_lost_attempt(row) for row in lost]
    count_attempts(attempts)
    log_attempts(attempts)
    if lost:
        log.warning("leases_expired", deliveries=len(lost))
    return len(lost)


def _lost_attempt(row: _LostDelivery) -> LoggedAttempt:
    return LoggedAttempt(
        became=DeliveryStatus.FAILED if row.is_given_up else row.status,
        delivery_id=row.id,
        number=row.number,
        event_id=row.event_id,
        subscription_id=row.subscription_id,
        organization_id=row.organization_id,
        request_id=row.request_id,
        trace=row.trace,
        error=Failure.WORKER_LOST,
    )


def _note_lost(delivery_ids: list[uuid.UUID]) -> list[_LostDelivery]:
    """Add an attempt that says what happened; a delivery that keeps losing its workers waits longer each time."""
    with server_cursor(class_row(_LostDelivery)) as cursor:
        noted = cursor.execute(_NOTE_LOST_ATTEMPTS, (delivery_ids,)).fetchall()
    lost = [row for row in noted if row.lost_before]
    if lost:
        with server_cursor() as cursor:
            cursor.execute(
                _DELAY_LOST,
                {
                    "ids": [row.id for row in lost],
                    "before": [row.lost_before for row in lost],
                    "most": MAX_WORKERS_LOST,
                },
            )
    note(NoticeKind.DELIVERY_FAILED, _notes_of_failed(noted))
    count_lost_attempts(delivery_ids)
    return noted


def _notes_of_failed(rows: Sequence[_LostDelivery]) -> dict[uuid.UUID, Note]:
    """Return the notes about deliveries that were given up, by subscription."""
    notes: dict[uuid.UUID, Note] = {}
    for row in rows:
        if row.is_given_up:
            one = notes.setdefault(row.subscription_id, Note(row.organization_id, 0))
            one.number += 1
            one.detail = failed_delivery(row.id, row.event_id, Failure.WORKER_LOST.value, None)
    return notes


def _return(found: Sequence[_Leased], leases: list[uuid.UUID] | None) -> list[uuid.UUID]:
    """Return those deliveries to their queues that are still claimed. The queues are locked first."""
    if not found:
        return []
    lock_queues({row.subscription_id for row in found})
    with server_cursor(class_row(_Leased)) as cursor:
        cursor.execute(_END_LEASES, {"ids": [row.id for row in found], "leases": leases})
        returned = cursor.fetchall()
    by_queue = Counter(row.subscription_id for row in returned)
    with server_cursor() as cursor:
        cursor.execute(_RETURN_TO_QUEUES, {"queues": list(by_queue), "returned": list(by_queue.values())})
    return [row.id for row in returned]
