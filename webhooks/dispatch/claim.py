"""Claiming due deliveries: fair between organizations and subscriptions, bounded, under a lease.

A claim is one transaction of three steps: lock the queues whose turn it is, lease due deliveries of each of them, and
write the state of each queue back.  They are SQL, because each takes many queues at once, from arrays and with LATERAL
joins, and all go through one pipeline, with plans that are kept.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import psycopg
from django.conf import settings
from psycopg.rows import class_row

from core.db import KEEP_PLANS_WITHOUT_WAITING, in_pipelined_transaction, server_cursor
from core.ids import new_id
from webhooks import ordering_keys
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.kinds import ENDPOINT_COLUMNS, SealedEndpoint
from webhooks.dispatch import rate_limit
from webhooks.dispatch.allocation import limit_hosts, share_between_organizations, share_out
from webhooks.dispatch.delivery import ClaimedDelivery, DatabaseClock
from webhooks.lease_lengths import lease_seconds
from webhooks.ordering_keys import MUST_WAIT
from webhooks.queues import IS_OPEN, ROOM

# The most queues that a claim looks at; the next claim continues with the others.
QUEUES_AT_A_TIME = 200


class QueueFilter(Enum):
    """Which queues a claim looks at; the value is what `has_backlog` may be.

    A queue has a backlog while each claim takes as much from it as it may, and more has been due for BACKLOG_SECONDS.
    """

    ALL = (False, True)
    WITHOUT_BACKLOG = (False,)
    WITH_BACKLOG = (True,)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many places of this worker are taken, by organization, by subscription, and by host."""

    by_organization: Counter[uuid.UUID]
    by_subscription: Counter[uuid.UUID]
    by_host: Counter[str]


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of a claim.

    more: another claim may find more at once. backlog: the subscriptions whose queues have a backlog now. lagging: the
    organizations of the subscriptions of which more has been due for LAGGING_SECONDS, without those whose own settings
    limit how fast they are sent to. rate_waits: for each queue that waits for its rate limit, the seconds until the
    next delivery is allowed. skipped_locked: some due queues were skipped because others had locked them, which takes
    milliseconds. clock: the database's time. lease_ends: when the leases end, by this machine's monotonic clock.
    """

    deliveries: list[ClaimedDelivery] = field(default_factory=list)
    more: bool = False
    backlog: frozenset[uuid.UUID] = frozenset()
    lagging: Mapping[uuid.UUID, uuid.UUID] = field(default_factory=dict)
    rate_waits: tuple[float, ...] = ()
    skipped_locked: bool = False
    clock: DatabaseClock = field(default_factory=lambda: DatabaseClock(time.time(), time.monotonic()))
    lease_ends: float = 0.0


# Whether the organization of a subscription `s` keeps exchanges.
KEEPS_EXCHANGES = "(SELECT o.keep_exchanges FROM orgs_organization o WHERE o.id = s.organization_id)"

# Queues take turns: first every organization's longest-unclaimed queue, then every second one, and so on. due_queues
# counts the queues that were due before the locks were taken: if there are fewer rows, some were locked.
_LOCK_DUE_QUEUES = f"""
WITH due AS (
    SELECT q.subscription_id, q.last_claimed_at,
           row_number() OVER (PARTITION BY q.organization_id ORDER BY q.last_claimed_at) AS turn
    FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
    WHERE {IS_OPEN} AND q.next_due_at <= statement_timestamp()
      AND q.in_flight < least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s))
      AND q.has_backlog = ANY(%(has_backlog)s)
    ORDER BY turn, q.last_claimed_at LIMIT %(queues)s
)
SELECT q.subscription_id, q.organization_id,
       {ROOM} AS room,
       s.deliveries_per_second, extract(epoch FROM q.rate_reserved_until)::float8 AS rate_reserved_until,
       s.deliveries_per_second IS NOT NULL OR s.max_in_flight IS NOT NULL OR q.has_ordered AS is_self_limited,
       extract(epoch FROM clock_timestamp())::float8 AS now,
       q.has_ordered, s.ordered_attempts, s.ordered_on_failure = 'block' AS blocks_on_failure,
       {ENDPOINT_COLUMNS}, {KEEPS_EXCHANGES} AS keeps_exchanges,
       (SELECT count(*) FROM due) AS due_queues
