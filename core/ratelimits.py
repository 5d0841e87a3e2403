"""Rate limits: atomic in Redis over all processes; within this process while Redis is away.

A process that is far from a high limit books a thousandth of it at a time and counts that down by itself, so that
Redis isn't asked for each event. From half of the limit on each is booked alone: the end is exact, but for what
other processes have booked before and not used.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import NoScriptError

from core.recent import Recent
from core.redis import Ask, RedisUnavailable, ask_redis

WINDOW_SECONDS = 60

# What is booked at a time, as a share of the limit, and up to which share of the limit.
SHARE_BOOKED = 1 / 1000
BOOKED_UP_TO = 1 / 2

# Counts, if there is room for all of it, and tells the rest of the window: one round trip, where the library
# needs three.  A key without an end gets one, however it came to be.  Answers how many it has counted: the cost,
# or as many as the caller would like to book while they end below the last argument.
_COUNT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local cost, booking = tonumber(ARGV[1]), tonumber(ARGV[4])
local counted = 0
if booking > cost and used + booking <= tonumber(ARGV[5]) then
    counted = booking
elseif used + cost <= tonumber(ARGV[2]) then
    counted = cost
end
if counted > 0 then
    used = redis.call('INCRBY', KEYS[1], counted)
end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    left = tonumber(ARGV[3])
    redis.call('PEXPIRE', KEYS[1], left)
end
return {counted, used, left}
"""
_COUNT_SHA = hashlib.sha1(_COUNT.encode(), usedforsecurity=False).hexdigest()  # what Redis calls a script by


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


_local = FixedWindowRateLimiter(MemoryStorage())


def _count_here(policy: str, subject: str, per_minute: int, cost: int) -> RateLimitDecision:
    item = RateLimitItemPerMinute(per_minute)
    allowed = _local.test(item, policy, subject, cost=cost) and _local.hit(item, policy, subject, cost=cost)
    window = _local.get_window_stats(item, policy, subject)
    return RateLimitDecision(
        allowed, per_minute, max(0, window.remaining), max(0, math.ceil(window.reset_time - time.time()))
    )


@dataclass(slots=True)
class _Booking:
    """What this process has booked and not used.  ends_at: end of the window, by the monotonic clock."""

    per_minute: int
    left: int
    remaining: int
    ends_at: float


class _Bookings:
    """The bookings of this process; forgetting one costs its subject what is left of it, for a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bookings: Recent[tuple[str, str], _Booking] = Recent()

    def take(self, key: tuple[str, str], per_minute: int, cost: int) -> RateLimitDecision | None:
        """Take `cost` of what is booked; None when it isn't there."""
        now = time.monotonic()
        with self._lock:
            booking = self._bookings.get(key)
            if booking is None or booking.left < cost or booking.per_minute != per_minute or booking.ends_at <= now:
                return None
            booking.left -= cost
            remaining = booking.remaining + booking.left
        return RateLimitDecision(True, per_minute, remaining, math.ceil(booking.ends_at - now))

    def add(self, key: tuple[str, str], new: _Booking) -> int:
        """Keep a booking, together with what is left of one in the same window; return what is left of both."""
        with self._lock:
            old = self._bookings.get(key)
            # Two looks at the end of one window differ by how long Redis took; two windows by a minute.
            if old and old.per_minute == new.per_minute and abs(old.ends_at - new.ends_at) < WINDOW_SECONDS / 2:
                new.left += old.left
                new.ends_at = min(new.ends_at, old.ends_at)
            self._bookings[key] = new
            return new.left

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._bookings.clear()


_bookings = _Bookings()


def forget() -> None:
    """Forget what this process has booked."""
    _bookings.clear()


def hit(policy: str, subject: str, per_minute: int, cost: int = 1) -> RateLimitDecision:
    """Count `cost` against `subject` and tell whether it may pass.

    per_minute: at least 1.  cost: it is only counted when there is room for all of it, so that a batch
    that is refused uses up nobody's rate.
    """
    key = (policy, subject)
    booking = int(per_minute * SHARE_BOOKED)
    if booking > cost:
        verdict = _bookings.take(key, per_minute, cost)
        if verdict is not None:
            return verdict

    def count(ask: Ask) -> RateLimitDecision:
        words = (
            1, f"triggers:rate:{policy}:{subject}", cost, per_minute, WINDOW_SECONDS * 1000,
            booking, int(per_minute * BOOKED_UP_TO),
        )  # fmt: skip
        asked_at = time.monotonic()
        try:
            counted, used, left_ms = ask("EVALSHA", _COUNT_SHA, *words)
        except NoScriptError:  # Redis is new, or forgot it
            counted, used, left_ms = ask("EVAL", _COUNT, *words)
        remaining, ours = max(0, per_minute - used), 0
        if booking:
            spare = max(0, counted - cost)
            ours = _bookings.add(key, _Booking(per_minute, spare, remaining, asked_at + left_ms / 1000))
        return RateLimitDecision(counted >= cost, per_minute, remaining + ours, math.ceil(left_ms / 1000))

    try:
        return ask_redis(count)
    except RedisUnavailable:
        return _count_here(policy, subject, per_minute, cost)
