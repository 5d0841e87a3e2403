"""Hands new deliveries from the fan-out straight to this process's sender, which saves a transaction and an update.

A delivery is handed over only if its queue accepts deliveries, has nothing due, no backlog, and no rate limit, and has
room in its concurrency window. All others are claimed (`claim`), and so are those beyond the share that a claim would
give.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
import psycopg
from django.conf import settings
from psycopg.rows import class_row

from core.db import server_cursor
from core.ids import new_id
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.kinds import ENDPOINT_COLUMNS, SealedEndpoint
from webhooks.dispatch.allocation import limit_hosts, share_between_organizations
from webhooks.dispatch.claim import KEEPS_EXCHANGES, Claim
from webhooks.dispatch.delivery import ClaimedDelivery, DatabaseClock
from webhooks.dispatch.sender import Sender
from webhooks.routing.insert import NewDeliveries

# Deliveries of larger rounds are claimed, many at a time.
MOST_DELIVERIES = 256
# How long this thread then sleeps, so that the sender's has the interpreter at once.
SENDER_FIRST_SECONDS = 0.00005

# SQL, because it is sent in the round's pipeline, and its plan is kept.  Locks every queue that the round has
# deliveries for, in the order of their ids, as everywhere: the round waits for no other lock while it holds these.
_LOCK_QUEUES = f"""
SELECT q.subscription_id, q.organization_id,
       q.accepts_deliveries AND NOT q.has_backlog
       AND (q.next_due_at IS NULL OR q.next_due_at > clock_timestamp())
       AND (q.paused_until IS NULL OR q.paused_until <= clock_timestamp())
       AND s.deliveries_per_second IS NULL AS is_idle,
       least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s)) - q.in_flight AS room,
       extract(epoch FROM clock_timestamp())::float8 AS now,
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
    is_idle: bool
    room: int
    now: float
    keeps_exchanges: bool


# SQL, because one statement inserts from arrays, counts in the queues, and reads the events.  A delivery that exists,
# from an earlier fan-out of the same event, is neither inserted nor counted.
INSERT_LEASED = """
WITH inserted AS (
    INSERT INTO webhooks_delivery (
        id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
        attempts_used, attempt_count, last_error, created_at, lease_id, lease_expires_at
    )
    SELECT id, organization_id, event_id, subscription_id, 'delivering', t, 'schedule', 0, 0, '', t,
           %(lease)s, t + make_interval(secs => %(lease_seconds)s)
    FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[])
             AS d(id, organization_id, event_id, subscription_id),
         clock_timestamp() AS t
    WHERE (SELECT true FROM webhooks_delivery AS existing WHERE existing.id = d.id LIMIT 1) IS NULL
    RETURNING id, event_id, subscription_id
), counted AS (
    UPDATE webhooks_subscriptionqueue q SET in_flight = q.in_flight + i.number, last_claimed_at = clock_timestamp()
    FROM (SELECT subscription_id, count(*) AS number FROM inserted GROUP BY subscription_id) AS i
    WHERE q.subscription_id = i.subscription_id
)
SELECT i.id AS delivery_id, i.subscription_id, e.id AS event_id, e.type AS event_type,
       e.created_at AS event_created_at, e.data AS event_data, e.packed_request_id AS event_request_id,
       e.trace AS event_trace, e.cloudevent AS event_cloudevent
FROM inserted i CROSS JOIN LATERAL (SELECT * FROM events_event WHERE id = i.event_id LIMIT 1) AS e
"""


class _Inserted(msgspec.Struct, frozen=True):
    """A row of INSERT_LEASED."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
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
        self._queues: dict[uuid.UUID, _Queue] = {}
        self._endpoints: dict[uuid.UUID, Endpoint] = {}
        self._inserting: psycopg.Cursor[_Inserted] | None = None
        self._rows: list[_Inserted] = []
        self._lease_id = new_id()
        self._started = 0.0

    def abandon(self) -> None:
        self._sender.release_places(self._reserved)
        self._forget()

    def choose(self, wanted: Mapping[uuid.UUID, int], others: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
        total = sum(wanted.values())
        if not 0 < total <= MOST_DELIVERIES or settings.DELIVERY_RETRY_SCHEDULE[0] or settings.DISABLE_WEBHOOK_DELIVERY:
            return {}
        self._reserved = free = self._sender.reserve(total)
        if not free:
            return {}
        self._started = time.monotonic()
        with server_cursor(class_row(_Queue)) as cursor:
            parameters = {"ids": [*wanted, *others], "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION}
            locked = cursor.execute(_LOCK_QUEUES, parameters).fetchall()
        queues = [queue for queue in locked if queue.subscription_id in wanted and queue.is_idle and queue.room > 0]
        for queue in queues:
            self._queues[queue.subscription_id] = queue
            self._endpoints[queue.subscription_id] = queue.open()
        return self._share(queues, wanted, free)

    def _share(self, queues: list[_Queue], wanted: Mapping[uuid.UUID, int], free: int) -> dict[uuid.UUID, int]:
        """Return how many deliveries each queue gets: at most its share of a claim of all free places."""
        occupancy = self._sender.occupancy()
        rooms = limit_hosts(
            [min(queue.room, wanted[queue.subscription_id]) for queue in queues],
            [self._endpoints[queue.subscription_id].host for queue in queues],
            occupancy.by_host,
            settings.MAX_CONNECTIONS_PER_HOST,
        )
        quotas = share_between_organizations(
            rooms,
            [queue.organization_id for queue in queues],
            [occupancy.by_subscription[queue.subscription_id] for queue in queues],
            occupancy.by_organization,
            self._sender.free_places() + free,
        )
        shares: dict[uuid.UUID, int] = {}
        for queue, quota in zip(queues, quotas, strict=True):
            share = min(quota, free)
            free -= share
            if share:
                shares[queue.subscription_id] = share
        return shares

    def insert(self, deliveries: NewDeliveries) -> None:
        self._inserting = server_cursor(class_row(_Inserted))
        self._inserting.execute(
            INSERT_LEASED,
            {
                **deliveries.columns(),
                "lease": self._lease_id,
                "lease_seconds": settings.DELIVERY_TIMEOUT + settings.LEASE_MARGIN,
            },
        )

    def inserted(self) -> int:
        if self._inserting is not None:
            self._rows = self._inserting.fetchall()
            self._inserting.close()
            self._inserting = None
        return len(self._rows)

    def begin(self) -> None:
        if not self._rows:
            self.abandon()
            return
        claimed = Claim(
            [self._claimed(row) for row in self._rows],
            clock=DatabaseClock(self._queues[self._rows[0].subscription_id].now, self._started),
            lease_ends=self._started + settings.DELIVERY_TIMEOUT + settings.LEASE_MARGIN,
        )
        reserved = self._reserved
        self._forget()
        self._sender.take(claimed, reserved)
        # Otherwise the sender's thread would wait for the interpreter until this one has logged the round.
        time.sleep(SENDER_FIRST_SECONDS)

    def _claimed(self, row: _Inserted) -> ClaimedDelivery:
        queue = self._queues[row.subscription_id]
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
            endpoint=self._endpoints[row.subscription_id],
            event_request_id=row.event_request_id,
            event_trace=row.event_trace,
            keeps_exchange=queue.keeps_exchanges,
            event_cloudevent=row.event_cloudevent,
        )
