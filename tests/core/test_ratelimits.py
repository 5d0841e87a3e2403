"""Rate limits are exact over threads and processes, and go on within the process while Redis is away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest
from django_redis import get_redis_connection

from core import ratelimits
from core.async_redis import AsyncRedis
from core.ratelimits import Demand, RateLimitDecision, ReservingCounter, hit
from core.redis import breaker
from devstack.processes import ROOT
from tests.core.redis_loop import with_redis

KEY = "triggers:rate:p:a"


def counted() -> int:
    return int(get_redis_connection("default").get(KEY) or 0)


def test_every_hit_is_counted_in_redis_and_the_rest_is_told_exactly() -> None:
    decisions = [hit("p", "a", 60_000) for _ in range(12)]
    assert [decision.remaining for decision in decisions] == list(range(59_999, 59_987, -1))
    assert all(decision.allowed and 0 < decision.reset_seconds <= 60 for decision in decisions)
    assert counted() == 12
    assert hit("p", "a", 60_000, cost=500).remaining == 60_000 - 512
    assert counted() == 512


def test_one_process_gets_the_whole_rate_and_not_one_more() -> None:
    assert sum(hit("p", "a", 3000).allowed for _ in range(3100)) == 3000
    assert counted() == 3000


def test_threads_at_once_get_the_whole_rate_and_not_one_more() -> None:
    allowed: list[int] = []

    def call() -> None:
        allowed.append(sum(hit("p", "a", 3000).allowed for _ in range(500)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 3000


def test_processes_together_get_the_whole_rate_and_not_one_more() -> None:
    program = (
        "import django; django.setup()\n"
        "from core.ratelimits import hit\n"
        "import sys\n"
        "assert hit('p', 'a', 6000).allowed\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(sum(hit('p', 'a', 6000).allowed for _ in range(2500)))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=dict(os.environ), cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    get_redis_connection("default").expire(KEY, 300)  # one window, however busy the machine is
    results = [json.loads(process.communicate("\n", timeout=60)[0]) for process in processes]
    assert 3 + sum(results) == 6000


def test_a_window_ends_and_the_next_one_is_whole() -> None:
    get_redis_connection("default").set(KEY, 4999, px=200)
    assert hit("p", "a", 5000).remaining == 0
    waited = threading.Event()
    while get_redis_connection("default").exists(KEY):
        waited.wait(0.02)
    assert hit("p", "a", 5000).remaining == 4999


def test_a_count_without_an_end_gets_one() -> None:
    redis = get_redis_connection("default")
    redis.set(KEY, 3000)
    assert not hit("p", "a", 3000).allowed
    assert 0 < redis.pttl(KEY) <= 60_000, "or nobody of the organization would ever pass again"


def test_a_rate_that_was_changed_holds_at_once() -> None:
    assert hit("p", "a", 5000).allowed
    assert hit("p", "a", 6000).remaining == 5998
    assert not hit("p", "a", 2).allowed


def test_what_redis_refuses_is_counted_in_this_process() -> None:
    get_redis_connection("default").set(KEY, "no number")
    assert [hit("p", "a", 2).allowed for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("where", ["Redis", "this process"])
def test_a_cost_that_does_not_fit_uses_up_nothing(where: str) -> None:
    if where == "this process":
        get_redis_connection("default").set(KEY, "no number")
    costs = [3, 8, 5, 3, 2, 1]
    decisions = [hit("p", "a", 10, cost=cost) for cost in costs]
    assert [decision.allowed for decision in decisions] == [True, False, True, False, True, False]
    assert [decision.remaining for decision in decisions] == [7, 7, 2, 2, 0, 0]


async def hit_one(counter: ReservingCounter, redis: AsyncRedis, per_minute: int, cost: int = 1) -> RateLimitDecision:
    ((decision,),) = await counter.hit_each(redis, "p", [Demand("a", per_minute, [cost])])
    return decision


@pytest.fixture
def long_reserves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted ahead lasts, however busy the machine is."""
    monkeypatch.setattr(ratelimits, "RESERVE_SECONDS", 20.0)


