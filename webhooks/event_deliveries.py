"""The deliveries of events, for the app below, which shows them with the events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Coalesce, Now
from psycopg.rows import scalar_row

from core.db import server_cursor
from core.query import newest
from events.delivery_lookup import DeliveryLine
from webhooks.destinations.outcome import Failure
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus
from webhooks.ordering_keys import unpark
from webhooks.queues import lock_queues, mark_due
from webhooks.states import next_attempt_at, state_of

# The same words in the same order as the condition of the index webhooks_delivery_undelivered.
_WAITING_OR_FAILED = ("pending", "held", "failed")

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
        of_event = Delivery.objects.filter(event_id=OuterRef("id"))
        waiting, delivering = of_event.filter(status__in=_WAITING_OR_FAILED), of_event.filter(status="delivering")
        return Q(Exists(waiting)) | Q(Exists(delivering))

    def undelivered_event_ids(
        self,
        organization_id: uuid.UUID,
        event_filters: Mapping[str, Any],
        beyond: uuid.UUID | None,
        most: int,
        *,
        ascending: bool = False,
    ) -> Sequence[uuid.UUID]:
        filters: dict[str, Any] = {f"event__{lookup}": value for lookup, value in event_filters.items()}
        if beyond is not None:
            filters["event_id__gt" if ascending else "event_id__lt"] = beyond
        sign = "" if ascending else "-"
        rows = Delivery.objects.filter(organization_id=organization_id, **filters)
        waiting = rows.filter(status__in=_WAITING_OR_FAILED).order_by(f"{sign}event_id").values("event_id")
        # By the index of leases, which holds what all organizations have in flight.  One statement, because a delivery
        # may move from one part to the other.
        by_event = Coalesce("event_id", "event_id")
        delivering = rows.filter(status="delivering").order_by(by_event.asc() if ascending else by_event.desc())
        found = waiting.distinct()[:most].union(delivering.values("event_id")[:most])
        return [row["event_id"] for row in found.order_by(f"{sign}event_id")[:most]]

    def of_event(self, event_id: uuid.UUID, most: int) -> Sequence[DeliveryLine]:
        oldest = newest(Delivery.objects.filter(event_id=event_id), most, ("created_at", "id"))
        return [
            DeliveryLine(
                row.id,
                row.subscription_id,
                state_of(row),
                row.attempt_count,
                next_attempt_at(row),
                row.completed_at,
            )
            for row in oldest
        ]

    def erase(self, event_id: uuid.UUID) -> int:
        of_event = Delivery.objects.filter(event_id=event_id)
        # The endpoint may have sent back what it received, even in headers, and the request may have a CloudEvent's
        # headers.
        DeliveryAttempt.objects.filter(delivery_id__in=list(of_event.values_list("id", flat=True))).update(
            response_body="", error_detail="", sealed_exchange=None
        )
        rows = of_event.values_list("subscription_id", "ordering_key")
        keyed = {(subscription_id, key) for subscription_id, key in rows if key is not None}
        lock_queues(queue for queue, _ in keyed)
        cancelled = of_event.filter(status__in=[DeliveryStatus.PENDING, DeliveryStatus.HELD]).update(
            status=DeliveryStatus.CANCELLED,
            last_error=Failure.PAYLOAD_ERASED.value,
            completed_at=Now(),
            next_attempt_at=None,
            lease_id=None,
        )
        if keyed:
            # No retry of it can succeed, so it must not block its key.
            failed = of_event.filter(status=DeliveryStatus.FAILED).exclude(ordering_key=None)
            failed.update(last_error=Failure.PAYLOAD_ERASED.value, last_status_code=None)
            with server_cursor(scalar_row) as cursor:
                mark_due(unpark(keyed, cursor))
        return cancelled

    def waiting(self, organization_id: uuid.UUID, most: int) -> int:
        with server_cursor(scalar_row) as cursor:
            parameters = {"organization": organization_id, "most": most}
            # Prepared at once: planning it takes a hundred times as long as running it.
            number = cursor.execute(_COUNT_WAITING, parameters, prepare=True).fetchone()
        return number or 0
