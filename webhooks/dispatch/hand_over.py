"""Hands new deliveries from the fan-out straight to this process's sender, which saves a transaction and an update.

A delivery is handed over if the sender has a place for it, within the share that a claim would give its queue, and if
the queue accepts deliveries, has nothing due, no backlog, and no rate limit, and has room in its concurrency window.
All others are claimed (`claim`).
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import psycopg
from django.conf import settings
from psycopg.rows import class_row

from core.arrays import plain_array
from core.db import server_cursor
from core.ids import new_id
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.kinds import ENDPOINT_COLUMNS, SealedEndpoint
from webhooks.dispatch.claim import KEEPS_EXCHANGES, Claim
from webhooks.dispatch.delivery import ClaimedDelivery, DatabaseClock
from webhooks.dispatch.sender import Sender
from webhooks.dispatch.sender_shares import share_places
from webhooks.lease_lengths import lease_seconds
from webhooks.queues import IS_IDLE, IS_OPEN, ROOM
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.sender_interface import QueueDemand

# Deliveries of larger rounds are claimed, many at a time.
MOST_DELIVERIES = 256
# How long this thread then sleeps, so that the sender's has the interpreter at once.
SENDER_FIRST_SECONDS = 0.00005

# SQL, here and below, because these are sent in the round's pipeline, and their plans are kept.  Locks every queue that
# the round has deliveries for, in the order of their ids, as everywhere: the round waits for no other lock while it
# holds these.
_LOCK_QUEUES = f"""
SELECT q.subscription_id, q.organization_id, extract(epoch FROM clock_timestamp())::float8 AS now,
       {ENDPOINT_COLUMNS}, {KEEPS_EXCHANGES} AS keeps_exchanges
FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
WHERE q.subscription_id = ANY (%(ids)s::uuid[])
ORDER BY q.subscription_id
FOR UPDATE OF q
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class _Queue(SealedEndpoint):
    """A row of _LOCK_QUEUES.  now: seconds since the epoch."""

    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    now: float
    keeps_exchanges: bool


# One statement inserts from arrays, counts in the queues, and reads the events.  It decides under the locks of the
# queues which deliveries can be sent at once, so that the round needn't wait for the queues' state in between: the
# others are due, as if the fan-out had inserted them for claims.  A delivery that exists, from an earlier fan-out of
# the same event, is neither inserted nor counted.
INSERT_LEASED = f"""
WITH queue AS MATERIALIZED (
    SELECT q.* FROM unnest(%(queues)s::uuid[]) AS wanted(id) CROSS JOIN LATERAL (
        SELECT q.subscription_id,
               {IS_OPEN} AS is_open, {IS_IDLE} AS is_idle, {ROOM} AS room
        FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
        WHERE q.subscription_id = wanted.id LIMIT 1
    ) AS q
), inserted AS (
    INSERT INTO webhooks_delivery (
        id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
        attempts_used, attempt_count, last_error, created_at, lease_id, lease_expires_at
    )
    SELECT new.id, new.organization_id, new.event_id, new.subscription_id,
           CASE WHEN fits THEN 'delivering' ELSE 'pending' END, t, 'schedule', 0, 0, '', t,
           CASE WHEN fits THEN %(lease)s::uuid END,
           CASE WHEN fits THEN t + make_interval(secs => %(lease_seconds)s) END
    FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
                %(numbers)s::int[]) AS new(id, organization_id, event_id, subscription_id, number)
         JOIN queue USING (subscription_id),
         LATERAL (SELECT queue.is_idle AND new.number <= queue.room AS fits) AS decided, clock_timestamp() AS t
    WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = new.id LIMIT 1) IS NULL
    RETURNING id, event_id, subscription_id, status = 'delivering' AS is_leased
), counted AS (
    UPDATE webhooks_subscriptionqueue q SET
        in_flight = q.in_flight + i.leased,
        last_claimed_at = CASE WHEN i.leased > 0 THEN clock_timestamp() ELSE q.last_claimed_at END,
        next_due_at = CASE WHEN i.due > 0 THEN least(q.next_due_at, now()) ELSE q.next_due_at END,
        needs_resync = q.needs_resync OR (i.due > 0 AND NOT q.accepts_deliveries)
    FROM (
        SELECT subscription_id, count(*) FILTER (WHERE is_leased) AS leased,
               count(*) FILTER (WHERE NOT is_leased) AS due
        FROM inserted GROUP BY subscription_id
    ) AS i
    WHERE q.subscription_id = i.subscription_id
)
SELECT i.id AS delivery_id, i.subscription_id, i.is_leased, queue.is_open AND queue.room > 0 AS is_claimable,
       e.id AS event_id, e.type AS event_type, e.created_at AS event_created_at, e.data AS event_data,
       e.packed_request_id AS event_request_id, e.trace AS event_trace, e.cloudevent AS event_cloudevent
FROM inserted i JOIN queue USING (subscription_id) LEFT JOIN LATERAL (
    SELECT * FROM events_event WHERE i.is_leased AND id = i.event_id LIMIT 1
) AS e ON true
"""  # noqa: S608 - constants of ours


