"""Deliveries chosen by the words that the API, the admin, and the commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Q, QuerySet

from webhooks.models import Delivery
from webhooks.states import in_delivery_state, in_delivery_states

_CONDITIONS: dict[str, Callable[[Any], Q]] = {
    "delivery": lambda value: Q(id=value),
    "deliveries": lambda value: Q(id__in=value),
    "event": lambda value: Q(event_id=value),
    "events": lambda value: Q(event_id__in=value),
    "subscription": lambda value: Q(subscription_id=value),
    "org": lambda value: Q(organization_id=value),
    "status": in_delivery_state,
    "statuses": in_delivery_states,
    "since": lambda value: Q(created_at__gte=value),
    "until": lambda value: Q(created_at__lt=value),
    "failed_since": lambda value: Q(completed_at__gte=value),
}
FILTERS = frozenset(_CONDITIONS)


def matching_deliveries(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return the deliveries that meet all `filters`, which are named as in FILTERS.

    status: one of DeliveryState.  statuses, deliveries, events: any of several.
    """
    rows = Delivery.objects.all()
    for name, value in filters.items():
        rows = rows.filter(_CONDITIONS[name](value))
    return rows
