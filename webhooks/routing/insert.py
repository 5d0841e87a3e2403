"""Inserting deliveries, for the fan-out and for recoveries."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import psycopg

from core.arrays import plain_array, text_array
from core.db import wait_for_results
from core.ids import derive_ids
from webhooks.models import DeliveryStatus
from webhooks.ordering_keys import EARLIER_IS_UNFINISHED, PARKED_UNTIL
from webhooks.queues import lock_only, mark_due, mark_held

# The ORM can't insert from arrays, which is what makes a thousand deliveries one cheap statement.  A delivery that
# exists comes from an earlier fan-out of the same event.  The event's row is locked, so that no one else can insert one
# meanwhile; ON CONFLICT would write 48 more bytes of WAL for each.  With the LIMIT, it is one look-up for each id.
_INSERT = """
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_error, created_at{and_type}
)
SELECT id, organization_id, event_id, subscription_id, status, {due}, 'schedule', 0, 0, '', t{and_type}
FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
            %(statuses)s::text[]{types}) AS d(id, organization_id, event_id, subscription_id, status{and_type}),
     clock_timestamp() AS t
WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = d.id LIMIT 1) IS NULL
"""
# Where an insertion is divided, each piece has so many deliveries: they take some milliseconds.
PIECE = 100
_IN_TIME = "t + make_interval(secs => %(delay)s)"
INSERT_DELIVERIES = _INSERT.format(due=_IN_TIME, and_type="", types="")
# The delay before the first attempt is for endpoints.  What an inbox has can be fetched at once.
_INSERT_ALSO_FOR_INBOXES = _INSERT.format(
    due=f"CASE WHEN subscription_id = ANY (%(inboxes)s::uuid[]) THEN t ELSE {_IN_TIME} END",
    and_type=", inbox_type",
    types=", %(types)s::text[]",
)


# For those with an ordering key, under the locks of their queues: one that has to wait is parked
# (`webhooks.ordering_keys`).
INSERT_ORDERED = f"""
WITH new AS (
    SELECT d.*, row_number() OVER (PARTITION BY subscription_id, ordering_key ORDER BY ordered_at, event_id) AS number
    FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
                %(statuses)s::text[], %(keys)s::text[], %(times)s::timestamptz[])
             AS d(id, organization_id, event_id, subscription_id, status, ordering_key, ordered_at)
    WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = d.id LIMIT 1) IS NULL
)
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_error, created_at, ordering_key, ordered_at
)
SELECT id, organization_id, event_id, subscription_id, status,
       CASE WHEN status = 'pending' AND (number > 1 OR {EARLIER_IS_UNFINISHED})
            THEN %(until)s ELSE t + make_interval(secs => %(delay)s) END,
       'schedule', 0, 0, '', t, ordering_key, ordered_at
