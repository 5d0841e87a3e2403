"""Which RQ workers live, from the heartbeats that they write into Redis."""

from __future__ import annotations

import datetime
from typing import Any

from redis import Redis

ALIVE_SECONDS = 30.0
MOST_WORKERS = 10_000


def count_live_workers(connection: Redis) -> int:
    """Count the workers whose last heartbeat is fresh."""
    now = datetime.datetime.now(datetime.UTC)
    # Some of them at random, should somebody fill the set: a page that load balancers ask for must stay cheap.
    keys: Any = connection.srandmember("rq:workers", MOST_WORKERS)
    pipeline = connection.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, "last_heartbeat", "death")
    return sum(_is_fresh(beat, now) for beat, death in pipeline.execute() if beat and not death)


def _is_fresh(heartbeat: bytes, now: datetime.datetime) -> bool:
    """Tell whether a heartbeat, as RQ writes it into Redis, is less than ALIVE_SECONDS away from `now`."""
    try:
        beaten_at = datetime.datetime.fromisoformat(heartbeat.decode())
    except ValueError:
        return False
    if beaten_at.tzinfo is None:
        beaten_at = beaten_at.replace(tzinfo=datetime.UTC)
    return abs((now - beaten_at).total_seconds()) < ALIVE_SECONDS
