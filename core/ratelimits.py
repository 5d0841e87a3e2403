"""Rate limits: counted atomically in Redis for all processes; in this process alone while Redis is away."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import NoScriptError

from core.fast_paths.redis_connection import Execute, with_redis
from core.redis import RedisUnavailable

WINDOW_SECONDS = 60

# Adds the cost if all of it fits, and returns whether it did, the count, and the milliseconds left of the window: one
# round trip, where the limits package needs three.  A key without an expiry gets one, however it came to be.
_COUNT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local cost = tonumber(ARGV[1])
local allowed = 0
if used + cost <= tonumber(ARGV[2]) then
    used = redis.call('INCRBY', KEYS[1], cost)
    allowed = 1
end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    left = tonumber(ARGV[3])
    redis.call('PEXPIRE', KEYS[1], left)
end
return {allowed, used, left}
"""
_COUNT_SHA = hashlib.sha1(_COUNT.encode(), usedforsecurity=False).hexdigest()  # Redis's name for the script


@dataclass(frozen=True)
class RateLimitDecision:
    """Whether a request may pass, how much is left in the window, and the seconds until it ends."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self, policy: str) -> dict[str, str]:
        """Return the RateLimit fields (IETF draft-ietf-httpapi-ratelimit-headers)."""
        headers = {
            "RateLimit-Policy": f'"{policy}";q={self.limit};w={WINDOW_SECONDS}',
            "RateLimit": f'"{policy}";r={self.remaining};t={self.reset_seconds}',
        }
        if not self.allowed:
            headers["Retry-After"] = str(max(1, self.reset_seconds))
        return headers


_storage = MemoryStorage()
_local = FixedWindowRateLimiter(_storage)


def _hit_locally(policy: str, subject: str, per_minute: int, cost: int) -> RateLimitDecision:
    item = RateLimitItemPerMinute(per_minute)
    allowed = _local.test(item, policy, subject, cost=cost) and _local.hit(item, policy, subject, cost=cost)
    window = _local.get_window_stats(item, policy, subject)
    return RateLimitDecision(
        allowed, per_minute, max(0, window.remaining), max(0, math.ceil(window.reset_time - time.time()))
    )


def reset() -> None:
    """Forget what this process has counted while Redis was away."""
    _storage.reset()


def hit(policy: str, subject: str, per_minute: int, cost: int = 1) -> RateLimitDecision:
    """Count `cost` against the limit of `subject` and return whether it may pass.

    per_minute: at least 1.  cost: counted only if all of it fits, so that a batch that is refused uses up nothing.
    """

    def count(execute: Execute) -> RateLimitDecision:
        words = (1, f"triggers:rate:{policy}:{subject}", cost, per_minute, WINDOW_SECONDS * 1000)
        try:
            allowed, used, left_ms = execute("EVALSHA", _COUNT_SHA, *words)
        except NoScriptError:  # Redis was restarted or flushed
            allowed, used, left_ms = execute("EVAL", _COUNT, *words)
        return RateLimitDecision(bool(allowed), per_minute, max(0, per_minute - used), math.ceil(left_ms / 1000))

    try:
        return with_redis(count)
    except RedisUnavailable:
        return _hit_locally(policy, subject, per_minute, cost)
