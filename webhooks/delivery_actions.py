"""What an operator or integrator can do to single deliveries: retry, replay, hold, resume, skip."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from django.conf import settings
from django.db.models import Case, F, Value, When
from django.db.models.functions import Now
from psycopg.rows import scalar_row

from core.db import after_transaction, in_transaction, server_cursor
from core.wakeups import WEBHOOKS, wake
from webhooks.models import Cause, Delivery, DeliveryStatus, SubscriptionQueue
from webhooks.ordering_keys import unpark
from webhooks.queues import lock_queues, mark_due
from webhooks.routing.selection import erased_among
from webhooks.states import in_delivery_states, is_leased


class DeliveryAction(Enum):
    """What to do, and with deliveries in which states (`webhooks.states`)."""

    RETRY = ("retry", ("pending", "retrying", "failed", "delivered"))
    REPLAY = ("replay", ("retrying", "failed", "delivered"))
    HOLD = ("hold", ("pending", "retrying"))
    RESUME = ("resume", ("held",))
    SKIP = ("skip", ("pending", "retrying", "held", "failed"))

    def __init__(self, verb: str, states: tuple[str, ...]) -> None:
        self.verb = verb
        self.states = states


_ALSO_WHILE_DISABLED = {DeliveryAction.HOLD, DeliveryAction.SKIP}
_WHY_NOT_RETRYABLE = {
    DeliveryStatus.DELIVERING: "The delivery is being sent right now.",
    DeliveryStatus.HELD: "The delivery is held; enable its subscription first.",
    DeliveryStatus.CANCELLED: "The delivery was cancelled.",
}
_WHY_NOT_SKIPPABLE = {
    DeliveryStatus.DELIVERING: "The delivery is being sent right now.",
    DeliveryStatus.DELIVERED: "The delivery was delivered.",
    DeliveryStatus.CANCELLED: "The delivery was cancelled already.",
}
_ERASED = "The event's payload was erased, so there is nothing to send."


def why_not_retryable(delivery: Delivery) -> str:
    """Return why a retry left this delivery alone, or why it can't be retried."""
    if delivery.event.is_erased:
        return _ERASED
    if is_leased(delivery.status, delivery.lease_id, delivery.next_attempt_at):
        return "A consumer has fetched the delivery from its inbox; it can be fetched again when the lease ends."
    return _WHY_NOT_RETRYABLE.get(DeliveryStatus(delivery.status), "Its subscription is disabled or deleted.")


def why_not_skippable(delivery: Delivery) -> str:
    """Return why a skip left this delivery alone."""
    if delivery.ordering_key is None:
        return "The delivery has no ordering key, so nothing waits for it."
    return _WHY_NOT_SKIPPABLE.get(DeliveryStatus(delivery.status), "Its subscription is deleted.")


@dataclass(frozen=True, slots=True)
class Applied:
    """How many deliveries an action changed.  held: those that were to be sent, but are held now."""

    changed: int = 0
    held: int = 0


def apply(action: DeliveryAction, delivery_ids: Iterable[uuid.UUID], *, announce: bool = True) -> int:
    """Apply `action` to those of the deliveries that it fits; return how many changed.

    A retry is one more attempt, now, even while the breaker is open.  A replay starts the schedule again.  A skip gives
    up a delivery that has an ordering key, so that the next of its key can be sent.  Deliveries of a deleted
    subscription and those in flight are left alone, those of erased events aren't sent again, and those of a disabled
    subscription can only be held or skipped. announce: wake the workers afterward.
    """
    ids = list(delivery_ids)
    changed = in_transaction(lambda: _apply(action, ids, action.states)).changed if ids else 0
    if changed and announce and action is not DeliveryAction.HOLD:
        after_transaction(lambda: wake(WEBHOOKS))
    return changed


