"""Claiming due deliveries: fair between organisations and subscriptions, bounded, under a lease."""

from __future__ import annotations

import datetime
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TypeVar
from urllib.parse import urlsplit

from django.conf import settings

from core.db import in_transaction, pipelined, server_cursor
from core.ids import new_id
from webhooks import sql
from webhooks.secrets import Receiver, open_or_explain

T = TypeVar("T")

# A claim looks at this many lanes at the most; the next one goes on with the others.
LANES_AT_A_TIME = 200


class Lanes(Enum):
    """Which lanes a claim looks at; the value is what `is_busy` may be.

    A lane is busy when its last claim took all that it might: more may be due.
    """

    ALL = (False, True)
    QUIET = (False,)
    BUSY = (True,)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is this worker's to send until its lease ends."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    lease_id: uuid.UUID
    tries_used: int
    cause: str
    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    receiver: Receiver


@dataclass(frozen=True, slots=True)
class Held:
    """How many deliveries a sender has in work, by subscription and by the host that they go to."""

    by_subscription: Counter[uuid.UUID] = field(default_factory=Counter)
    by_host: Counter[str] = field(default_factory=Counter)

    def add(self, claimed: Claimed) -> None:
        """Count a delivery in."""
        self.by_subscription[claimed.subscription_id] += 1
        self.by_host[host_of(claimed.receiver.url)] += 1

    def remove(self, claimed: Claimed) -> None:
        """Count a delivery out."""
        _take_one(self.by_subscription, claimed.subscription_id)
        _take_one(self.by_host, host_of(claimed.receiver.url))

    def copy(self) -> Held:
        """Return it as it is now."""
        return Held(self.by_subscription.copy(), self.by_host.copy())


def _take_one(counts: Counter[T], key: T) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's time, carried on by this machine's monotonic clock: its own date is not believed."""

    epoch_seconds: float
    monotonic: float

    def now(self) -> float:
        """Return the database's time in seconds since the epoch."""
        return self.epoch_seconds + time.monotonic() - self.monotonic


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought.

    more: another claim at once may bring more.  busy: the lanes that gave all that they might.
    waits: for each lane that its rate limit holds up, the seconds until it allows the next one.  was_crowded: it
    passed over lanes that are due because others held them, which takes milliseconds.  deadline: monotonic end of
    the leases.
    """

    deliveries: list[Claimed] = field(default_factory=list)
    more: bool = False
    busy: frozenset[uuid.UUID] = frozenset()
    waits: tuple[float, ...] = ()
    was_crowded: bool = False
    clock: Clock = field(default_factory=lambda: Clock(time.time(), time.monotonic()))
    deadline: float = 0.0


@dataclass(slots=True)
class _Turn:
    """A lane in this claim: how many it may still give and, with a rate limit, from when on."""

    subscription_id: uuid.UUID
    room: int
    receiver: Receiver
    rate: float | None
    reserved_until: float
    quota: int = 0
    wait_until: float | None = None


def burst(rate: float) -> float:
    """Return how many deliveries a rate limit lets go at once: a tenth of a second's, at least one."""
    return max(1.0, rate / 10)


def allowed_now(rate: float, reserved_until: float, now: float) -> int:
    """Return how many deliveries a rate limit allows at `now` (GCRA; times in seconds)."""
    ahead = max(0.0, reserved_until - now)
    return int(burst(rate) - ahead * rate + 1e-6)


