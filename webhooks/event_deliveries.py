"""The deliveries of events, for the layer below, which shows them with the events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Exists, OuterRef, Q

from core.db import server_cursor
from events.delivery_lookup import DeliveryLine
from webhooks.models import Delivery
from webhooks.states import delivery_state, next_attempt_at

# The same words in the same order as the condition of the index webhooks_delivery_undelivered.
_UNDELIVERED = ("pending", "delivering", "held", "failed")

# SQL because the ORM would select the primary key, for which PostgreSQL must read the rows beside the index.  In three
# parts, because what waits for its first attempt, what waits for another one, and what is held are in different places
# of two indexes.
_COUNT_WAITING = """
SELECT count(*) FROM (
    (SELECT 1 FROM webhooks_delivery
     WHERE organization_id = %(organization)s AND status = 'pending' AND last_error = '' LIMIT %(most)s)
    UNION ALL
    (SELECT 1 FROM webhooks_delivery
     WHERE organization_id = %(organization)s AND status = 'pending' AND NOT last_error = '' LIMIT %(most)s)
    UNION ALL
    (SELECT 1 FROM webhooks_delivery WHERE organization_id = %(organization)s AND status = 'held' LIMIT %(most)s)
    LIMIT %(most)s
) AS waiting
"""


class EventDeliveries:
    """An `events.delivery_lookup.DeliveryLookup` over the table of deliveries."""

    def undelivered(self) -> Q:
        return Q(Exists(Delivery.objects.filter(event_id=OuterRef("id"), status__in=_UNDELIVERED)))

    def undelivered_event_ids(
        self, organization_id: uuid.UUID, event_filters: Mapping[str, Any], before: uuid.UUID | None, most: int
    ) -> Sequence[uuid.UUID]:
        rows = Delivery.objects.filter(
            organization_id=organization_id,
            status__in=_UNDELIVERED,
            **{f"event__{lookup}": value for lookup, value in event_filters.items()},
        )
        if before is not None:
            rows = rows.filter(event_id__lt=before)
        return list(rows.order_by("-event_id").values_list("event_id", flat=True).distinct()[:most])

    def of_event(self, event_id: uuid.UUID, most: int) -> Sequence[DeliveryLine]:
        rows = Delivery.objects.filter(event_id=event_id).order_by("created_at", "id")
        return [
            DeliveryLine(
                row.id,
                row.subscription_id,
                delivery_state(row.status, row.last_error),
                row.attempt_count,
                next_attempt_at(row),
                row.completed_at,
            )
            for row in rows[:most]
        ]

    def waiting(self, organization_id: uuid.UUID, most: int) -> int:
        with server_cursor() as cursor:
            row = cursor.execute(_COUNT_WAITING, {"organization": organization_id, "most": most}).fetchone()
        return int(row[0]) if row else 0