FROM due JOIN webhooks_subscriptionqueue q ON q.subscription_id = due.subscription_id
JOIN webhooks_subscription s ON s.id = q.subscription_id
WHERE {IS_OPEN} AND q.has_backlog = ANY(%(has_backlog)s)
  AND q.in_flight < least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s))
ORDER BY due.turn, due.last_claimed_at
FOR UPDATE OF q SKIP LOCKED
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class _DueQueue(SealedEndpoint):
    """A row of _LOCK_DUE_QUEUES.  Times are seconds since the epoch."""

    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    room: int
    deliveries_per_second: float | None
    rate_reserved_until: float | None
    is_self_limited: bool
    now: float
    keeps_exchanges: bool
    has_ordered: bool
    ordered_attempts: int | None
    blocks_on_failure: bool
    due_queues: int


# Has a row if a claim that found nothing only met locks.
_ANY_CLAIMABLE = f"""
SELECT 1 FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
WHERE {IS_OPEN} AND q.next_due_at <= statement_timestamp()
  AND q.in_flight < least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s))
  AND q.has_backlog = ANY(%(has_backlog)s)
LIMIT 1
"""  # noqa: S608 - a constant of ours

# `= ANY (ARRAY (...))` and LATERAL with LIMIT, because the planner assumes that an unknown LIMIT is a tenth of the
# index, and would join that many rows by reading both tables from end to end.  The bounds of the ids leave out the
# partitions that have none of them.
_LEASE = """
WITH picked AS (
    SELECT d.id FROM unnest(%(queues)s::uuid[], %(quotas)s::int[]{order_values})
                  AS q(subscription_id, quota{order_columns})
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhooks_delivery d
        WHERE d.subscription_id = q.subscription_id AND d.status = 'pending'
          AND d.next_attempt_at <= statement_timestamp(){order_condition}
        ORDER BY d.next_attempt_at LIMIT q.quota
        FOR UPDATE SKIP LOCKED
    ) AS d
), leased AS (
    UPDATE webhooks_delivery d
    SET status = 'delivering', lease_id = %(lease)s,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
    WHERE d.id = ANY (ARRAY (SELECT id FROM picked))
      AND d.id >= (SELECT id FROM picked ORDER BY id LIMIT 1)
      AND d.id <= (SELECT id FROM picked ORDER BY id DESC LIMIT 1)
    RETURNING d.id, d.subscription_id, d.attempts_used, d.cause, d.event_id, d.ordering_key
)
SELECT l.id AS delivery_id, l.subscription_id, l.attempts_used, l.cause, e.id AS event_id, e.type AS event_type,
       e.created_at AS event_created_at, e.data AS event_data, e.packed_request_id AS event_request_id,
       e.trace AS event_trace, e.cloudevent AS event_cloudevent, l.ordering_key
FROM leased l CROSS JOIN LATERAL (SELECT * FROM events_event WHERE id = l.event_id LIMIT 1) AS e
"""
LEASE_DELIVERIES = _LEASE.format(order_values="", order_columns="", order_condition="")
# Where queues have deliveries with ordering keys: without those that have to wait for an earlier one.
LEASE_IN_ORDER = _LEASE.format(
    order_values=", %(blocks)s::bool[]",
    order_columns=", blocks_on_failure",
    order_condition=f" AND NOT {MUST_WAIT}",
)


