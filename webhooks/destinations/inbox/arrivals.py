"""Tells the web processes that an inbox has something new, so that waiting consumers get it within milliseconds.

Also that it was disabled or deleted, so that they wait no longer.

The message on a Redis channel may get lost, so processes with waiting consumers also look now and then.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from core.redis import RedisUnavailable, call_redis

CHANNEL = "triggers:inbox-arrivals"


def announce_arrivals(inbox_ids: Iterable[uuid.UUID]) -> None:
    """Tell that these inboxes have deliveries to fetch, or can't be fetched from any more, which is committed."""
    message = " ".join(inbox_id.hex for inbox_id in inbox_ids)
    try:
        call_redis(lambda redis: redis.publish(CHANNEL, message))
    except RedisUnavailable:
        return


def announced(message: bytes) -> list[uuid.UUID]:
    """Return the inboxes that a message names; none for one that isn't ours."""
    try:
        return [uuid.UUID(hex=word) for word in message.decode("ascii").split()]
    except ValueError:
        return []
