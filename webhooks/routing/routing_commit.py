"""The group commit of the front door that fans events out as it stores them, where that takes no longer.

Where few events come, each transaction takes longer than what it is for.  So an event that no subscription wants is
stored as processed.  One that can be sent at once is stored with its deliveries, under leases that a sender takes over
(`webhooks.lease_channel`): one transaction and one wake-up less before it is sent.  All other events are stored as
accepted, and the workers fan them out (`fan_out`).

Nothing here makes a request wait: what subscriptions want is remembered, and the statement that stores the events
checks that it is current; a queue that somebody has locked isn't waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg
import structlog
from cachetools import LRUCache
from django.conf import settings
from psycopg.rows import class_row

from core import tracing
from core.arrays import plain_array, text_array
from core.db import KEEP_PLANS, borrow_connection
from core.ids import derive_ids
from core.redis import RedisUnavailable
from core.wakeups import WEBHOOKS, wake_soon
from events.group_commit import GroupCommit, NotStored, PendingEvent, insert_parameters
from events.insert_statement import Extension, insert_events
from webhooks.lease_channel import LeaseChannel
from webhooks.lease_lengths import untaken_seconds
from webhooks.queues import IS_IDLE, ROOM
from webhooks.routing.fan_out import FAN_OUT_LOCK, note_processed
from webhooks.routing.matching import SubscribedTypes
from webhooks.routing.subscribers import FINGERPRINT
from webhooks.routing.subscribers_cache import SubscribersCache
from webhooks.tracing import trace_fan_out

log = structlog.get_logger()

# With more events in a commit, or more events a second in this process, the larger transactions of the workers cost
# less.
MOST_EVENTS = 4
MOST_PER_SECOND = 100
RATE_EVENTS = 25  # of so many events, the rate is measured
MOST_DELIVERIES = 16
# After a queue was locked, or wasn't ready for its delivery, others are left to the workers for this long.
LOCKED_SECONDS = 0.01
NOT_READY_SECONDS = 0.5
REMEMBERED_QUEUES = 10_000
# Between two looks for senders while there are none.
LOOK_FOR_SENDERS_SECONDS = 0.5

# SQL, because the ORM has no advisory locks.  A recovery waits for the fan-outs that may not see a new subscription
# (`webhooks.upkeep.recovery`), so the lock is taken before the statement that sees the subscriptions begins.
_BEGIN = f"{KEEP_PLANS}, pg_advisory_xact_lock_shared({FAN_OUT_LOCK}, 0)"

# What the statement that stores events does in addition.  It compares the subscriptions of the organizations, as they
# are now, with what was remembered.  Under the locks of the queues, it decides as
# `webhooks.dispatch.hand_over.INSERT_LEASED` does; but all of an event's deliveries can be sent at once, or it is left
# to the workers.
_DECIDE = f"""current AS MATERIALIZED (
    SELECT o.id, coalesce({FINGERPRINT.format(organization_id="o.id")}, '') AS subscriptions
    FROM unnest(%(planned)s::uuid[]) AS o(id)
), wanted AS (
    SELECT * FROM unnest(
        %(delivery_ids)s::uuid[], %(delivery_events)s::uuid[], %(delivery_queues)s::uuid[], %(numbers)s::int[]
    ) AS d(id, event_id, subscription_id, number)
), queue AS MATERIALIZED (
    SELECT q.subscription_id,
           {IS_IDLE} AS is_idle, {ROOM} AS room
    FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
    WHERE q.subscription_id = ANY (%(queues)s::uuid[])
    ORDER BY q.subscription_id
    FOR UPDATE OF q SKIP LOCKED
), routed AS MATERIALIZED (
    SELECT p.id FROM permitted p JOIN current c ON c.id = p.organization_id AND c.subscriptions = p.subscriptions
    WHERE p.id NOT IN (
        SELECT w.event_id FROM wanted w LEFT JOIN queue q ON q.subscription_id = w.subscription_id
        WHERE (q.is_idle AND w.number <= q.room) IS NOT TRUE
    )
),"""  # noqa: S608 - a constant of ours
_LEASE = """, leased AS (
    INSERT INTO webhooks_delivery (
        id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
        attempts_used, attempt_count, last_error, created_at, lease_id, lease_expires_at
    )
    SELECT w.id, s.organization_id, w.event_id, w.subscription_id, 'delivering', t, 'schedule', 0, 0, '', t,
           w.event_id, t + make_interval(secs => %(lease_seconds)s)
    FROM wanted w JOIN stored s ON s.id = w.event_id AND s.status = 'processed', clock_timestamp() AS t
    RETURNING subscription_id
), counted AS (
    UPDATE webhooks_subscriptionqueue q SET in_flight = q.in_flight + l.number, last_claimed_at = clock_timestamp()
    FROM (SELECT subscription_id, count(*) AS number FROM leased GROUP BY subscription_id) AS l
    WHERE q.subscription_id = l.subscription_id
)"""
_SAYS = """,
       EXISTS (SELECT FROM stored s WHERE s.id = item.id) AS stored,
       (SELECT c.subscriptions <> item.subscriptions FROM current c WHERE c.id = item.organization_id) AS is_outdated,
       EXISTS (
           SELECT FROM wanted w LEFT JOIN queue q ON q.subscription_id = w.subscription_id
           WHERE w.event_id = item.id AND q.subscription_id IS NULL
       ) AS met_lock"""
INSERT_ROUTED = insert_events(
    Extension(
        arrays=", %(subscriptions)s::text[]",
        columns=", subscriptions",
        decide=_DECIDE,
        is_processed="p.id IN (SELECT id FROM routed)",
        then=_LEASE,
        was_planned="item.subscriptions IS NOT NULL",
        says=_SAYS,
    )
)


@dataclass(frozen=True, slots=True)
class _Unprocessed:
    """A row of INSERT_ROUTED: an event that isn't stored, or isn't processed although that was planned.

    is_outdated: the organization's subscriptions aren't what was remembered; None if nothing was planned.  met_lock: a
    queue was locked.
    """

    id: uuid.UUID
    permitted: bool
    stored: bool
    is_outdated: bool | None
    met_lock: bool


@dataclass(slots=True)
class Plan:
    """What is to become of the events of a commit, as far as that is known.

    fingerprints: by event, of the subscriptions by which it was decided.  deliveries: by event, who wants it.
    """

    fingerprints: dict[str, str] = field(default_factory=dict)
    deliveries: dict[str, Sequence[SubscribedTypes]] = field(default_factory=dict)

    def parameters(self, items: Sequence[PendingEvent]) -> dict[str, object]:
        """Return what the statement takes in addition to `insert_parameters`."""
        organizations = {item.request.caller.organization_id for item in items if item.id in self.fingerprints}
        ids: list[str] = []
        events: list[str] = []
        queues: list[uuid.UUID] = []
        for event_id, wanting in self.deliveries.items():
            subscription_ids = [one.subscription_id for one in wanting]
            ids += derive_ids(uuid.UUID(event_id), subscription_ids)
            events += [event_id] * len(wanting)
            queues += subscription_ids
        numbers: Counter[uuid.UUID] = Counter()
        number_of_each = []
        for queue in queues:
            numbers[queue] += 1
            number_of_each.append(numbers[queue])
        return {
            "subscriptions": text_array(self.fingerprints.get(item.id) for item in items),
            "planned": plain_array(organizations),
            "delivery_ids": plain_array(ids),
            "delivery_events": plain_array(events),
            "delivery_queues": plain_array(queues),
            "numbers": plain_array(number_of_each),
            "queues": plain_array(numbers),
            "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION,
            "lease_seconds": untaken_seconds(),
        }


class RoutingCommit(GroupCommit):
    """Stores events, and fans out those that nobody wants and those that can be sent at once.

    release: gives leases back to their queues, by their ids, with Django's connection.
    """

    def __init__(self, on_accepted: Callable[[], None], release: Callable[[Collection[uuid.UUID]], object]) -> None:
        super().__init__(on_accepted)
        self._release = release
        self._subscribers = SubscribersCache()
        self._channel = LeaseChannel(self.redis)
        self._has_senders = False
        self._looked_for_senders_at = float("-inf")
        self._arrivals: deque[float] = deque(maxlen=RATE_EVENTS)  # of the last events, by the monotonic clock
        # Until when deliveries of a subscription are left to the workers, by the monotonic clock.
        self._busy_until: LRUCache[uuid.UUID, float] = LRUCache(REMEMBERED_QUEUES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="releases")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks))  # senders learn what is leased, or get it by the queues
        await super().__aexit__(kind, error, traceback)

    async def insert(self, items: list[PendingEvent]) -> dict[str, NotStored]:
        plan = self._plan(items)
        if not plan.fingerprints:
            return await super().insert(items)
        started = time.perf_counter()
        try:
            rows = await self.database.fetch(
                INSERT_ROUTED,
                {**insert_parameters(items), **plan.parameters(items)},
                class_row(_Unprocessed),
                first=_BEGIN,
            )
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            # Whatever the reason, no event is refused for it.
            log.warning("routing_failed", events=len(items), error=repr(error)[:300])
            return await super().insert(items)
        not_processed = {str(row.id): row for row in rows}
        leased = [event_id for event_id in plan.deliveries if event_id not in not_processed]
        if leased:
            self._begin(self._hand_over(leased))
        processed = []
        for item in items:
            if item.id not in plan.fingerprints:
                continue
            row = not_processed.get(item.id)
            if row is None:
                item.is_processed = True
                processed.append(item)
            elif row.is_outdated:
                self._subscribers.look(item.request.caller.organization_id)
            elif row.stored:
                pause = LOCKED_SECONDS if row.met_lock else NOT_READY_SECONDS
                for one in plan.deliveries.get(item.id, ()):
                    self._busy_until[one.subscription_id] = time.monotonic() + pause
        if processed:
            asyncio.get_running_loop().call_soon(self._note, processed, time.perf_counter() - started)
        return {event_id: NotStored(row.id, row.permitted) for event_id, row in not_processed.items() if not row.stored}

    def _plan(self, items: Sequence[PendingEvent]) -> Plan:
        """Return what is known about the events; nothing if many come."""
        plan = Plan()
        if not self._few_come(len(items)):
            return plan
        may_lease = self._may_lease()
        deliveries = 0
        for item in items:
            remembered = self._subscribers.get(item.request.caller.organization_id)
            if remembered is None or remembered.matcher is None:
                continue
            candidates = remembered.matcher.candidates(item.event.type)
            if candidates.has_filters:  # which may take long
                continue
            wanting = candidates.without_data(item.event.channels or ())
            if wanting:
                deliveries += len(wanting)
                if not may_lease or deliveries > MOST_DELIVERIES or not self._can_be_sent(wanting, item):
                    continue
                plan.deliveries[item.id] = wanting
            plan.fingerprints[item.id] = remembered.fingerprint
        return plan

    def _few_come(self, events: int) -> bool:
        """Return whether few events come, with those of a commit."""
        now = time.monotonic()
        self._arrivals.extend([now] * min(events, RATE_EVENTS))
        is_fast = len(self._arrivals) == RATE_EVENTS and now - self._arrivals[0] < RATE_EVENTS / MOST_PER_SECOND
        return events <= MOST_EVENTS and not is_fast

    def _may_lease(self) -> bool:
        if settings.DELIVERY_RETRY_SCHEDULE[0] or settings.DISABLE_WEBHOOK_DELIVERY:
            return False
        if not self._has_senders and time.monotonic() - self._looked_for_senders_at > LOOK_FOR_SENDERS_SECONDS:
            self._looked_for_senders_at = time.monotonic()
            self._begin(self._look_for_senders())
        return self._has_senders

    def _can_be_sent(self, wanting: Sequence[SubscribedTypes], item: PendingEvent) -> bool:
        """Return whether no delivery of an event has to wait, or to be fetched, as far as that is known."""
        now = time.monotonic()
        return not any(
            not one.is_active
            or one.is_inbox
            or (one.is_ordered and item.event.ordering_key is not None)
            or self._busy_until.get(one.subscription_id, now) > now
            for one in wanting
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_for_senders(self) -> None:
        with contextlib.suppress(RedisUnavailable):
            self._has_senders = await self._channel.has_ready_senders()

    async def _hand_over(self, event_ids: Collection[str]) -> None:
        """Tell the senders of events whose deliveries are leased; give the leases back if no sender takes them."""
        left = event_ids
        try:
            self._has_senders = await self._channel.offer(event_ids)
            if self._has_senders:
                return
            left = await self._channel.withdraw(event_ids)
        except RedisUnavailable:
            # A sender may have taken them nevertheless, and then they are sent twice.
            self._has_senders = False
        if not left:
            return
        leases = [uuid.UUID(event_id) for event_id in left]
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: borrow_connection(lambda: self._release(leases))
            )
        except Exception as error:
            log.warning("release_failed", error=repr(error)[:300])  # they expire
        else:
            wake_soon(WEBHOOKS)

    def _note(self, items: Sequence[PendingEvent], seconds: float) -> None:
        """Log, count, and trace events that were fanned out."""
        for item in items:
            note_processed(uuid.UUID(item.id), item.request.caller.organization_id, item.event.type, seconds)
        if tracing.is_on():
            ids = [uuid.UUID(item.id) for item in items]
            self._thread.submit(borrow_connection, lambda: trace_fan_out(ids, seconds))