FROM new AS d, clock_timestamp() AS t
"""  # noqa: S608 - a constant of ours
# SQL, because it is sent in the same pipeline.
HAS_ORDERED = """
UPDATE webhooks_subscriptionqueue SET has_ordered = true WHERE subscription_id = ANY(%s::uuid[]) AND NOT has_ordered
"""


@dataclass
class _Ordered:
    """The columns of deliveries with an ordering key."""

    ids: list[str] = field(default_factory=list)
    organizations: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    subscriptions: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, str]:
        """Return the arrays that a statement inserts them from."""
        return {
            "ids": plain_array(self.ids),
            "organizations": plain_array(self.organizations),
            "events": plain_array(self.events),
            "subscriptions": plain_array(self.subscriptions),
            "statuses": plain_array(self.statuses),
            "keys": text_array(self.keys),
            "times": plain_array(self.times),
        }


@dataclass
class NewDeliveries:
    """Deliveries that are about to be inserted, as columns of text."""

    ids: list[str] = field(default_factory=list)
    organizations: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    subscriptions: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    inbox_types: list[str | None] = field(default_factory=list)
    due: set[uuid.UUID] = field(default_factory=set)
    inboxes: set[uuid.UUID] = field(default_factory=set)  # those that are active
    has_inbox: bool = False  # also one that is disabled
    held: set[uuid.UUID] = field(default_factory=set)
    ordered: _Ordered = field(default_factory=_Ordered)
    inserted_before: int = 0  # by all pieces but the last one

    def __len__(self) -> int:
        return len(self.ids) + len(self.ordered.keys)

    def add(
        self,
        organization_id: uuid.UUID,
        event_id: uuid.UUID,
        subscription_ids: Sequence[uuid.UUID],
        status: Literal[DeliveryStatus.PENDING, DeliveryStatus.HELD],
        *,
        inbox_type: str | None = None,
    ) -> None:
        """Add the deliveries of an event.  Those for disabled subscriptions are held, so that nothing is lost.

        inbox_type: the event's type, if the subscriptions are inboxes.
        """
        if not subscription_ids:  # which is what most calls are
            return
        are_inboxes = inbox_type is not None
        self.has_inbox |= are_inboxes
        count = len(subscription_ids)
        self.ids += derive_ids(event_id, subscription_ids)
        self.organizations += [str(organization_id)] * count
        self.events += [str(event_id)] * count
        self.subscriptions += map(str, subscription_ids)
        self.statuses += [status.value] * count
        self.inbox_types += [inbox_type] * count
        active = self.inboxes if are_inboxes else self.due
        (active if status == DeliveryStatus.PENDING else self.held).update(subscription_ids)

    def add_ordered(
        self,
        organization_id: uuid.UUID,
        event_id: uuid.UUID,
        subscription_id: uuid.UUID,
        status: Literal[DeliveryStatus.PENDING, DeliveryStatus.HELD],
        key: str,
        accepted_at: datetime.datetime,
    ) -> None:
        """Add a delivery of an event with an ordering key for an ordered subscription."""
        rows = self.ordered
        rows.ids += derive_ids(event_id, (subscription_id,))
        rows.organizations.append(str(organization_id))
        rows.events.append(str(event_id))
        rows.subscriptions.append(str(subscription_id))
        rows.statuses.append(status.value)
        rows.keys.append(key)
        rows.times.append(accepted_at.isoformat())
        (self.due if status == DeliveryStatus.PENDING else self.held).add(subscription_id)

    def columns(self, piece: slice = slice(None)) -> dict[str, str]:
        """Return the arrays that a statement inserts them from."""
        return {
            "ids": plain_array(self.ids[piece]),
            "organizations": plain_array(self.organizations[piece]),
            "events": plain_array(self.events[piece]),
            "subscriptions": plain_array(self.subscriptions[piece]),
        }

    def insert(
        self,
        delay: float,
        cursor: psycopg.Cursor[object],
        ordering: psycopg.Cursor[object],
        between_pieces: Callable[[], None] | None = None,
    ) -> None:
        """Insert the deliveries, due in `delay` seconds; `inserted` of the cursors then returns how many didn't exist.

        Those for inboxes are due at once.

        between_pieces: called after each PIECE of them, unless a lock is held meanwhile.
        """
        if self.has_inbox or self.ordered.keys:
            # An inbox is read as a log, by `created_at`.  What is inserted under this lock becomes visible in that
            # order, so a reader never gets ahead of a delivery that isn't committed yet.
            lock_only(self.inboxes | self.due | self.held, cursor)
        if between_pieces is not None and not self.has_inbox and not self.ordered.keys:
            self._insert_in_pieces(delay, cursor, between_pieces)
        elif self.ids:
            columns = {**self.columns(), "statuses": plain_array(self.statuses)}
            if self.has_inbox:
                inboxes, types = plain_array(self.inboxes), text_array(self.inbox_types)
                parameters = {**columns, "delay": delay, "inboxes": inboxes, "types": types}
                cursor.execute(_INSERT_ALSO_FOR_INBOXES, parameters)
            else:
                cursor.execute(INSERT_DELIVERIES, {**columns, "delay": delay})
        if self.ordered.keys:
            ordering.execute(HAS_ORDERED, (list(set(self.ordered.subscriptions)),))
            ordering.execute(INSERT_ORDERED, {**self.ordered.columns(), "delay": delay, "until": PARKED_UNTIL})

    def _insert_in_pieces(
        self, delay: float, cursor: psycopg.Cursor[object], between_pieces: Callable[[], None]
    ) -> None:
        for first in range(0, len(self.ids), PIECE):
            if first:
                wait_for_results()
                self.inserted_before += cursor.rowcount
                between_pieces()
            piece = slice(first, first + PIECE)
            columns = {**self.columns(piece), "statuses": plain_array(self.statuses[piece])}
            cursor.execute(INSERT_DELIVERIES, {**columns, "delay": delay})

    def inserted(self, cursor: psycopg.Cursor[object], ordering: psycopg.Cursor[object]) -> int:
        """Return how many deliveries `insert` made."""
        last = cursor.rowcount if self.ids else 0
        return self.inserted_before + last + (ordering.rowcount if self.ordered.keys else 0)

    def mark_queues(self, delay: float, cursor: psycopg.Cursor[object]) -> None:
        """Mark the queues as due or held.  Do this last in the transaction: claims wait for the locks that it takes."""
        if self.held:
            mark_held(self.held, cursor)
        if self.due:
            mark_due(self.due, delay, cursor)
        if self.inboxes:
            mark_due(self.inboxes, cursor=cursor)