def share_out(rooms: list[int], total: int) -> list[int]:
    """Return how many of `total` each lane gets: all the same, as far as each has room."""
    quotas = [0] * len(rooms)
    left = min(total, sum(rooms))
    hungry = [position for position, room in enumerate(rooms) if room > 0]
    while left and hungry:
        each = max(1, left // len(hungry))
        for position in hungry:
            given = min(each, rooms[position] - quotas[position], left)
            quotas[position] += given
            left -= given
        hungry = [position for position in hungry if quotas[position] < rooms[position]]
    return quotas


@lru_cache(maxsize=10_000)
def host_of(url: str) -> str:
    """Return the host and port that a URL leads to."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or {'http': 80}.get(parts.scheme, 443)}"


def bound_hosts(rooms: list[int], hosts: list[str], held: Mapping[str, int], most: int) -> list[int]:
    """Return what is left of the lanes' rooms when no host may have more than `most` requests.

    hosts: each lane's.  held: how many the worker has in work for each host.  What a host may have yet is
    shared evenly by its lanes.
    """
    lanes_of: dict[str, list[int]] = defaultdict(list)
    for position, host in enumerate(hosts):
        lanes_of[host].append(position)
    bounded = list(rooms)
    for host, positions in lanes_of.items():
        shares = share_out([rooms[position] for position in positions], max(0, most - held.get(host, 0)))
        for position, share in zip(positions, shares, strict=True):
            bounded[position] = share
    return bounded


def leave_free(rooms: list[int], held: list[int], free: int) -> list[int]:
    """Return what is left of the lanes' rooms when none may hold more of the worker than stays free.

    held: how many places of this worker each lane has already.  free: its places that nobody has.  The bound
    is found anew with each claim (a "dynamic threshold"): one busy lane gets half of the worker, three get a
    quarter each, and the next one always finds a place.  A lane that holds nothing may have one in any case.
    """
    low, high = 0, free
    while low < high:
        most = (low + high + 1) // 2
        wanted = sum(min(room, max(0, most - has)) for room, has in zip(rooms, held, strict=True))
        if wanted + most <= free:
            low = most
        else:
            high = most - 1
    return [min(room, max(low - has, 0 if has else 1)) for room, has in zip(rooms, held, strict=True)]


def claim(limit: int, held: Held | None = None, lanes: Lanes = Lanes.ALL) -> Claim:
    """Claim at most `limit` due deliveries and return them, committed.

    held: what the sender has in work; when it is given, no subscription gets more places than stay free, and no
    host more than MAX_CONNECTIONS_PER_HOST.
    """
    lease_seconds = settings.DELIVERY_TIMEOUT + settings.LEASE_MARGIN
    return in_transaction(lambda: _claim(limit, held, lanes, lease_seconds))


def _claim(limit: int, held: Held | None, lanes: Lanes, lease_seconds: float) -> Claim:
    started = time.monotonic()
    with server_cursor() as cursor, server_cursor() as other, pipelined():
        # A crash that forgets this commit leaves the deliveries pending, which is what they then are.
        other.execute("SET LOCAL synchronous_commit = off")
        which = {"most": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION, "busy": list(lanes.value)}
        cursor.execute(sql.CLAIM_LANES, {**which, "lanes": min(LANES_AT_A_TIME, limit)})
        rows = cursor.fetchall()
        if not rows:
            claimable = cursor.execute(sql.ANY_CLAIMABLE, which).fetchone()
            return Claim(was_crowded=bool(claimable and claimable[0]))
        now = rows[0][4]
        turns = [
            _Turn(row[0], row[1], open_or_explain(row[5], row[6], row[7], row[8]), row[2], row[3] or 0.0)
            for row in rows
        ]
        for turn in turns:
            if turn.rate is not None:
                turn.room = min(turn.room, allowed_now(turn.rate, turn.reserved_until, now))
        rooms = [turn.room for turn in turns]
        if held is not None:
            hosts = [host_of(turn.receiver.url) for turn in turns]
            rooms = bound_hosts(rooms, hosts, held.by_host, settings.MAX_CONNECTIONS_PER_HOST)
            rooms = leave_free(rooms, [held.by_subscription[turn.subscription_id] for turn in turns], limit)
        for turn, quota in zip(turns, share_out(rooms, limit), strict=True):
            turn.quota = quota
        served = [turn for turn in turns if turn.quota]
        lease_id = new_id()
        receivers = {turn.subscription_id: turn.receiver for turn in served}
        cursor.execute(
            sql.CLAIM_DELIVERIES,
            {
                "lanes": list(receivers),
                "quotas": [turn.quota for turn in served],
                "lease": lease_id,
                "lease_seconds": lease_seconds,
            },
        )
        deliveries = [
            Claimed(row[0], row[1], lease_id, row[2], row[3], row[4], row[5], row[6], row[7], receivers[row[1]])
            for row in cursor.fetchall()
        ]
        taken = dict.fromkeys((turn.subscription_id for turn in turns), 0)
        for delivery in deliveries:
            taken[delivery.subscription_id] += 1
        for turn in turns:
            if turn.rate is not None:
                _reserve(turn, turn.rate, taken[turn.subscription_id], now)
        other.execute(
            sql.SERVE_LANES,
            {
                "lanes": list(taken),
                "taken": list(taken.values()),
                "quotas": [turn.quota for turn in turns],
                "reserved": [turn.reserved_until if turn.rate is not None else None for turn in turns],
                "waits": [turn.wait_until for turn in turns],
            },
        )
    busy = {turn.subscription_id: turn.wait_until for turn in turns if taken[turn.subscription_id] >= turn.quota}
    # What a claim of the quiet lanes left behind is busy now, and another's.
    more = lanes is not Lanes.QUIET and None in busy.values()
    return Claim(
        deliveries,
        more=more or len(rows) >= LANES_AT_A_TIME,
        busy=frozenset(busy),
        waits=tuple(until - now for until in busy.values() if until is not None),
        was_crowded=len(rows) < rows[0][9],
        clock=Clock(now, started),
        deadline=started + lease_seconds,
    )


def _reserve(turn: _Turn, rate: float, taken: int, now: float) -> None:
    """Book `taken` deliveries on the lane's rate limit; when it is used up, say when it allows the next."""
    turn.reserved_until = max(turn.reserved_until, now) + taken / rate
    if taken >= turn.quota and allowed_now(rate, turn.reserved_until, now) < 1:
        turn.wait_until = turn.reserved_until - (burst(rate) - 1) / rate
