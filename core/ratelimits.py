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
# How much of a limit a process counts ahead, for how long that may be used, and for how many subjects.
RESERVED_SHARE = 1 / 1000
RESERVE_SECONDS = 1.0
MOST_RESERVES = 10_000

# Gives back what was counted ahead and not used, adds each cost if all of it fits, and counts a reserve ahead if all of
# them do and a tenth of the limit is left.  Returns the milliseconds left of the window, the reserve, and for each cost
# whether it fitted and the count after it: one round trip, where the limits package needs three for each.  A key
# without an expiry gets one.
_COUNT = """
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
local limit, reserve, left = tonumber(ARGV[1]), tonumber(ARGV[3]), redis.call('PTTL', KEYS[1])
local used, result = math.max(0, before - tonumber(ARGV[4])), {0, 0}
local all_fit = true
for position = 5, #ARGV do
    local cost = tonumber(ARGV[position])
    local allowed = 0
    if used + cost <= limit then
        used = used + cost
        allowed = 1
    else
        all_fit = false
    end
    result[#result + 1] = allowed
    result[#result + 1] = used
end
if all_fit and limit - used >= limit / 10 and used + reserve <= limit then
    used = used + reserve
    result[2] = reserve
end
if used ~= before then
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


def _words(policy: str, demand: Demand, reserve: int = 0, returned: int = 0) -> tuple[str | int, ...]:
    """Return the arguments of the script."""
    key = f"triggers:rate:{policy}:{demand.subject}"
    return (1, key, demand.per_minute, WINDOW_SECONDS * 1000, reserve, returned, *demand.costs)


def _decisions(reply: Sequence[int], per_minute: int) -> list[RateLimitDecision]:
    """Return what the script's reply says of each cost."""
    reset_seconds = math.ceil(reply[0] / 1000)
    return [
        RateLimitDecision(bool(allowed), per_minute, max(0, per_minute - used), reset_seconds)
        for allowed, used in zip(reply[2::2], reply[3::2], strict=True)
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

    left: how much.  others: what else is left of the limit, when it was counted.  counted_at, ends_at: when that was,
    and when the window ends at the earliest, by the monotonic clock.
    """

    left: int
    others: int
    counted_at: float
    ends_at: float

    def allow(self, costs: Sequence[int], per_minute: int, now: float) -> list[RateLimitDecision] | None:
        """Allow the costs; None, and nothing is used, if there isn't enough left for all, or the reserve is old."""
        if sum(costs) > self.left or now >= self.ends_at or now - self.counted_at > RESERVE_SECONDS:
            return None
        decisions = []
        for cost in costs:
            self.left -= cost
            decisions.append(
                RateLimitDecision(True, per_minute, self.others + self.left, math.ceil(self.ends_at - now))
            )
        return decisions

    def returned(self, now: float) -> int:
        """Return how much can be given back.  Shortly before the window's end nothing, or the next one would get it."""
        return self.left if now < self.ends_at - RESERVE_SECONDS else 0


class ReservingCounter:
    """Counts against the limits of many subjects on an event loop, with a round trip for the few that need one.

    With what requests cost, a thousandth of a large limit is counted ahead.  For a second, the requests that follow are
    allowed without Redis while that lasts.  The next one that needs a round trip gives back what is left of it.  So
    what is allowed never exceeds the limit, and what the others have used meanwhile is seen after a second.  Once a
    tenth of the limit is left, nothing is counted ahead.  For one task at a time.
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
        needed = [demand for demand, decisions in zip(demands, decided, strict=True) if decisions is None]
        counted = iter(await self._count(redis, policy, needed, now) if needed else ())
        return [next(counted) if decisions is None else decisions for decisions in decided]

    def _decide(self, policy: str, demand: Demand, now: float) -> list[RateLimitDecision] | None:
        """Return the decisions if the reserve is enough for them; None if Redis is needed."""
        reserve = self._reserves.get((policy, demand.subject, demand.per_minute))
        return None if reserve is None else reserve.allow(demand.costs, demand.per_minute, now)

    async def _count(
        self, redis: AsyncRedis, policy: str, demands: Sequence[Demand], now: float
    ) -> list[list[RateLimitDecision]]:
        """Count the demands in Redis, in one round trip, and settle their reserves."""
        commands = []
        for demand in demands:
            # Forgotten before it is given back: whether Redis has got it isn't known if the reply is lost.
            known = self._reserves.pop((policy, demand.subject, demand.per_minute), None)
            returned = known.returned(now) if known is not None else 0
            commands.append(_words(policy, demand, int(demand.per_minute * RESERVED_SHARE), returned))
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
        for demand, reply in zip(demands, replies, strict=True):
            if reserve := reply[1]:
                if len(self._reserves) >= MOST_RESERVES:
                    del self._reserves[next(iter(self._reserves))]
                others = demand.per_minute - reply[-1] - reserve
                # The window can't end before this, because the reply was made after `now`.
                ends_at = now + reply[0] / 1000
                self._reserves[policy, demand.subject, demand.per_minute] = _Reserve(reserve, others, now, ends_at)
        return [_decisions(reply, demand.per_minute) for demand, reply in zip(demands, replies, strict=True)]
