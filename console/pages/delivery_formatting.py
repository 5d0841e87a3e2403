"""Deliveries as the pages of events, subscriptions and deliveries show them."""

from __future__ import annotations

import datetime
from typing import Any

from django.utils.safestring import SafeString

from console.formatting import badge, object_link, table
from webhooks.models import Delivery, DeliveryStatus


def delivery_result(row: Delivery) -> str:
    """Return what the last attempt brought, in a word or two."""
    return " ".join(str(part) for part in (row.last_status_code, row.last_error) if part) or "-"


def delivery_table(deliveries: Any) -> SafeString:
    """Return deliveries as a table with links to each and its subscription."""
    return table(
        ("delivery", "subscription", "status", "attempts", "last result", "next attempt", "done"),
        (
            (
                object_link(row, str(row.pk)),
                object_link(row.subscription),
                badge(row.status),
                row.attempt_count,
                delivery_result(row),
                time_shown(row.next_attempt_at if row.status == DeliveryStatus.PENDING else None),
                time_shown(row.completed_at),
            )
            for row in deliveries
        ),
    )


def time_shown(moment: datetime.datetime | None) -> str:
    """Return a time in UTC to the second, or a dash."""
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else "-"
