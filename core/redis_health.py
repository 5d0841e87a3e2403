"""What health and the admin's first page say about Redis: whether it accepts writes, and which workers are alive."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from core.redis import RedisUnavailable, call_redis
from core.workers import count_live_workers

PROBE_KEY = "triggers:health:probe"
PROBE_SECONDS = 60

NO_RESPONSE = "Redis is not responding."
NO_WORKER = "No worker has sent a heartbeat in the last 30 seconds: events and deliveries wait until one runs."

# Redis is there, reads, and refuses to write (https://redis.io/docs, "Error replies").  The first two have a class in
# redis-py, which takes the code away from the message.
_REFUSALS = {
    "READONLY": "it is a read-only replica",
    "OOM": "it has reached its maxmemory, and its policy evicts nothing",
    "MISCONF": "it can't save to its disk",
    "NOREPLICAS": "it has too few replicas",
}


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """state: `up`, `down`, or `refuses_writes`.  problem: a sentence, empty if there is none.

    workers: how many are alive; None if that is unknown.
    """

    state: str
    workers: int | None
    problem: str = ""


def write_refusal(error: BaseException | None) -> str | None:
    """Return the sentence for an error with which Redis refuses a write; None for any other error.

    Our connections turn a replica's refusal into a connection error, so the cause of an error counts, too.
    """
    while error is not None:
        if isinstance(error, ReadOnlyError):
            code = "READONLY"
        elif isinstance(error, OutOfMemoryError):
            code = "OOM"
        else:
            code = str(error).split(" ", 1)[0] if isinstance(error, ResponseError) else ""
        if code in _REFUSALS:
            return f"Redis refuses writes: {_REFUSALS[code]} ({code})."
        error = error.__cause__
    return None


def check_redis() -> RedisHealth:
    """Write a key and count the workers.

    Workers write their heartbeats into Redis, so while it accepts no writes, the number of live workers is unknown.
    """
    try:
        workers, refusal = call_redis(_look)
    except RedisUnavailable as error:
        # The breaker remembers why it is open, so that this also says so when another call was the one refused.
        refusal = write_refusal(error) or write_refusal(error.reason)
        return RedisHealth("refuses_writes" if refusal else "down", None, refusal or NO_RESPONSE)
    if refusal:
        return RedisHealth("refuses_writes", None, refusal)
    return RedisHealth("up", workers, "" if workers else NO_WORKER)


def _look(connection: Redis) -> tuple[int, str | None]:
    """Return how many workers are alive, and why Redis refuses a write, if it does."""
    try:
        connection.set(PROBE_KEY, "1", ex=PROBE_SECONDS)
    except RedisError as error:
        refusal = write_refusal(error)
        if refusal is None:
            raise
        return 0, refusal
    return count_live_workers(connection), None