@pytest.mark.usefixtures("long_reserves")
def test_a_thousandth_is_counted_ahead_and_what_is_left_is_told_exactly() -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        remaining, in_redis = [], []
        for _ in range(63):
            decision = await hit_one(counter, redis, 60_000)
            assert decision.allowed
            assert 0 < decision.reset_seconds <= 60
            remaining.append(decision.remaining)
            in_redis.append(counted())
        assert remaining == list(range(59_999, 59_999 - 63, -1))
        assert in_redis == [61] * 61 + [122] * 2

    with_redis(work)


@pytest.mark.usefixtures("long_reserves")
def test_what_was_counted_ahead_is_given_back_for_a_cost_that_is_larger() -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        await hit_one(counter, redis, 10_000)
        ((first, large, last),) = await counter.hit_each(redis, "p", [Demand("a", 10_000, [4, 500, 4])])
        assert [first.remaining, large.remaining, last.remaining] == [9_995, 9_495, 9_491]
        assert counted() == 509 + 10
        assert (await hit_one(counter, redis, 10_000, 9_491)).allowed
        assert counted() == 10_000
        assert not (await hit_one(counter, redis, 10_000)).allowed

    with_redis(work)


@pytest.mark.usefixtures("long_reserves")
def test_with_what_is_refused_nothing_is_counted_ahead() -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        await hit_one(counter, redis, 10_000, 2_000)
        for _ in range(3):
            refused = await hit_one(counter, redis, 10_000, 9_000)
            assert (refused.allowed, refused.remaining) == (False, 8_000)
            assert counted() == 2_000

    with_redis(work)


def test_near_the_limit_nothing_is_counted_ahead() -> None:
    async def work(redis: AsyncRedis) -> None:
        hit("p", "a", 10_000, 9_000)
        assert (await hit_one(ReservingCounter(), redis, 10_000)).remaining == 999
        assert counted() == 9_001

    with_redis(work)


def test_what_others_have_used_is_seen_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        await hit_one(counter, redis, 10_000)
        hit("p", "a", 10_000, 5_000)
        monkeypatch.setattr(ratelimits, "RESERVE_SECONDS", 0.0)
        assert (await hit_one(counter, redis, 10_000)).remaining == 4_998

    with_redis(work)


@pytest.mark.parametrize("limit", [7, 3000])
def test_processes_that_count_ahead_get_the_whole_rate_together_and_not_one_more(limit: int) -> None:
    async def work(redis: AsyncRedis) -> None:
        counters = [ReservingCounter(), ReservingCounter()]
        get_redis_connection("default").set(KEY, 0, ex=300)  # one window, however busy the machine is
        allowed = sum([(await hit_one(counters[turn % 2], redis, limit)).allowed for turn in range(limit + 20)])
        assert allowed == limit
        assert counted() == limit

    with_redis(work)


def test_what_was_counted_ahead_ends_with_its_window() -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        get_redis_connection("default").set(KEY, 0, px=300)
        await hit_one(counter, redis, 60_000)
        while get_redis_connection("default").exists(KEY):
            await asyncio.sleep(0.02)
        assert (await hit_one(counter, redis, 60_000)).remaining == 59_999
        assert counted() == 61

    with_redis(work)


@pytest.mark.usefixtures("long_reserves")
def test_without_redis_what_was_counted_ahead_is_used_up_and_then_this_process_counts() -> None:
    async def work(redis: AsyncRedis) -> None:
        counter = ReservingCounter()
        assert (await hit_one(counter, redis, 2_000)).remaining == 1_999
        breaker.open(60)
        try:
            left = [(await hit_one(counter, redis, 2_000)).remaining for _ in range(3)]
        finally:
            breaker.reset()
        assert left == [1_998, 1_997, 1_999]

    with_redis(work)


def test_a_count_that_redis_forgot_the_script_of_is_made_nevertheless() -> None:
    async def work(redis: AsyncRedis) -> None:
        get_redis_connection("default").script_flush()
        assert (await hit_one(ReservingCounter(), redis, 100)).allowed
        assert counted() == 1

    with_redis(work)
