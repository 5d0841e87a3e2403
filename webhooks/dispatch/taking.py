"""Takes over deliveries that the front door has leased for a sender (`webhooks.lease_channel`).

What the sender has no place for, or what is more than its queue's share of the places, goes back to the queue and is
claimed.

The front door's leases are short, because one that no sender takes over holds its delivery up.  Most attempts are
recorded before they end; the leases of the others are extended.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import structlog
from psycopg.rows import class_row

from core.arrays import plain_array
from core.async_postgresql import AsyncConnection
from core.async_redis import AsyncRedis
from core.db import KEEP_PLANS
from core.redis import RedisUnavailable
from webhooks.destinations.kinds import ENDPOINT_COLUMNS, SealedEndpoint
from webhooks.dispatch.claim import KEEPS_EXCHANGES, Claim
from webhooks.dispatch.delivery import ClaimedDelivery, DatabaseClock
from webhooks.dispatch.in_flight import InFlight
from webhooks.dispatch.sender_shares import share_places
from webhooks.lease_channel import LeaseChannel
from webhooks.lease_lengths import lease_seconds, untaken_seconds
from webhooks.routing.sender_interface import QueueDemand

log = structlog.get_logger()

# A sender without places leaves what comes to others for so long.
FULL_SECONDS = 0.02
RETRY_SECONDS = 0.5
# No attempt is begun in the second half of a short lease, which is extended after a quarter of it.
BEGIN_WITHIN = 0.5
EXTEND_AFTER = 0.25
EXTEND_EVERY_SECONDS = 0.5

# SQL, because of the LATERAL joins, for the event loop's connection.  The deliveries of an event have ids that begin as
# its own (`core.ids.derive_id`), and so are next to each other in one partition.
_READ = f"""
SELECT d.id AS delivery_id, d.subscription_id, d.organization_id, d.lease_id, d.attempts_used, d.cause,
       extract(epoch FROM clock_timestamp())::float8 AS now,
       extract(epoch FROM d.lease_expires_at)::float8 AS lease_ends,
       e.id AS event_id, e.type AS event_type, e.created_at AS event_created_at, e.data AS event_data,
       e.packed_request_id AS event_request_id, e.trace AS event_trace, e.cloudevent AS event_cloudevent,
       {ENDPOINT_COLUMNS}, {KEEPS_EXCHANGES} AS keeps_exchanges
FROM unnest(%(ids)s::uuid[], %(firsts)s::uuid[], %(lasts)s::uuid[]) AS taken(event_id, first, last)
CROSS JOIN LATERAL (
    SELECT * FROM webhooks_delivery
    WHERE id >= taken.first AND id <= taken.last AND status = 'delivering' AND lease_id = taken.event_id
    OFFSET 0
) AS d
JOIN webhooks_subscription s ON s.id = d.subscription_id
CROSS JOIN LATERAL (SELECT * FROM events_event WHERE id = taken.event_id LIMIT 1) AS e
"""  # noqa: S608 - constants of ours
_SECOND_HALF = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leased(SealedEndpoint):
    """A row of _READ.  Times are seconds since the epoch."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    lease_id: uuid.UUID
    attempts_used: int
    cause: str
    now: float
    lease_ends: float
    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    event_request_id: bytes | None
    event_trace: str | None
    event_cloudevent: str | None
    keeps_exchanges: bool


