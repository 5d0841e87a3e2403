"""Which RQ workers are alive, by the heartbeats that they write into Redis."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from redis import Redis

ALIVE_SECONDS = 30.0
MOST_WORKERS = 10_000
MOST_LISTED = 200


def count_live_workers(connection: Redis) -> int:
    """Count the workers whose last heartbeat is fresh."""
    now = datetime.datetime.now(datetime.UTC)
    # At most this many, at random, in case somebody fills the set: a page for load balancers must stay cheap.
    keys: Any = connection.srandmember("rq:workers", MOST_WORKERS)
    pipeline = connection.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, "last_heartbeat", "death")
    return sum(_is_fresh(beat, now) for beat, death in pipeline.execute() if beat and not death)


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker as it describes itself in Redis.  working_seconds: what its jobs took in all."""

    name: str
    host: str
    state: str
    born_at: datetime.datetime | None
    jobs: int
    working_seconds: float


_FIELDS = ("last_heartbeat", "death", "hostname", "state", "birth", "successful_job_count", "total_working_time")


def list_live_workers(connection: Redis) -> list[LiveWorker]:
    """Return the workers whose last heartbeat is fresh, by name; if there are very many, only some."""
    now = datetime.datetime.now(datetime.UTC)
    keys: Any = connection.srandmember("rq:workers", MOST_LISTED)
    pipeline = connection.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, *_FIELDS)
    workers = []
    for key, (beat, death, host, state, birth, jobs, seconds) in zip(keys, pipeline.execute(), strict=True):
        if not beat or death or not _is_fresh(beat, now):
            continue
        name = key.decode(errors="replace").removeprefix("rq:worker:")
        workers.append(LiveWorker(name, _text(host), _text(state), _time(birth), int(_number(jobs)), _number(seconds)))
    return sorted(workers, key=lambda worker: worker.name)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _number(value: bytes | None) -> float:
    try:
        return float(value or 0)
    except ValueError:
        return 0.0


def _time(value: bytes | None) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment


def _is_fresh(heartbeat: bytes, now: datetime.datetime) -> bool:
    """Return whether a heartbeat, as RQ writes it into Redis, is less than ALIVE_SECONDS away from `now`."""
    try:
        beaten_at = datetime.datetime.fromisoformat(heartbeat.decode())
    except ValueError:
        return False
    if beaten_at.tzinfo is None:
        beaten_at = beaten_at.replace(tzinfo=datetime.UTC)
    return abs((now - beaten_at).total_seconds()) < ALIVE_SECONDS
