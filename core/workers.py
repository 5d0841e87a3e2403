"""Which RQ workers live, from the heartbeats that they write into Redis."""

from __future__ import annotations

import datetime

from redis import Redis

ALIVE_SECONDS = 30.0


def count_live_workers(connection: Redis) -> int:
    """Count the workers whose last heartbeat is fresh."""
    now = datetime.datetime.now(datetime.UTC)
    keys = list(connection.smembers("rq:workers"))
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
