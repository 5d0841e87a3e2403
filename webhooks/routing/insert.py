"""Inserting deliveries, for the fan-out and for recoveries."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg

from core.ids import derive_id
from webhooks.models import DeliveryStatus
from webhooks.queues import lock_only, mark_due, mark_held

# The ORM can't insert from arrays, which is what makes a thousand deliveries one cheap statement.  A delivery that
# exists is from an earlier fan-out of the same event.  Its row is locked, so that nobody else makes one meanwhile; ON
# CONFLICT would write 48 bytes more of WAL for each.  The LIMIT makes it one look-up for each id.
INSERT_DELIVERIES = """
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_error, created_at
)
SELECT id, organization_id, event_id, subscription_id, status, t + make_interval(secs => %(delay)s), 'schedule',
       0, 0, '', t
FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
            %(statuses)s::text[]) AS d(id, organization_id, event_id, subscription_id, status),
     clock_timestamp() AS t
WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = d.id LIMIT 1) IS NULL
"""


@dataclass
class NewDeliveries:
    """Deliveries that are about to be inserted, as columns."""

    organizations: list[uuid.UUID] = field(default_factory=list)
    events: list[uuid.UUID] = field(default_factory=list)
    subscriptions: list[uuid.UUID] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    due: set[uuid.UUID] = field(default_factory=set)
    inboxes: set[uuid.UUID] = field(default_factory=set)  # those that are active
    has_inbox: bool = False
    held: set[uuid.UUID] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.events)

    def add(
        self,
        organization_id: uuid.UUID,
        event_ids: Sequence[uuid.UUID],
        subscription_id: uuid.UUID,
        is_active: bool,
        is_inbox: bool = False,
    ) -> None:
        """Add deliveries of these events to a subscription.  A disabled one loses nothing: its deliveries are held."""
        self.organizations += [organization_id] * len(event_ids)
        self.events += event_ids
        self.subscriptions += [subscription_id] * len(event_ids)
        status = DeliveryStatus.PENDING if is_active else DeliveryStatus.HELD
        self.statuses += [status.value] * len(event_ids)
        self.has_inbox |= is_inbox
        (self.held if not is_active else self.inboxes if is_inbox else self.due).add(subscription_id)

    def insert(self, delay: float, cursor: psycopg.Cursor[object]) -> None:
        """Insert the deliveries, due in `delay` seconds; `cursor.rowcount` then tells how many didn't exist."""
        if self.has_inbox:
            # An inbox is read as a log, by `created_at`.  What is inserted under this lock becomes visible in that
            # order, so a reader never goes past a delivery that isn't committed yet.
            lock_only(self.inboxes | self.due | self.held, cursor)
        if self.events:
            cursor.execute(
                INSERT_DELIVERIES,
                {
                    "ids": list(map(derive_id, self.events, self.subscriptions)),
                    "organizations": self.organizations,
                    "events": self.events,
                    "subscriptions": self.subscriptions,
                    "statuses": self.statuses,
                    "delay": delay,
                },
            )

    def mark_queues(self, delay: float, cursor: psycopg.Cursor[object]) -> None:
        """Tell the queues.  Do this last in the transaction: claims wait for the locks that it takes."""
        if self.held:
            mark_held(self.held, cursor)
        if self.due or self.inboxes:
            mark_due(self.due | self.inboxes, delay, cursor)