class TakingLoop:
    """Takes leased deliveries on the sender's event loop and hands each to `begin` until it is stopped.

    release: gives leases back to their queues.  extend: makes the leases of deliveries as long as a claim does.
    """

    def __init__(
        self,
        in_flight: InFlight,
        begin: Callable[[ClaimedDelivery, Claim], None],
        release: Callable[[set[uuid.UUID]], Awaitable[None]],
        extend: Callable[[Sequence[ClaimedDelivery]], Awaitable[None]],
    ) -> None:
        self._in_flight = in_flight
        self._begin = begin
        self._release = release
        self._extend = extend
        self._database = AsyncConnection()
        self._redis = AsyncRedis()
        self._channel = LeaseChannel(self._redis)
        self._stopped = False
        # The deliveries whose leases may have to be extended, with when that is, by the monotonic clock.
        self._short: deque[tuple[float, ClaimedDelivery]] = deque()

    def stop(self) -> None:
        """Take nothing more; what was taken at this moment is given back."""
        self._stopped = True

    async def extend_leases(self) -> None:
        """Extend the leases of attempts that last, until this is canceled."""
        while True:
            await asyncio.sleep(EXTEND_EVERY_SECONDS)
            lasting = []
            while self._short and self._short[0][0] <= time.monotonic():
                lasting.append(self._short.popleft()[1])
            in_flight = self._in_flight.leases if lasting else set()
            lasting = [one for one in lasting if one.lease_id in in_flight]
            if lasting:
                await self._extend(lasting)

    async def run(self) -> None:
        """Take what comes.  Never canceled while it waits, because what Redis has given it then would be lost."""
        try:
            while not self._stopped:
                try:
                    taken = await self._take()
                except RedisUnavailable:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except Exception as error:
                    log.warning("leases_not_taken", error=repr(error)[:300])
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if taken:
                    await self._serve(taken)
        finally:
            await self._database.close()
            await self._redis.close()

    async def _take(self) -> list[uuid.UUID]:
        if self._in_flight.free > 0:
            return await self._channel.take()
        # Others may have places; what none of them takes must not wait here until its lease ends.
        await asyncio.sleep(FULL_SECONDS)
        return await self._channel.take_waiting()

    async def _serve(self, event_ids: Sequence[uuid.UUID]) -> None:
        """Begin the deliveries of events that were taken, or give their leases back."""
        given_back = set(event_ids)
        try:
            started = time.monotonic()
            rows = await self._database.fetch(_READ, _parameters(event_ids), class_row(_Leased), first=KEEP_PLANS)
            if not rows:  # the leases have ended, or there never were any
                given_back = set()
            elif not self._stopped:
                given_back = self._begin_each(rows, started)
        except Exception as error:
            log.warning("leases_not_taken", events=len(event_ids), error=repr(error)[:300])
        if given_back:
            await self._release(given_back)

    def _begin_each(self, rows: Sequence[_Leased], started: float) -> set[uuid.UUID]:
        """Begin deliveries; return the leases of those that there are no places for."""
        reserved = self._in_flight.reserve(len(rows))
        try:
            deliveries = [_claimed(row) for row in rows]
            numbers = Counter(one.subscription_id for one in deliveries)
            demands = {
                one.subscription_id: QueueDemand(
                    one.subscription_id, one.organization_id, one.endpoint.host, numbers[one.subscription_id]
                )
                for one in deliveries
            }
            shares = share_places(
                list(demands.values()),
                reserved,
                self._in_flight.occupancy(),
                self._in_flight.free,
                self._in_flight.unoccupied,
            )
            refused = set()  # with all deliveries of the event, because they have one lease
            for row, one in zip(rows, deliveries, strict=True):
                shares[one.subscription_id] = shares.get(one.subscription_id, 0) - 1
                if shares[one.subscription_id] < 0 or row.lease_ends - row.now < untaken_seconds() * BEGIN_WITHIN:
                    refused.add(one.lease_id)
            claimed = Claim(clock=DatabaseClock(rows[0].now, started), lease_ends=started + lease_seconds())
            extend_at = started + untaken_seconds() * EXTEND_AFTER
            for one in deliveries:
                if one.lease_id not in refused:
                    self._begin(one, claimed)
                    self._short.append((extend_at, one))
            return refused
        finally:
            self._in_flight.release(reserved)


def _parameters(event_ids: Collection[uuid.UUID]) -> dict[str, object]:
    return {
        "ids": plain_array(event_ids),
        "firsts": plain_array(uuid.UUID(int=event_id.int & ~_SECOND_HALF) for event_id in event_ids),
        "lasts": plain_array(uuid.UUID(int=event_id.int | _SECOND_HALF) for event_id in event_ids),
    }


def _claimed(row: _Leased) -> ClaimedDelivery:
    return ClaimedDelivery(
        delivery_id=row.delivery_id,
        subscription_id=row.subscription_id,
        organization_id=row.organization_id,
        lease_id=row.lease_id,
        attempts_used=row.attempts_used,
        cause=row.cause,
        event_id=row.event_id,
        event_type=row.event_type,
        event_created_at=row.event_created_at,
        event_data=row.event_data,
        endpoint=row.open(),
        event_request_id=row.event_request_id,
        event_trace=row.event_trace,
        keeps_exchange=row.keeps_exchanges,
        event_cloudevent=row.event_cloudevent,
    )
