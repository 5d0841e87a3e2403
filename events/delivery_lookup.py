"""What events need to know about their deliveries, which belong to an app above this one.

The app that has the deliveries registers its DeliveryLookup when Django starts.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.db.models import Q

DELIVERY_STATUSES = ("pending", "retrying", "delivering", "delivered", "failed", "held", "cancelled")


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """One of an event's deliveries, as the event shows it.  status: one of DELIVERY_STATUSES."""

    id: uuid.UUID
    subscription_id: uuid.UUID
    status: str
    attempt_count: int
    next_attempt_at: datetime.datetime | None
    completed_at: datetime.datetime | None


class DeliveryLookup(Protocol):
    """Finds deliveries by their events.  An event is undelivered while some subscription still has to receive it."""

    def undelivered(self) -> Q:
        """Return the condition, for a queryset of events, that some delivery of the event is undelivered."""

    def undelivered_event_ids(
        self,
        organization_id: uuid.UUID,
        event_filters: Mapping[str, Any],
        beyond: uuid.UUID | None,
        most: int,
        *,
        ascending: bool = False,
    ) -> Sequence[uuid.UUID]:
        """Return the ids of an organization's undelivered events, the newest first.

        event_filters: Django lookups on the event.  beyond: only ids lower than this.  most: the most ids. ascending:
        the oldest first, and only ids greater than `beyond`.
        """

    def of_event(self, event_id: uuid.UUID, most: int) -> Sequence[DeliveryLine]:
        """Return the first `most` deliveries of an event, the oldest first."""

    def erase(self, event_id: uuid.UUID) -> int:
        """Erase what attempts kept of an event's payload, and cancel the deliveries that wait; return how many.

        In the caller's transaction.
        """

    def waiting(self, organization_id: uuid.UUID, most: int) -> int:
        """Return how many deliveries of an organization are pending or held; counting stops at `most`."""


_registered: DeliveryLookup | None = None


def register(lookup: DeliveryLookup) -> None:
    """Make `lookup` the one that `delivery_lookup` returns."""
    global _registered
    _registered = lookup


def delivery_lookup() -> DeliveryLookup:
    """Return the registered lookup.  Raises LookupError when no app has registered one."""
    if _registered is None:
        raise LookupError("no app has registered a DeliveryLookup")
    return _registered
