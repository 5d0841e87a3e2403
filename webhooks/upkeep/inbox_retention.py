"""Cancels what hasn't been fetched from an inbox within its organization's retention days, as in an abandoned one.

The log of an inbox (`destinations.inbox.log`) reaches back just as far, so consumers need to know only one number.  A
cancelled delivery is settled: it no longer counts as waiting, and retention deletes its event.
"""

from __future__ import annotations

import time
import uuid
from collections import deque

from core.db import in_transaction, server_cursor
from webhooks.upkeep.held_retention import BATCH, Cancelled

# SQL, for the same reasons as in `held_retention`: because of the LATERAL join, and `= ANY (ARRAY (...))` below.

# Inboxes that have any, found with one look at the index of what is pending for each.
_FIND_INBOXES = """
SELECT s.id, o.retention_days FROM webhooks_subscription s JOIN orgs_organization o ON o.id = s.organization_id
CROSS JOIN LATERAL (
    SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = s.id AND d.status = 'pending'
      AND d.next_attempt_at < statement_timestamp() - make_interval(days => o.retention_days)
    ORDER BY d.next_attempt_at, d.id LIMIT 1
) AS unfetched
WHERE s.kind = 'inbox' AND s.deleted_at IS NULL ORDER BY s.id
"""
# `next_attempt_at` is when the delivery was created or queued again, or when its last lease ended: what is fetched
# again and again isn't abandoned.
_CANCEL = """
UPDATE webhooks_delivery SET
    status = 'cancelled', last_error = 'not_fetched', last_status_code = NULL, next_attempt_at = NULL,
    lease_id = NULL, completed_at = clock_timestamp()
WHERE id = ANY (ARRAY (
    SELECT id FROM webhooks_delivery WHERE subscription_id = %(inbox)s AND status = 'pending'
      AND next_attempt_at < statement_timestamp() - make_interval(days => %(days)s)
    ORDER BY next_attempt_at, id LIMIT %(rows)s FOR UPDATE SKIP LOCKED
))
"""


class InboxRetention:
    """Cancels in small transactions, inboxes in turn, and remembers those that are left from one call to the next."""

    def __init__(self) -> None:
        self._left: deque[tuple[uuid.UUID, int]] | None = None

    def run(self, seconds: float | None = None) -> Cancelled:
        """Continue until none is left that is old enough, or for `seconds`."""
        ends = time.monotonic() + seconds if seconds is not None else float("inf")
        total = Cancelled()
        while True:
            if self._left is None:
                with server_cursor() as cursor:
                    self._left = deque(cursor.execute(_FIND_INBOXES).fetchall())
            if not self._left:
                self._left = None
                total.is_complete = True
                return total
            inbox, days = self._left.popleft()
            cancelled = in_transaction(lambda inbox=inbox, days=days: _cancel(inbox, days))  # type: ignore[misc]
            total.deliveries += cancelled
            if cancelled == BATCH:  # after the others: an inbox with millions must not delay them
                self._left.append((inbox, days))
            if time.monotonic() >= ends:
                return total


def cancel_unfetched() -> Cancelled:
    """Cancel everything that hasn't been fetched for too long."""
    return InboxRetention().run()


def _cancel(inbox: uuid.UUID, days: int) -> int:
    with server_cursor() as cursor:
        return cursor.execute(_CANCEL, {"inbox": inbox, "days": days, "rows": BATCH}).rowcount
