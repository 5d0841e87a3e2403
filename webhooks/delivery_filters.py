"""Deliveries chosen by the words that the API, the admin, and the commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from webhooks.models import Delivery

_COLUMNS = {
    "delivery": "id",
    "event": "event_id",
    "subscription": "subscription_id",
    "org": "organization_id",
    "status": "status",
    "since": "created_at__gte",
    "until": "created_at__lt",
}


def matching_deliveries(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return the deliveries that `filters` describe: delivery, event, subscription, org, status, since, until."""
    return Delivery.objects.filter(**{_COLUMNS[name]: value for name, value in filters.items()})
