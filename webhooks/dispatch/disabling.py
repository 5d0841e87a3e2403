"""Disabling subscriptions whose endpoints are gone or only fail, in the transaction that records the results."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.queue_update import QueueUpdate
from webhooks.models import Delivery, DeliveryStatus
from webhooks.queues import mark_due
from webhooks.subscriptions import disable_automatically


def disable_unwanted(
    queues: Mapping[uuid.UUID, QueueUpdate], by_queue: Mapping[uuid.UUID, Sequence[AttemptResult]]
) -> dict[uuid.UUID, str]:
    """Disable subscriptions because of their results; return those that were disabled, with the reasons."""
    disabled = {}
    for key, update in queues.items():
        if update.disabled_cause is not None and update.queue.accepts_deliveries:
            if disable_automatically(key, update.disabled_cause, update.disabled_reason):
                disabled[key] = update.disabled_reason
            else:
                _go_on(key, by_queue[key])
    return disabled


def _go_on(subscription_id: uuid.UUID, results: Sequence[AttemptResult]) -> None:
    """Resume deliveries that were held because their subscription was to be disabled: it wasn't."""
    ids = [result.delivery.delivery_id for result in results]
    Delivery.objects.filter(pk__in=ids, status=DeliveryStatus.HELD).update(status=DeliveryStatus.PENDING)
    mark_due([subscription_id])
