"""Rate limits: atomic in Redis over all processes; within this process while Redis is away."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import ConnectionPool, Redis

from core.redis import RedisUnavailable, call_redis


@dataclass(frozen=True)
class Verdict:
    """Whether a request may pass, how much is left in the window, and the seconds until it ends."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self, policy: str) -> dict[str, str]:
        """Return the RateLimit fields (IETF draft-ietf-httpapi-ratelimit-headers)."""
        headers = {
            "RateLimit-Policy": f'"{policy}";q={self.limit};w=60',
            "RateLimit": f'"{policy}";r={self.remaining};t={self.reset_seconds}',
        }
        if not self.allowed:
            headers["Retry-After"] = str(max(1, self.reset_seconds))
        return headers


_local = FixedWindowRateLimiter(MemoryStorage())


@lru_cache(maxsize=1)
def _shared(pool: ConnectionPool) -> FixedWindowRateLimiter:
    return FixedWindowRateLimiter(RedisStorage(settings.REDIS_URL, connection_pool=pool))


def hit(policy: str, subject: str, per_minute: int, cost: int = 1) -> Verdict:
    """Count `cost` against `subject` and tell whether it may pass.

    per_minute: at least 1.  cost: more than one is only counted when there is room for all of it, so
    that a batch that is refused uses up nobody's rate.
    """
    item = RateLimitItemPerMinute(per_minute)

    def count(limiter: FixedWindowRateLimiter) -> Verdict:
        # The test only spares the count: what lets pass is the hit, which is atomic.
        allowed = (cost == 1 or limiter.test(item, policy, subject, cost=cost)) and limiter.hit(
            item, policy, subject, cost=cost
        )
        stats = limiter.get_window_stats(item, policy, subject)
        return Verdict(allowed, per_minute, max(0, stats.remaining), max(0, math.ceil(stats.reset_time - time.time())))

    def count_in_redis(connection: Redis) -> Verdict:
        return count(_shared(connection.connection_pool))

    try:
        return call_redis(count_in_redis)
    except RedisUnavailable:
        return count(_local)
