"""What an operator or integrator can do to single deliveries: retry, replay, hold, resume."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from enum import Enum

from django.conf import settings

from core.db import in_transaction, server_cursor
from core.wakeups import WEBHOOKS, wake
from webhooks import sql


class Repair(Enum):
    """What to do, and with deliveries in which states."""

    RETRY = ("retry", ("pending", "failed", "delivered"))
    REPLAY = ("replay", ("failed", "delivered"))
    HOLD = ("hold", ("pending",))
    RESUME = ("resume", ("held",))

    def __init__(self, word: str, states: tuple[str, ...]) -> None:
        self.word = word
        self.states = states


def apply(repair: Repair, delivery_ids: Iterable[uuid.UUID], *, announce: bool = True) -> int:
    """Do `repair` to those of the deliveries that it fits; return how many changed.

    A retry is one more try, now, past an open circuit.  A replay starts the schedule anew.  Deliveries
    of a disabled or deleted subscription, and those in flight, are left alone.  announce: wake the
    workers afterwards.
    """
    ids = list(delivery_ids)
    changed = in_transaction(lambda: _apply(repair, ids)) if ids else 0
    if changed and announce and repair is not Repair.HOLD:
        wake(WEBHOOKS)
    return changed


def _apply(repair: Repair, ids: list[uuid.UUID]) -> int:
    with server_cursor() as cursor:
        cursor.execute("SELECT DISTINCT subscription_id FROM webhooks_delivery WHERE id = ANY(%s::uuid[])", (ids,))
        lanes = [row[0] for row in cursor.fetchall()]
        cursor.execute(sql.LOCK_LANES, {"ids": lanes, "most": 1})
        cursor.execute(
            sql.REPAIR[repair.word],
            {"ids": ids, "states": list(repair.states), "last_try": len(settings.DELIVERY_RETRY_SCHEDULE) - 1},
        )
        touched = cursor.fetchall()
        if touched and repair is not Repair.HOLD:
            lane_ids = list({row[0] for row in touched})
            cursor.execute(sql.ANNOUNCE_DUE, {"ids": lane_ids, "delay": 0})
            if repair is Repair.RETRY:
                # Somebody asks for it now: let one through, whatever the circuit says.
                cursor.execute(
                    "UPDATE webhooks_lane SET paused_until = NULL WHERE subscription_id = ANY(%s)", (lane_ids,)
                )
    return len(touched)
