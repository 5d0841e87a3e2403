"""Repairs queues whose bookkeeping is wrong, for example after changes by hand.  The code itself never leaves one
wrong."""

from __future__ import annotations

import structlog
from psycopg.rows import scalar_row

from core.db import in_transaction, server_cursor
from webhooks.queues import lock_queues, mark_due

log = structlog.get_logger()

# Deliveries are due before their queue says so.  For each queue, one look at the index of what is pending.
_FIND_OVERDUE_QUEUES = """
SELECT q.subscription_id FROM webhooks_subscriptionqueue q
WHERE q.accepts_deliveries AND NOT q.is_fetched AND (
    q.next_due_at IS NULL OR q.next_due_at > clock_timestamp()
) AND EXISTS (
    SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = q.subscription_id AND d.status = 'pending'
      AND d.next_attempt_at < coalesce(q.next_due_at, 'infinity') AND d.next_attempt_at <= statement_timestamp()
)
"""

# SQL, here and below, because the ORM can't join what is counted by queue.  Queues whose `in_flight` differs from what
# is claimed would stay closed, or let too many through.
_FIND_MISCOUNTED_QUEUES = """
SELECT q.subscription_id FROM webhooks_subscriptionqueue q LEFT JOIN (
    SELECT subscription_id, count(*) AS claimed FROM webhooks_delivery WHERE status = 'delivering' GROUP BY 1
) AS c ON c.subscription_id = q.subscription_id
WHERE q.in_flight <> coalesce(c.claimed, 0)
"""
# Only those that still differ are written.
_RECOUNT_QUEUES = """
UPDATE webhooks_subscriptionqueue q SET in_flight = c.claimed
FROM (
    SELECT one.id, (
        SELECT count(*) FROM webhooks_delivery d WHERE d.subscription_id = one.id AND d.status = 'delivering'
    ) AS claimed FROM unnest(%s::uuid[]) AS one(id)
) AS c
WHERE q.subscription_id = c.id AND q.in_flight <> c.claimed
"""


def repair_next_due_at() -> int:
    """Mark queues as due that have due deliveries but don't say so; return how many."""

    def work() -> int:
        with server_cursor(scalar_row) as cursor:
            overdue = cursor.execute(_FIND_OVERDUE_QUEUES).fetchall()
        if overdue:
            mark_due(overdue)
        return len(overdue)

    repaired = in_transaction(work)
    if repaired:
        log.warning("queues_repaired", queues=repaired)
    return repaired


def recount_in_flight() -> int:
    """Correct queues whose `in_flight` isn't the number of their claimed deliveries; return how many."""

    def work() -> int:
        with server_cursor(scalar_row) as cursor:
            suspects = cursor.execute(_FIND_MISCOUNTED_QUEUES).fetchall()
            if not suspects:
                return 0
            # Counted again under the lock, without which neither number changes.
            lock_queues(suspects)
            return cursor.execute(_RECOUNT_QUEUES, (suspects,)).rowcount

    corrected = in_transaction(work)
    if corrected:
        log.warning("queues_recounted", queues=corrected)
    return corrected
