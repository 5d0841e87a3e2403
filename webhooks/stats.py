"""Statistics for health and the console: what is due, what is in work, and how long the oldest has waited."""

from __future__ import annotations

from core.db import server_cursor
from webhooks.routing.fan_out import FAN_OUT_LOCK

COUNT_DUE = """
SELECT count(*) FROM (
    SELECT 1 FROM webhooks_subscriptionqueue q JOIN webhooks_delivery d ON d.subscription_id = q.subscription_id
    WHERE q.accepts_deliveries AND q.next_due_at <= statement_timestamp()
      AND d.status = 'pending' AND d.next_attempt_at <= statement_timestamp()
    LIMIT %s
) AS waiting
"""
COUNT_DELIVERING = "SELECT coalesce(sum(in_flight), 0) FROM webhooks_subscriptionqueue WHERE in_flight > 0"
OLDEST_DUE = """
SELECT extract(epoch FROM clock_timestamp() - min(next_due_at)) FROM webhooks_subscriptionqueue
WHERE accepts_deliveries AND next_due_at <= statement_timestamp()
"""
COUNT_IN_FAN_OUT = f"""
SELECT coalesce(sum(objid::bigint), 0) FROM pg_locks
WHERE locktype = 'advisory' AND classid = {FAN_OUT_LOCK} AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""  # noqa: S608 - a constant of ours


def _one(statement: str, parameters: tuple[int, ...] = ()) -> float | None:
    with server_cursor() as cursor:
        row = cursor.execute(statement, parameters or None).fetchone()
    return float(row[0]) if row and row[0] is not None else None


def due_deliveries(most: int) -> int:
    """Return how many deliveries are due and wait for a worker, counting to `most` at the furthest."""
    return int(_one(COUNT_DUE, (most,)) or 0)


def deliveries_in_flight() -> int:
    """Return how many deliveries are claimed by a worker."""
    return int(_one(COUNT_DELIVERING) or 0)


def events_in_fan_out() -> int:
    """Return how many events running fan-outs hold."""
    return int(_one(COUNT_IN_FAN_OUT) or 0)


def oldest_due_seconds() -> float:
    """Return how long the delivery that is due longest has waited, in seconds; 0 when none is due."""
    return max(0.0, _one(OLDEST_DUE) or 0.0)