def apply_in_run(
    action: DeliveryAction, delivery_ids: Iterable[uuid.UUID], states: Iterable[str], *, probe: bool
) -> Applied:
    """Retry or replay those of the deliveries that are in one of `states`, in the caller's transaction.

    Those of a disabled subscription become held, and go out when it is enabled.  Pauses stay, so that many retries
    don't send many requests to an endpoint that is down.  probe: let one request through at once, whatever the breaker
    says.
    """
    ids = list(delivery_ids)
    return _apply(action, ids, tuple(states), hold_if_disabled=True, probe=probe) if ids else Applied()


def _apply(
    action: DeliveryAction,
    ids: list[uuid.UUID],
    states: tuple[str, ...],
    *,
    hold_if_disabled: bool = False,
    probe: bool = True,
) -> Applied:
    lock_queues(Delivery.objects.filter(id__in=ids).values_list("subscription_id", flat=True).distinct())
    fitting = Delivery.objects.filter(in_delivery_states(states), id__in=ids, subscription__deleted_at=None)
    if action not in _ALSO_WHILE_DISABLED and not hold_if_disabled:
        fitting = fitting.filter(subscription__is_active=True)
    if action is DeliveryAction.SKIP:
        fitting = fitting.exclude(ordering_key=None)
    # Locked: no worker is claiming these deliveries, because their queues were locked just before.
    chosen: list[Any] = list(
        fitting.select_for_update(of=("self",)).values_list(
            "id", "subscription_id", "subscription__is_active", "event_id", "ordering_key", named=True
        )
    )
    if action in {DeliveryAction.RETRY, DeliveryAction.REPLAY}:  # an attempt could only fail
        erased = erased_among([row.event_id for row in chosen])
        chosen = [row for row in chosen if row.event_id not in erased]
    to_send = [row.id for row in chosen if row.subscription__is_active or action in _ALSO_WHILE_DISABLED]
    to_hold = [row.id for row in chosen if not row.subscription__is_active and action not in _ALSO_WHILE_DISABLED]
    Delivery.objects.filter(id__in=to_send).update(**_changes(action))
    if to_hold:
        Delivery.objects.filter(id__in=to_hold).update(**{**_changes(action), "status": DeliveryStatus.HELD})
    if action is DeliveryAction.SKIP:
        with server_cursor(scalar_row) as cursor:
            mark_due(unpark({(row.subscription_id, row.ordering_key) for row in chosen}, cursor))
        return Applied(len(chosen))
    queues = list({row.subscription_id for row in chosen if row.subscription__is_active})
    if queues and action is not DeliveryAction.HOLD:
        mark_due(queues)
        if action is DeliveryAction.RETRY and probe:
            # Somebody wants it now: let one request through, even while the breaker is open.
            SubscriptionQueue.objects.filter(pk__in=queues).update(paused_until=None)
    return Applied(len(chosen), len(to_hold))


def _changes(action: DeliveryAction) -> dict[str, object]:
    """Return the columns that the action sets."""
    if action is DeliveryAction.HOLD:
        # From when it is held: `upkeep.held_retention` counts from there.
        return {"status": DeliveryStatus.HELD, "next_attempt_at": Now()}
    if action is DeliveryAction.SKIP:
        return {"status": DeliveryStatus.CANCELLED, "next_attempt_at": None, "completed_at": Now()}
    due_now: dict[str, object] = {"status": DeliveryStatus.PENDING, "next_attempt_at": Now()}
    if action is DeliveryAction.RESUME:
        return due_now
    if action is DeliveryAction.REPLAY:
        return {**due_now, "cause": Cause.REPLAY, "completed_at": None, "attempts_used": 0}
    # One more attempt for what was settled; a pending delivery continues its schedule.
    last = len(settings.DELIVERY_RETRY_SCHEDULE) - 1
    used = Case(When(status=DeliveryStatus.PENDING, then=F("attempts_used")), default=Value(last))
    return {**due_now, "cause": Cause.MANUAL, "completed_at": None, "attempts_used": used}