class _LeasedDelivery(msgspec.Struct, frozen=True):
    """A row of LEASE_DELIVERIES."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    attempts_used: int
    cause: str
    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    event_request_id: bytes | None
    event_trace: str | None
    event_cloudevent: str | None
    ordering_key: str | None


# Up to this quota, the index tells when the next delivery of a queue that gave all of it is due.  A queue that gave
# more counts as a backlog without a look, which would have to pass everything that was just taken.
_LOOK_UP_TO = 512
# What has been due for less than this is no backlog: some claims will take it.  The other process would need longer,
# because of its low priority: on a busy machine, a hundred deliveries that it takes over become a thousand.
BACKLOG_SECONDS = 0.5
# What has been due for this long lags.
LAGGING_SECONDS = 0.1

# A queue has a backlog if it gave its whole quota and more has been due for a while.  A queue with ordering keys stays
# with the process that works off its backlog while anything waits: that process records the results that free the next
# deliveries, and looks for them at once.
_UPDATE_CLAIMED_QUEUES = """
UPDATE webhooks_subscriptionqueue q
SET in_flight = q.in_flight + v.taken,
    last_claimed_at = clock_timestamp(),
    has_backlog = v.taken >= v.quota AND (
            NOT v.looks
            OR coalesce(next.attempt_at <= clock_timestamp() - make_interval(secs => %(backlog_after)s), false)
        )
        OR q.has_ordered AND q.has_backlog AND EXISTS (
            SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = q.subscription_id AND d.status = 'pending'
        ),
    rate_reserved_until = to_timestamp(v.reserved_until),
    next_due_at = CASE
        WHEN v.wait_until IS NOT NULL THEN to_timestamp(v.wait_until)
        WHEN v.looks THEN next.attempt_at
        ELSE q.next_due_at
    END
FROM (
    SELECT *, taken < quota OR quota <= %(look_up_to)s AS looks
    FROM unnest(%(queues)s::uuid[], %(taken)s::int[], %(quotas)s::int[], %(reserved)s::float8[], %(waits)s::float8[])
         AS u(subscription_id, taken, quota, reserved_until, wait_until)
) AS v
CROSS JOIN LATERAL (
    SELECT min(d.next_attempt_at) AS attempt_at FROM webhooks_delivery d
    WHERE v.looks AND d.subscription_id = v.subscription_id AND d.status = 'pending'
) AS next
WHERE q.subscription_id = v.subscription_id
RETURNING q.subscription_id, q.has_backlog, coalesce(q.next_due_at <= clock_timestamp(), false) AS is_due,
    q.has_backlog OR v.taken >= v.quota
        AND coalesce(next.attempt_at <= clock_timestamp() - make_interval(secs => %(lagging_after)s), false) AS lags
"""


class _QueueState(msgspec.Struct, frozen=True):
    """A row of _UPDATE_CLAIMED_QUEUES.  is_due: whether more of the queue is due.  lags: whether it is for long."""

    subscription_id: uuid.UUID
    has_backlog: bool
    is_due: bool
    lags: bool


@dataclass(slots=True)
class _Turn:
    """A queue in this claim: its quota, how many deliveries it gave, and the state of its rate limit.

    is_self_limited: its subscription's settings limit how fast it is sent to: a rate, requests in flight, or an order.
    """

    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    endpoint: Endpoint
    room: int
    rate: float | None
    reserved_until: float | None
    keeps_exchanges: bool
    is_self_limited: bool = False
    quota: int = 0
    taken: int = 0
    wait_until: float | None = None
    has_ordered: bool = False
    ordered_attempts: int | None = None
    blocks_on_failure: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Return whether the queue gave its whole quota, so that more may be due."""
        return self.taken >= self.quota


