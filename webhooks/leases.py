"""Leases that end without a result: expired ones are found, a stopping worker gives its own back."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable

import structlog

from core.db import in_transaction, server_cursor
from webhooks import sql

log = structlog.get_logger()

# A delivery whose worker died this often in a row is given up: it may be what they die of.
MOST_WORKERS_LOST = 20


def release(lease_ids: Iterable[uuid.UUID]) -> int:
    """Give back what is still claimed under these leases, at once; return how many deliveries."""
    leases = list(lease_ids)

    def work() -> int:
        with server_cursor() as cursor:
            found = cursor.execute(sql.FIND_LEASED, (leases,)).fetchall()
        return len(_return(found, leases))

    return in_transaction(work) if leases else 0


def expire(limit: int = 1000) -> int:
    """Take back deliveries whose lease has ended: their worker died.  Return how many."""

    def work() -> list[uuid.UUID]:
        with server_cursor() as cursor:
            found = cursor.execute(sql.FIND_EXPIRED, (limit,)).fetchall()
        returned = _return(found, None)
        if returned:
            _note_lost(returned)
        return returned

    returned = in_transaction(work)
    if returned:
        log.warning("leases_expired", deliveries=len(returned))
    return len(returned)


def _note_lost(delivery_ids: list[uuid.UUID]) -> None:
    """Add an attempt that says what happened; what keeps losing its workers has to wait longer each time."""
    with server_cursor() as cursor:
        cursor.execute(sql.NOTE_LOST_ATTEMPTS, (delivery_ids,))
        before = {delivery_id: lost for delivery_id, lost in cursor.fetchall() if lost}
        if before:
            cursor.execute(
                sql.SLOW_DOWN_LOST,
                {"ids": list(before), "before": list(before.values()), "most": MOST_WORKERS_LOST},
            )


def _return(found: list[tuple[uuid.UUID, uuid.UUID]], leases: list[uuid.UUID] | None) -> list[uuid.UUID]:
    """Return to their lanes those deliveries that are still claimed; the lanes are locked first."""
    if not found:
        return []
    with server_cursor() as cursor:
        cursor.execute(sql.LOCK_LANES, {"ids": list({lane for _, lane in found}), "most": 1})
        cursor.execute(sql.RETURN_LEASED, {"ids": [delivery for delivery, _ in found], "leases": leases})
        returned = cursor.fetchall()
        by_lane = Counter(lane for _, lane in returned)
        cursor.execute(sql.RETURN_TO_LANES, {"lanes": list(by_lane), "returned": list(by_lane.values())})
    return [delivery for delivery, _ in returned]
