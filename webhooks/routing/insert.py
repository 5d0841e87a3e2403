"""Inserting deliveries, for the fan-out and for recoveries."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import psycopg

from core.arrays import plain_array
from core.ids import derive_ids
from webhooks.models import DeliveryStatus
from webhooks.queues import lock_only, mark_due, mark_held

# The ORM can't insert from arrays, which is what makes a thousand deliveries one cheap statement.  A delivery that
# exists is from an earlier fan-out of the same event.  Its row is locked, so that nobody else makes one meanwhile; ON
# CONFLICT would write 48 bytes more of WAL for each.  The LIMIT makes it one look-up for each id.
_INSERT = """
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_error, created_at
)
SELECT id, organization_id, event_id, subscription_id, status, {due}, 'schedule', 0, 0, '', t
FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
            %(statuses)s::text[]) AS d(id, organization_id, event_id, subscription_id, status),
     clock_timestamp() AS t
WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = d.id LIMIT 1) IS NULL
"""
_IN_TIME = "t + make_interval(secs => %(delay)s)"
INSERT_DELIVERIES = _INSERT.format(due=_IN_TIME)
# The delay before the first attempt is for endpoints.  What an inbox has can be fetched at once.
_INSERT_ALSO_FOR_INBOXES = _INSERT.format(
    due=f"CASE WHEN subscription_id = ANY (%(inboxes)s::uuid[]) THEN t ELSE {_IN_TIME} END"
)


@dataclass
class NewDeliveries:
    """Deliveries that are about to be inserted, as columns of text."""

    ids: list[str] = field(default_factory=list)
    organizations: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    subscriptions: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    due: set[uuid.UUID] = field(default_factory=set)
    inboxes: set[uuid.UUID] = field(default_factory=set)  # those that are active
    has_inbox: bool = False  # also one that is disabled
    held: set[uuid.UUID] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.ids)

    def add(
        self,
        organization_id: uuid.UUID,
        event_id: uuid.UUID,
        subscription_ids: Sequence[uuid.UUID],
        status: Literal[DeliveryStatus.PENDING, DeliveryStatus.HELD],
        *,
        are_inboxes: bool = False,
    ) -> None:
        """Add the deliveries of an event.  Those for disabled subscriptions are held, so that nothing is lost."""
        self.has_inbox |= are_inboxes and bool(subscription_ids)
        count = len(subscription_ids)
        self.ids += derive_ids(event_id, subscription_ids)
        self.organizations += [str(organization_id)] * count
        self.events += [str(event_id)] * count
        self.subscriptions += map(str, subscription_ids)
        self.statuses += [status.value] * count
        active = self.inboxes if are_inboxes else self.due
        (active if status == DeliveryStatus.PENDING else self.held).update(subscription_ids)

    def columns(self) -> dict[str, str]:
        """Return the arrays that a statement inserts them from."""
        return {
            "ids": plain_array(self.ids),
            "organizations": plain_array(self.organizations),
            "events": plain_array(self.events),
            "subscriptions": plain_array(self.subscriptions),
        }

    def insert(self, delay: float, cursor: psycopg.Cursor[object]) -> None:
        """Insert the deliveries, due in `delay` seconds; `cursor.rowcount` then tells how many didn't exist.

        Those for inboxes are due at once.
        """
        if self.has_inbox:
            # An inbox is read as a log, by `created_at`.  What is inserted under this lock becomes visible in that
            # order, so a reader never goes past a delivery that isn't committed yet.
            lock_only(self.inboxes | self.due | self.held, cursor)
        if self.ids:
            columns = {**self.columns(), "statuses": plain_array(self.statuses)}
            if delay and self.inboxes:
                inboxes = plain_array(map(str, self.inboxes))
                cursor.execute(_INSERT_ALSO_FOR_INBOXES, {**columns, "delay": delay, "inboxes": inboxes})
            else:
                cursor.execute(INSERT_DELIVERIES, {**columns, "delay": delay})

    def mark_queues(self, delay: float, cursor: psycopg.Cursor[object]) -> None:
        """Tell the queues.  Do this last in the transaction: claims wait for the locks that it takes."""
        if self.held:
            mark_held(self.held, cursor)
        if self.due:
            mark_due(self.due, delay, cursor)
        if self.inboxes:
            mark_due(self.inboxes, cursor=cursor)
