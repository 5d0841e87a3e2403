"""Rate limits: counted atomically in Redis for all processes, some of it ahead; in this process alone while Redis is
away."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import NoScriptError

from core.async_redis import AsyncRedis
from core.redis import RedisUnavailable, call_redis

WINDOW_SECONDS = 60
# How much of a limit a process counts ahead; nothing if less than one tenth of it is left.
RESERVED_SHARE = 1 / 1000
NEAR_SHARE = 1 / 10
MOST_RESERVES = 10_000

# Adds each cost if all of it fits.  Returns the milliseconds left of the window, and for each cost whether it fitted
# and the count after it: one round trip, where the limits package needs three for each.  A key without an expiry gets
# one.
_COUNT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local limit, left = tonumber(ARGV[1]), redis.call('PTTL', KEYS[1])
local before, result = used, {0}
for position = 3, #ARGV do
    local cost = tonumber(ARGV[position])
    local allowed = 0
    if used + cost <= limit then
        used = used + cost
        allowed = 1
    end
    result[#result + 1] = allowed
    result[#result + 1] = used
end
if used > before then
    redis.call('INCRBY', KEYS[1], used - before)
end
if left < 0 then
    left = tonumber(ARGV[2])
    redis.call('PEXPIRE', KEYS[1], left)
end
result[1] = left
return result
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


@dataclass(frozen=True)
class Demand:
    """The costs of several requests of one subject, in their order."""

    subject: str
    per_minute: int
    costs: Sequence[int]


def _words(policy: str, demand: Demand) -> tuple[str | int, ...]:
    """Return the arguments of the script."""
    key = f"triggers:rate:{policy}:{demand.subject}"
    return (1, key, demand.per_minute, WINDOW_SECONDS * 1000, *demand.costs)


def _decisions(reply: Sequence[int], per_minute: int) -> list[RateLimitDecision]:
    """Return what the script's reply says of each cost."""
    reset_seconds = math.ceil(reply[0] / 1000)
    return [
        RateLimitDecision(bool(allowed), per_minute, max(0, per_minute - used), reset_seconds)
        for allowed, used in zip(reply[1::2], reply[2::2], strict=True)
    ]


def hit(policy: str, subject: str, per_minute: int, cost: int = 1) -> RateLimitDecision:
    """Count `cost` against the limit of `subject` and return whether it may pass.

    per_minute: at least 1.  cost: counted only if all of it fits, so that a batch that is refused uses up nothing.
    """
    words = _words(policy, Demand(subject, per_minute, [cost]))

    def count(redis: Any) -> Any:
        try:
            return redis.execute_command("EVALSHA", _COUNT_SHA, *words)
        except NoScriptError:  # Redis was restarted or flushed
            return redis.execute_command("EVAL", _COUNT, *words)

    try:
        return _decisions(call_redis(count), per_minute)[0]
    except RedisUnavailable:
        return _hit_locally(policy, subject, per_minute, cost)


@dataclass(slots=True)
class _Reserve:
    """What a process may allow by itself, because it has been counted already.

    left: how much.  others: what else is left of the limit, when it was counted.  ends_at: of the window, by the
    monotonic clock.
    """

    left: int
    others: int
    ends_at: float

    def take(self, cost: int, per_minute: int, now: float) -> RateLimitDecision | None:
        """Allow `cost`; None if there isn't enough left."""
        if cost > self.left or now >= self.ends_at:
            return None
        self.left -= cost
        return RateLimitDecision(True, per_minute, self.others + self.left, math.ceil(self.ends_at - now))


class ReservingCounter:
    """Counts against the limits of many subjects on an event loop, with a round trip for the few that need one.

    With what a request costs, a thousandth of a large limit is counted ahead, and the requests that follow are allowed
    without Redis while that lasts.  So what is allowed never exceeds the limit; and processes that get no more requests
    in a window may leave a thousandth each unused.  Near the limit, nothing is counted ahead.
    """

    def __init__(self) -> None:
        # By policy, subject, and limit; the oldest first.
        self._reserves: dict[tuple[str, str, int], _Reserve] = {}

    async def hit_each(
        self, redis: AsyncRedis, policy: str, demands: Sequence[Demand]
    ) -> list[list[RateLimitDecision]]:
        """Count the demands of several subjects, each cost as `hit` does."""
        now = time.monotonic()
        decided = [self._decide(policy, demand, now) for demand in demands]
        asked = [
            Demand(
                demand.subject,
                demand.per_minute,
                [cost for cost, decision in zip(demand.costs, decisions, strict=True) if decision is None],
            )
            for demand, decisions in zip(demands, decided, strict=True)
        ]
        needed = [demand for demand in asked if demand.costs]
        counted = iter(await self._count(redis, policy, needed) if needed else ())
        results = []
        for demand, decisions in zip(asked, decided, strict=True):
            others = iter(next(counted) if demand.costs else ())
            results.append([next(others) if decision is None else decision for decision in decisions])
        return results

    def _decide(self, policy: str, demand: Demand, now: float) -> list[RateLimitDecision | None]:
        """Return what can be allowed without Redis; None for each other cost."""
        reserve = self._reserves.get((policy, demand.subject, demand.per_minute))
        if reserve is None:
            return [None] * len(demand.costs)
        return [reserve.take(cost, demand.per_minute, now) for cost in demand.costs]

    async def _count(self, redis: AsyncRedis, policy: str, demands: Sequence[Demand]) -> list[list[RateLimitDecision]]:
        """Count the demands in Redis, in one round trip, and reserves with them."""
        ahead = [self._ahead(policy, demand) for demand in demands]
        commands = [
            (*_words(policy, demand), *([reserve] if reserve else []))
            for demand, reserve in zip(demands, ahead, strict=True)
        ]
        try:
            try:
                replies = await redis.run([("EVALSHA", _COUNT_SHA, *words) for words in commands])
            except NoScriptError:
                replies = await redis.run([("EVAL", _COUNT, *words) for words in commands])
        except RedisUnavailable:
            return [
                [_hit_locally(policy, demand.subject, demand.per_minute, cost) for cost in demand.costs]
                for demand in demands
            ]
        return [
            self._read(policy, demand, reserve, reply)
            for demand, reserve, reply in zip(demands, ahead, replies, strict=True)
        ]

    def _ahead(self, policy: str, demand: Demand) -> int:
        """Return how much to count ahead."""
        known = self._reserves.get((policy, demand.subject, demand.per_minute))
        if known is not None and known.others < demand.per_minute * NEAR_SHARE and time.monotonic() < known.ends_at:
            return 0
        return int(demand.per_minute * RESERVED_SHARE)

    def _read(self, policy: str, demand: Demand, ahead: int, reply: Sequence[int]) -> list[RateLimitDecision]:
        """Return what a reply says of each cost, and remember what was counted ahead."""
        decisions = _decisions(reply, demand.per_minute)
        now = time.monotonic()
        key = policy, demand.subject, demand.per_minute
        before = self._reserves.pop(key, None)
        left = before.left if before is not None and now < before.ends_at else 0
        if ahead and decisions.pop().allowed:
            left += ahead
        if demand.per_minute * RESERVED_SHARE >= 1:
            if len(self._reserves) >= MOST_RESERVES:
                del self._reserves[next(iter(self._reserves))]
            self._reserves[key] = _Reserve(left, max(0, demand.per_minute - reply[-1]), now + reply[0] / 1000)
        return decisions
