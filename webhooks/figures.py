"""Figures about deliveries for the health page: what is due, in work, and how old."""

from __future__ import annotations

from core.db import server_cursor
from webhooks import sql


def _one(statement: str, parameters: tuple[int, ...] = ()) -> float | None:
    with server_cursor() as cursor:
        row = cursor.execute(statement, parameters or None).fetchone()
    return float(row[0]) if row and row[0] is not None else None


def due_deliveries(most: int) -> int:
    """Return how many deliveries are due and wait for a worker, counting to `most` at the furthest."""
    return int(_one(sql.COUNT_DUE, (most,)) or 0)


def deliveries_in_flight() -> int:
    """Return how many deliveries are claimed by a worker."""
    return int(_one(sql.COUNT_DELIVERING) or 0)


def events_in_fan_out() -> int:
    """Return how many events running fan-outs hold."""
    return int(_one(sql.COUNT_IN_FAN_OUT) or 0)


def oldest_due_seconds() -> float:
    """Return how long the delivery that is due longest has waited, in seconds; 0 when none is due."""
    return max(0.0, _one(sql.OLDEST_DUE) or 0.0)