def claim(limit: int, occupancy: Occupancy | None = None, queues: QueueFilter = QueueFilter.ALL) -> Claim:
    """Claim at most `limit` due deliveries, commit, and return them.

    occupancy: this worker's.  If it is given, no organization gets more than three times the places that stay free, no
    subscription more than stay free of its organization's, and no host more than MAX_CONNECTIONS_PER_HOST.
    """
    done = in_pipelined_transaction(lambda: _claim(limit, occupancy, queues))
    if not done.turns:
        return Claim(skipped_locked=done.skipped_locked)
    # The last statement's result arrived with that of the COMMIT.
    states = done.states.fetchall()
    backlog = frozenset(queue.subscription_id for queue in states if queue.has_backlog)
    lagging = {queue.subscription_id for queue in states if queue.lags}
    waits = [turn.wait_until for turn in done.turns if turn.wait_until is not None]
    # What a claim of the queues without a backlog finds to have one belongs to the backlog sender.
    left_to_others = backlog if queues is QueueFilter.WITHOUT_BACKLOG else frozenset()
    may_go_on = any(queue.is_due and queue.subscription_id not in left_to_others for queue in states)
    return Claim(
        done.deliveries,
        more=may_go_on or len(done.turns) >= QUEUES_AT_A_TIME,
        backlog=backlog,
        lagging={
            turn.subscription_id: turn.organization_id
            for turn in done.turns
            if turn.subscription_id in lagging and not turn.is_self_limited
        },
        rate_waits=tuple(wait - done.now for wait in waits),
        skipped_locked=done.skipped_locked,
        clock=DatabaseClock(done.now, done.started),
        lease_ends=done.started + lease_seconds(),
    )


@dataclass(frozen=True, slots=True)
class _Transaction:
    """What a claim's transaction did.

    states: the cursor of _UPDATE_CLAIMED_QUEUES.  started: when it began, by this machine's monotonic clock.  now: the
    database's time, in seconds since the epoch.
    """

    states: psycopg.Cursor[_QueueState]
    started: float
    turns: Sequence[_Turn] = ()
    deliveries: list[ClaimedDelivery] = field(default_factory=list)
    skipped_locked: bool = False
    now: float = 0.0


def _claim(limit: int, occupancy: Occupancy | None, queues: QueueFilter) -> _Transaction:
    """Lock queues, share the places out, lease deliveries, write the queues back: four statements, pipelined."""
    started = time.monotonic()
    selection = {
        "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION,
        "has_backlog": list(queues.value),
        "queues": min(QUEUES_AT_A_TIME, limit),
    }
    locking, leasing = server_cursor(class_row(_DueQueue)), server_cursor(class_row(_LeasedDelivery))
    states, other = server_cursor(class_row(_QueueState)), server_cursor()
    # A crash that forgets this commit leaves the deliveries pending, which is what they then are.
    other.execute(KEEP_PLANS_WITHOUT_WAITING)
    rows = locking.execute(_LOCK_DUE_QUEUES, selection).fetchall()
    if not rows:
        met_locks = other.execute(_ANY_CLAIMABLE, selection).fetchone() is not None
        return _Transaction(states, started, skipped_locked=met_locks)
    now = rows[0].now
    turns = [_turn(row) for row in rows]
    _allocate(turns, limit, occupancy)
    deliveries = _lease(turns, leasing)
    for turn in turns:
        _reserve_rate(turn, now)
    states.execute(
        _UPDATE_CLAIMED_QUEUES,
        {
            "look_up_to": _LOOK_UP_TO,
            "backlog_after": BACKLOG_SECONDS,
            "lagging_after": LAGGING_SECONDS,
            "queues": [turn.subscription_id for turn in turns],
            "taken": [turn.taken for turn in turns],
            "quotas": [turn.quota for turn in turns],
            "reserved": [turn.reserved_until for turn in turns],
            "waits": [turn.wait_until for turn in turns],
        },
    )
    return _Transaction(states, started, turns, deliveries, skipped_locked=len(rows) < rows[0].due_queues, now=now)


