"""What an operator or integrator can do to single deliveries: retry, replay, hold, resume."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from enum import Enum

from django.conf import settings
from django.db.models import Case, F, Value, When
from django.db.models.functions import Now

from core.db import in_transaction
from core.wakeups import WEBHOOKS, wake
from webhooks.models import Cause, Delivery, DeliveryStatus, SubscriptionQueue
from webhooks.queues import lock_queues, mark_due


class DeliveryAction(Enum):
    """What to do, and with deliveries in which states."""

    RETRY = ("retry", ("pending", "failed", "delivered"))
    REPLAY = ("replay", ("failed", "delivered"))
    HOLD = ("hold", ("pending",))
    RESUME = ("resume", ("held",))

    def __init__(self, verb: str, states: tuple[str, ...]) -> None:
        self.verb = verb
        self.states = states


def apply(action: DeliveryAction, delivery_ids: Iterable[uuid.UUID], *, announce: bool = True) -> int:
    """Do `action` to those of the deliveries that it fits; return how many changed.

    A retry is one more attempt, now, even while the breaker is open.  A replay starts the schedule anew.  Deliveries
    of a deleted subscription and those in flight are left alone, and those of a disabled one can only be held.
    announce: wake the workers afterwards.
    """
    ids = list(delivery_ids)
    changed = in_transaction(lambda: _apply(action, ids)) if ids else 0
    if changed and announce and action is not DeliveryAction.HOLD:
        wake(WEBHOOKS)
    return changed


def _apply(action: DeliveryAction, ids: list[uuid.UUID]) -> int:
    lock_queues(Delivery.objects.filter(id__in=ids).values_list("subscription_id", flat=True).distinct())
    fitting = Delivery.objects.filter(id__in=ids, status__in=action.states, subscription__deleted_at=None)
    if action is not DeliveryAction.HOLD:
        fitting = fitting.filter(subscription__is_active=True)
    # Locked: a worker whose queue isn't among those that were just locked has none of these in hand.
    chosen = list(fitting.select_for_update(of=("self",)).values_list("id", "subscription_id"))
    Delivery.objects.filter(id__in=[row[0] for row in chosen]).update(**_changes(action))
    queues = list({row[1] for row in chosen})
    if queues and action is not DeliveryAction.HOLD:
        mark_due(queues)
        if action is DeliveryAction.RETRY:
            # Somebody asks for it now: let one through, whatever the breaker says.
            SubscriptionQueue.objects.filter(pk__in=queues).update(paused_until=None)
    return len(chosen)


def _changes(action: DeliveryAction) -> dict[str, object]:
    """Return the columns that the action sets."""
    if action is DeliveryAction.HOLD:
        return {"status": DeliveryStatus.HELD}
    due_now: dict[str, object] = {"status": DeliveryStatus.PENDING, "next_attempt_at": Now()}
    if action is DeliveryAction.RESUME:
        return due_now
    if action is DeliveryAction.REPLAY:
        return {**due_now, "cause": Cause.REPLAY, "completed_at": None, "attempts_used": 0}
    # One attempt more for what was settled; a pending delivery goes on with its schedule.
    last = len(settings.DELIVERY_RETRY_SCHEDULE) - 1
    used = Case(When(status=DeliveryStatus.PENDING, then=F("attempts_used")), default=Value(last))
    return {**due_now, "cause": Cause.MANUAL, "completed_at": None, "attempts_used": used}
