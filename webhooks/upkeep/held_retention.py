"""Cancels what has been held for too long (HELD_RETENTION_DAYS), for example for an endpoint that is gone for good.

A cancelled delivery is settled, so that retention also deletes its event when that is old enough.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections import deque
from dataclasses import dataclass

from django.conf import settings
from psycopg.rows import class_row, scalar_row

from core.db import in_transaction, server_cursor

BATCH = 500

# All of this is SQL, because of the LATERAL join, of places that are two columns, compared together, and of
# `= ANY (ARRAY (...))`.

# Organizations that may have any, found with one look at the index by state for each.
_FIND_ORGANIZATIONS = """
SELECT o.id FROM orgs_organization o CROSS JOIN LATERAL (
    SELECT 1 FROM webhooks_delivery d WHERE d.organization_id = o.id AND d.status = 'held'
      AND d.created_at < statement_timestamp() - make_interval(days => %(days)s)
    ORDER BY d.created_at, d.id LIMIT 1
) AS held
ORDER BY o.id
"""

# The next held deliveries of one organization, after a place.  A delivery is held from when it was created, its
# subscription was disabled, or somebody held it, whichever was last; `next_attempt_at` is the time of the latter. One
# that is about to be released, because its subscription was enabled, is left alone.
_FIND_HELD = """
SELECT d.id, d.created_at,
       NOT q.needs_resync AND coalesce(
           greatest(d.next_attempt_at, CASE WHEN NOT s.is_active THEN s.disabled_at END), d.created_at
       ) < statement_timestamp() - make_interval(days => %(days)s) AS is_expired
FROM webhooks_delivery d JOIN webhooks_subscription s ON s.id = d.subscription_id
JOIN webhooks_subscriptionqueue q ON q.subscription_id = s.id
WHERE d.organization_id = %(organization)s AND d.status = 'held'
  AND d.created_at < statement_timestamp() - make_interval(days => %(days)s)
  AND (d.created_at, d.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
ORDER BY d.created_at, d.id LIMIT %(rows)s
"""
# By their ids in an array, because the planner might join two IN lists by reading every partition.
_CANCEL = """
UPDATE webhooks_delivery d SET
    status = 'cancelled', last_error = 'held_too_long', last_status_code = NULL, next_attempt_at = NULL,
    completed_at = clock_timestamp()
WHERE d.id = ANY (ARRAY (
    SELECT id FROM webhooks_delivery WHERE id = ANY(%s::uuid[]) AND status = 'held' ORDER BY id FOR UPDATE SKIP LOCKED
))
  AND NOT EXISTS (SELECT 1 FROM webhooks_subscriptionqueue q
                  WHERE q.subscription_id = d.subscription_id AND q.needs_resync)
"""

_Place = tuple[datetime.datetime | str, uuid.UUID]
_START: _Place = ("-infinity", uuid.UUID(int=0))


@dataclass(frozen=True, slots=True)
class _Held:
    """A row of _FIND_HELD."""

    id: uuid.UUID
    created_at: datetime.datetime
    is_expired: bool


@dataclass
class Cancelled:
    """How many deliveries were cancelled.  is_complete: a whole pass was made, and none that is old enough is left."""

    deliveries: int = 0
    is_complete: bool = False


class HeldRetention:
    """Cancels in small transactions, organizations in turn, and remembers its places from one call to the next.

    A pass looks only once at what has to stay, so that no amount of it delays the rest.
    """

    def __init__(self) -> None:
        self._places: deque[tuple[uuid.UUID, _Place]] | None = None

    def run(self, seconds: float | None = None) -> Cancelled:
        """Continue until the pass is complete, or for `seconds`."""
        ends = time.monotonic() + seconds if seconds is not None else float("inf")
        total = Cancelled()
        if not settings.HELD_RETENTION_DAYS:
            return Cancelled(is_complete=True)
        while True:
            if self._places is None:
                with server_cursor(scalar_row) as cursor:
                    found = cursor.execute(_FIND_ORGANIZATIONS, {"days": settings.HELD_RETENTION_DAYS}).fetchall()
                self._places = deque((organization, _START) for organization in found)
            if not self._places:
                self._places = None
                total.is_complete = True
                return total
            organization, place = self._places[0]
            following, cancelled = in_transaction(lambda of=organization, at=place: _cancel(of, at))  # type: ignore[misc]
            total.deliveries += cancelled
            self._places.popleft()
            if following is not None:  # after the others: an organization with millions must not delay them
                self._places.append((organization, following))
            if time.monotonic() >= ends:
                return total


def cancel_expired() -> Cancelled:
    """Cancel everything that has been held for too long."""
    return HeldRetention().run()


def _cancel(organization: uuid.UUID, place: _Place) -> tuple[_Place | None, int]:
    """Cancel those of an organization's next held deliveries that are old enough; return the next place, and how
    many."""
    parameters = {
        "organization": organization, "after_at": place[0], "after_id": place[1], "rows": BATCH,
        "days": settings.HELD_RETENTION_DAYS,
    }  # fmt: skip
    with server_cursor(class_row(_Held)) as cursor:
        found = cursor.execute(_FIND_HELD, parameters).fetchall()
    expired = [row.id for row in found if row.is_expired]
    cancelled = 0
    if expired:
        with server_cursor() as cursor:
            cancelled = cursor.execute(_CANCEL, (expired,)).rowcount
    return ((found[-1].created_at, found[-1].id) if len(found) == BATCH else None), cancelled