def _turn(row: _DueQueue) -> _Turn:
    """Return the queue's turn, with its endpoint opened and its room bounded by its rate limit."""
    rate = row.deliveries_per_second
    room, reserved_until = row.room, None
    if rate is not None:
        reserved_until = row.rate_reserved_until or 0.0
        room = max(0, min(row.room, rate_limit.allowed_now(rate, reserved_until, row.now)))
    return _Turn(
        subscription_id=row.subscription_id,
        organization_id=row.organization_id,
        endpoint=row.open(),
        room=room,
        rate=rate,
        reserved_until=reserved_until,
        keeps_exchanges=row.keeps_exchanges,
        is_self_limited=row.is_self_limited,
        has_ordered=row.has_ordered,
        ordered_attempts=row.ordered_attempts,
        blocks_on_failure=row.blocks_on_failure,
    )


def _allocate(turns: Sequence[_Turn], limit: int, occupancy: Occupancy | None) -> None:
    """Give each turn its quota of the worker's `limit` free places."""
    rooms = [turn.room for turn in turns]
    if occupancy is None:
        quotas = share_out(rooms, limit)
    else:
        hosts = [turn.endpoint.host for turn in turns]
        rooms = limit_hosts(rooms, hosts, occupancy.by_host, settings.MAX_CONNECTIONS_PER_HOST)
        quotas = share_between_organizations(
            rooms,
            [turn.organization_id for turn in turns],
            [occupancy.by_subscription[turn.subscription_id] for turn in turns],
            occupancy.by_organization,
            limit,
        )
    for turn, quota in zip(turns, quotas, strict=True):
        turn.quota = quota


def _lease(turns: Sequence[_Turn], cursor: psycopg.Cursor[_LeasedDelivery]) -> list[ClaimedDelivery]:
    """Lease each turn's due deliveries, up to its quota, and count them.

    Where deliveries have ordering keys, those that have to wait are parked first, and the statement leaves out others.
    """
    served: Mapping[uuid.UUID, _Turn] = {turn.subscription_id: turn for turn in turns if turn.quota}
    lease_id = new_id()
    ordered = [turn for turn in served.values() if turn.has_ordered]
    if ordered:
        queues = [turn.subscription_id for turn in ordered]
        ordering_keys.park(queues, [turn.blocks_on_failure for turn in ordered], cursor)
    cursor.execute(
        LEASE_IN_ORDER if ordered else LEASE_DELIVERIES,
        {
            "queues": list(served),
            "quotas": [turn.quota for turn in served.values()],
            "lease": lease_id,
            "lease_seconds": lease_seconds(),
            **({"blocks": [turn.blocks_on_failure for turn in served.values()]} if ordered else {}),
        },
    )
    deliveries = []
    for row in cursor.fetchall():
        turn = served[row.subscription_id]
        turn.taken += 1
        deliveries.append(
            ClaimedDelivery(
                delivery_id=row.delivery_id,
                subscription_id=row.subscription_id,
                organization_id=turn.organization_id,
                lease_id=lease_id,
                attempts_used=row.attempts_used,
                cause=row.cause,
                event_id=row.event_id,
                event_type=row.event_type,
                event_created_at=row.event_created_at,
                event_data=row.event_data,
                endpoint=turn.endpoint,
                event_request_id=row.event_request_id,
                event_trace=row.event_trace,
                keeps_exchange=turn.keeps_exchanges,
                event_cloudevent=row.event_cloudevent,
                most_attempts=turn.ordered_attempts if row.ordering_key is not None else None,
            )
        )
    return deliveries


def _reserve_rate(turn: _Turn, now: float) -> None:
    """Count what was taken against the queue's rate limit; if it is used up, note when it allows the next delivery."""
    if turn.rate is None:
        return
    turn.reserved_until = rate_limit.reserve(turn.rate, turn.reserved_until or 0.0, now, turn.taken)
    if turn.is_exhausted and rate_limit.allowed_now(turn.rate, turn.reserved_until, now) < 1:
        turn.wait_until = rate_limit.next_allowed_at(turn.rate, turn.reserved_until)