class _Inserted(msgspec.Struct, frozen=True):
    """A row of INSERT_LEASED.  The event is that of a delivery that is leased.

    is_claimable: the queue accepted requests before the round, and had room for more.
    """

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    is_leased: bool
    is_claimable: bool
    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    event_request_id: bytes | None
    event_trace: str | None
    event_cloudevent: str | None


class SenderHandOver:
    """A `webhooks.routing.sender_interface.HandOver` to the sender of this process."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._forget()

    def _forget(self) -> None:
        self._reserved = 0
        self._locking: psycopg.Cursor[_Queue] | None = None
        self._inserting: psycopg.Cursor[_Inserted] | None = None
        self._rows: list[_Inserted] = []
        self._lease_id = new_id()
        self._started = 0.0

    def abandon(self) -> None:
        self._sender.release_places(self._reserved)
        self._forget()

    def choose(self, demands: Sequence[QueueDemand], others: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
        total = sum(demand.deliveries for demand in demands)
        if not 0 < total <= MOST_DELIVERIES or settings.DELIVERY_RETRY_SCHEDULE[0] or settings.DISABLE_WEBHOOK_DELIVERY:
            return {}
        self._reserved = self._sender.reserve(total)
        if not self._reserved:
            return {}
        shares = share_places(
            demands,
            self._reserved,
            self._sender.occupancy(),
            self._sender.free_places(),
            self._sender.unoccupied_places(),
        )
        if shares:
            self._started = time.monotonic()
            self._locking = server_cursor(class_row(_Queue))
            self._locking.execute(_LOCK_QUEUES, {"ids": [*(one.subscription_id for one in demands), *others]})
        return shares

    def insert(self, deliveries: NewDeliveries) -> None:
        self._inserting = server_cursor(class_row(_Inserted))
        self._inserting.execute(
            INSERT_LEASED,
            {
                **deliveries.columns(),
                "numbers": plain_array(_numbers(deliveries.subscriptions)),
                "queues": plain_array(set(deliveries.subscriptions)),
                "lease": self._lease_id,
                "lease_seconds": lease_seconds(),
                "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION,
            },
        )

    def inserted(self) -> int:
        if self._inserting is not None:
            self._rows = self._inserting.fetchall()
            self._inserting.close()
            self._inserting = None
        return len(self._rows)

    def left_to_claims(self) -> int:
        # The next result of a full queue has the others claimed.  A pause ends by itself, and a poll notices.
        return sum(row.is_claimable and not row.is_leased for row in self._rows)

    def begin(self) -> None:
        leased = [row for row in self._rows if row.is_leased]
        if not leased or self._locking is None:
            self.abandon()
            return
        queues = {queue.subscription_id: queue for queue in self._locking.fetchall()}
        endpoints = {one: queues[one].open() for one in {row.subscription_id for row in leased}}
        claimed = Claim(
            [self._claimed(row, queues[row.subscription_id], endpoints[row.subscription_id]) for row in leased],
            clock=DatabaseClock(queues[leased[0].subscription_id].now, self._started),
            lease_ends=self._started + lease_seconds(),
        )
        reserved = self._reserved
        self._forget()
        self._sender.take(claimed, reserved)
        # Otherwise the sender's thread would wait for the interpreter until this one has logged the round.
        time.sleep(SENDER_FIRST_SECONDS)

    def _claimed(self, row: _Inserted, queue: _Queue, endpoint: Endpoint) -> ClaimedDelivery:
        return ClaimedDelivery(
            delivery_id=row.delivery_id,
            subscription_id=row.subscription_id,
            organization_id=queue.organization_id,
            lease_id=self._lease_id,
            attempts_used=0,
            cause="schedule",
            event_id=row.event_id,
            event_type=row.event_type,
            event_created_at=row.event_created_at,
            event_data=row.event_data,
            endpoint=endpoint,
            event_request_id=row.event_request_id,
            event_trace=row.event_trace,
            keeps_exchange=queue.keeps_exchanges,
            event_cloudevent=row.event_cloudevent,
        )


def _numbers(queues: Iterable[str]) -> Iterator[int]:
    """Return the number of each delivery within its queue, from 1."""
    numbers: Counter[str] = Counter()
    for queue in queues:
        numbers[queue] += 1
        yield numbers[queue]
