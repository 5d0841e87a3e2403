"""Deliveries chosen by the words that the API, the admin, and the commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Q, QuerySet

from webhooks.models import Delivery
from webhooks.states import in_delivery_state, in_delivery_states


def outcome_name(error: str, status_code: int | None) -> str:
    """Return the name of the outcome of a failed last attempt: `timeout`, `http_status 503`."""
    return f"{error} {status_code}" if status_code is not None else error


def is_outcome(name: str) -> bool:
    """Return whether this can be the name of an outcome."""
    return bool(_OUTCOME.fullmatch(name))


def of_outcome(name: str) -> Q:
    """Return the condition for deliveries with the outcome of this name."""
    error, status_code = split_outcome(name)
    return Q(last_error=error, last_status_code=status_code)


def split_outcome(name: str) -> tuple[str, int | None]:
    """Return the error class and the status code of an outcome."""
    error, _, status_code = name.partition(" ")
    return error, int(status_code) if status_code else None


_OUTCOME = re.compile(r"[a-z_]{1,30}( [0-9]{3})?", re.ASCII)
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
    "outcome": of_outcome,
    "failed_since": lambda value: Q(completed_at__gte=value),
}
FILTERS = frozenset(_CONDITIONS)


def matching_deliveries(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return the deliveries that meet all `filters`, which are named as in FILTERS.

    outcome: of the last attempt, which failed, as in `outcome_name`. status: one of DeliveryState.  statuses,
    deliveries, events: any of several.
    """
    rows = Delivery.objects.all()
    for name, value in filters.items():
        rows = rows.filter(_CONDITIONS[name](value))
    return rows
