"""Rate limits: atomic in Redis over all processes; within this process while Redis is away."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import NoScriptError

from core.redis import Ask, RedisUnavailable, ask_redis

WINDOW_SECONDS = 60

# Counts, if there is room for all of it, and tells the rest of the window: one round trip, where the library
# needs three.  A key without an end gets one, however it came to be.
_COUNT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local allowed = 0
if used + tonumber(ARGV[1]) <= tonumber(ARGV[2]) then
    used = redis.call('INCRBY', KEYS[1], ARGV[1])
    allowed = 1
end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    left = tonumber(ARGV[3])
    redis.call('PEXPIRE', KEYS[1], left)
end
return {allowed, used, left}
"""
_COUNT_SHA = hashlib.sha1(_COUNT.encode(), usedforsecurity=False).hexdigest()  # what Redis calls a script by


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
            "RateLimit-Policy": f'"{policy}";q={self.limit};w={WINDOW_SECONDS}',
            "RateLimit": f'"{policy}";r={self.remaining};t={self.reset_seconds}',
        }
        if not self.allowed:
            headers["Retry-After"] = str(max(1, self.reset_seconds))
        return headers


_local = FixedWindowRateLimiter(MemoryStorage())


def _count_here(policy: str, subject: str, per_minute: int, cost: int) -> Verdict:
    item = RateLimitItemPerMinute(per_minute)
    allowed = _local.test(item, policy, subject, cost=cost) and _local.hit(item, policy, subject, cost=cost)
    window = _local.get_window_stats(item, policy, subject)
    return Verdict(allowed, per_minute, max(0, window.remaining), max(0, math.ceil(window.reset_time - time.time())))


def hit(policy: str, subject: str, per_minute: int, cost: int = 1) -> Verdict:
    """Count `cost` against `subject` and tell whether it may pass.

    per_minute: at least 1.  cost: it is only counted when there is room for all of it, so that a batch
    that is refused uses up nobody's rate.
    """

    def count(ask: Ask) -> Verdict:
        words = (1, f"triggers:rate:{policy}:{subject}", cost, per_minute, WINDOW_SECONDS * 1000)
        try:
            allowed, used, left_ms = ask("EVALSHA", _COUNT_SHA, *words)
        except NoScriptError:  # Redis is new, or forgot it
            allowed, used, left_ms = ask("EVAL", _COUNT, *words)
        return Verdict(bool(allowed), per_minute, max(0, per_minute - used), math.ceil(left_ms / 1000))

    try:
        return ask_redis(count)
    except RedisUnavailable:
        return _count_here(policy, subject, per_minute, cost)
