"""How the front door tells the senders of deliveries that it has leased: through Redis, which loses nothing by it.

The front door leaves the ids of events in a sorted set, and a sender takes them at once.  Nothing else about an event
passes through Redis: the sender reads the deliveries from the database, where the id of the event is their lease.  A
sender that is ready says so in a key that expires, so that nothing is left for senders that aren't there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable
from typing import Any

from core.async_redis import AsyncRedis
from core.ids import parse_id

LEASED_KEY = "triggers:leased"
SENDERS_KEY = "triggers:senders"
# How long a sender that has said that it is ready counts as one that is.
READY_SECONDS = 1.0
# How long a sender waits for the next event before it says so again; below the timeout of Redis's socket.
WAIT_SECONDS = 0.25
# Senders that leave so many events waiting don't keep up.
MOST_WAITING = 32
# The most events that a sender takes at a time.
MOST_TAKEN = 8

_SAY_READY: tuple[str | int | float, ...] = ("SET", SENDERS_KEY, "1", "PX", int(READY_SECONDS * 1000))


class LeaseChannel:
    """The channel, for the event loop that it is used in.  Each method raises RedisUnavailable."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._said_ready_at = float("-inf")  # by the monotonic clock

    async def has_ready_senders(self) -> bool:
        """Return whether a sender is ready, and the senders keep up."""
        ready, waiting = await self._redis.run([("EXISTS", SENDERS_KEY), ("ZCARD", LEASED_KEY)])
        return bool(ready) and waiting < MOST_WAITING

    async def offer(self, event_ids: Collection[str]) -> bool:
        """Leave events for a sender; return whether senders are ready for more.

        If none is ready, they may still be waiting: `withdraw` them.
        """
        members = [word for event_id in event_ids for word in (0, event_id)]
        _, ready, waiting = await self._redis.run(
            [("ZADD", LEASED_KEY, *members), ("EXISTS", SENDERS_KEY), ("ZCARD", LEASED_KEY)]
        )
        return bool(ready) and waiting < MOST_WAITING

    async def withdraw(self, event_ids: Collection[str]) -> list[str]:
        """Take events back; return those that no sender has taken."""
        replies = await self._redis.run([("ZREM", LEASED_KEY, event_id) for event_id in event_ids])
        return [event_id for event_id, removed in zip(event_ids, replies, strict=True) if removed]

    async def take(self) -> list[uuid.UUID]:
        """Say that a sender is ready, wait up to WAIT_SECONDS for an event, and take it, with others that wait."""
        commands: list[tuple[str | int | float, ...]] = [
            ("BZPOPMIN", LEASED_KEY, WAIT_SECONDS),
            ("ZPOPMIN", LEASED_KEY, MOST_TAKEN - 1),
        ]
        now = time.monotonic()
        if now - self._said_ready_at >= WAIT_SECONDS:
            self._said_ready_at = now
            commands.insert(0, _SAY_READY)
        *_, first, others = await self._redis.run(commands)
        return _ids([*(first or ()), *others])

    async def take_waiting(self) -> list[uuid.UUID]:
        """Take events that wait, for a sender that isn't ready for them."""
        (found,) = await self._redis.run([("ZPOPMIN", LEASED_KEY, MOST_TAKEN)])
        return _ids(found)


def _ids(reply: Iterable[Any]) -> list[uuid.UUID]:
    """Return the ids in a reply, without scores, and without what somebody else has left in the set.

    A score follows its member; with RESP3, both are in a list of their own.
    """
    found = []
    for part in reply:
        if isinstance(part, list):
            found += _ids(part)
        elif isinstance(part, bytes) and (event_id := parse_id(part.decode(errors="replace"))) is not None:
            found.append(event_id)
    return found
