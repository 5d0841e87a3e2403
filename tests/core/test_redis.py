"""What relies on Redis: wake-ups that aren't lost, a circuit breaker for outages, rate limits that are exact."""

from __future__ import annotations

import json
import re
import runpy
import socket
import threading
import zlib
from collections.abc import Iterator

import pytest
from django.conf import settings
from django_redis import get_redis_connection
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.sentinel import MasterNotFoundError, Sentinel
from rq import Queue
from rq.serializers import JSONSerializer

from core import ratelimits, wakeups
from core import redis as core_redis
from core.ratelimits import RateLimitDecision, hit
from core.redis import RedisUnavailable, call_redis, describe_fault
from core.wakeups import (
    EVENTS,
    SIGNAL_KEY,
    WEBHOOKS,
    ForbiddenJob,
    SignalListener,
    WakeUp,
    signal_events,
    wait_until_woken,
    wake,
    wake_soon,
)
from devstack.processes import ROOT
from devstack.waiting import wait_until


def queue(name: str) -> Queue:
    return Queue(name, connection=get_redis_connection("default"), job_class=WakeUp, serializer=JSONSerializer)


@pytest.mark.parametrize("name", [EVENTS, WEBHOOKS])
def test_a_wake_up_names_one_of_our_functions_and_no_row(name: str) -> None:
    assert wake(name)
    (job,) = queue(name).jobs
    assert job.func_name == settings.WAKE_UP_JOBS[name]
    assert callable(job.func)
    assert not job.args
    assert not job.kwargs
    raw = get_redis_connection("default").hget(job.key, "data")
    assert json.loads(zlib.decompress(raw)) == [settings.WAKE_UP_JOBS[name], None, [], {}]  # JSON, never a pickle


def test_a_wake_up_that_waits_is_not_added_twice_and_one_that_was_taken_is() -> None:
    for _ in range(5):
        assert wake(EVENTS)
    assert queue(EVENTS).count == 1
    assert queue(WEBHOOKS).count == 0
    get_redis_connection("default").lpop("rq:queue:events")
    assert wake(EVENTS)
    assert queue(EVENTS).count == 1


def test_a_wake_up_for_a_request_comes_from_another_thread_and_after_what_it_is_about() -> None:
    connection = get_redis_connection("default")
    for _ in range(30):
        wake_soon(EVENTS)
        assert wait_until_woken(30)
        assert connection.llen("rq:queue:events") == 1
        connection.delete("rq:queue:events")  # as a worker takes it, before it looks


def test_a_web_process_wakes_the_workers_before_it_ends() -> None:
    worker_exit = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["worker_exit"]
    connection = get_redis_connection("default")
    for _ in range(30):
        wake_soon(EVENTS)
        worker_exit(None, None)
        assert connection.llen("rq:queue:events") == 1
        connection.delete("rq:queue:events")


def test_who_waits_for_a_wake_up_does_not_wait_for_the_pause_between_two() -> None:
    done: list[int] = []
    waker = wakeups._Waker(lambda: not done.append(len(done)), pause=3600)
    for number in range(3):
        waker.request()
        assert waker.wait(30)
        assert len(done) == number + 1


def test_many_requests_share_a_wake_up() -> None:
    before = get_redis_connection("default").info("commandstats")["cmdstat_llen"]["calls"]
    for _ in range(5000):
        wake_soon(EVENTS)
    assert wait_until_woken(30)
    assert queue(EVENTS).count == 1
    assert get_redis_connection("default").info("commandstats")["cmdstat_llen"]["calls"] - before < 2500


def test_requests_don_t_wait_for_a_redis_that_is_away_and_wake_it_up_again_when_it_is_back() -> None:
    core_redis.breaker.open(3600)
    wake_soon(EVENTS)
    assert wait_until_woken(30)
    assert queue(EVENTS).count == 0
    core_redis.breaker.reset()
    wake_soon(EVENTS)
    assert wait_until_woken(30)
    assert queue(EVENTS).count == 1


def test_redis_does_not_grow_with_wake_ups() -> None:
    connection = get_redis_connection("default")
    for _ in range(50):
        wake(EVENTS)
        connection.delete("rq:job:" + connection.lpop("rq:queue:events").decode())
    assert wake(EVENTS)
    assert len(connection.keys("rq:job:*")) == 1


@pytest.mark.parametrize("name", ["os.system", "triggers_project.jobs.fan_out_for", "builtins.eval", ""])
def test_a_job_that_names_another_function_is_refused(name: str) -> None:
    job = WakeUp.create("os.getcwd", connection=get_redis_connection("default"), serializer=JSONSerializer)
    job._func_name = name
    with pytest.raises(ForbiddenJob):
        _ = job.func


def test_a_job_with_arguments_or_callbacks_is_refused() -> None:
    connection = get_redis_connection("default")
    job = WakeUp.create(settings.WAKE_UP_JOBS[EVENTS], args=(1,), connection=connection, serializer=JSONSerializer)
    with pytest.raises(ForbiddenJob):
        _ = job.func
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)


def test_after_a_failure_redis_is_left_alone_for_a_moment_and_then_asked_again() -> None:
    asked: list[int] = []

    def fail(connection: Redis) -> None:
        asked.append(1)
        raise RedisConnectionError("gone")

    with pytest.raises(RedisUnavailable, match="gone"):
        call_redis(fail)
    for _ in range(3):
        with pytest.raises(RedisUnavailable, match="a moment ago"):
            call_redis(fail)
    assert asked == [1]
    assert wake(EVENTS) is False
    assert core_redis.breaker.is_open
    core_redis.breaker.open(0)
    assert wake(EVENTS) is True


@pytest.mark.parametrize("command", ["CLIENT KILL TYPE normal", "SCRIPT FLUSH"])
def test_a_redis_that_closed_idle_connections_or_forgot_our_script_goes_on_counting(command: str) -> None:
    assert hit("p", "a", 5).remaining == 4
    assert wake(EVENTS)
    get_redis_connection("default").execute_command(command)
    assert hit("p", "a", 5).remaining == 3
    assert wake(EVENTS)
    assert not core_redis.breaker.is_open
    assert get_redis_connection("default").get("triggers:rate:p:a") == b"2"


def test_what_redis_refuses_leaves_the_connection_in_order() -> None:
    hit("p", "a", 5)
    get_redis_connection("default").lpush("triggers:rate:p:b", "x")
    assert hit("p", "b", 5).allowed, "counted here"
    assert core_redis.breaker.is_open
    core_redis.breaker.reset()
    assert hit("p", "a", 5).remaining == 3


def test_a_fault_that_is_not_redis_s_is_not_swallowed() -> None:
    def fail(connection: Redis) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        call_redis(fail)
    assert wake(EVENTS)


def test_a_rate_is_counted_down_and_refused_at_its_end() -> None:
    decisions = [hit("p", "a", 3) for _ in range(4)]
    assert [(decision.allowed, decision.remaining) for decision in decisions] == [
        (True, 2), (True, 1), (True, 0), (False, 0),
    ]  # fmt: skip
    assert all(0 <= decision.reset_seconds <= 60 for decision in decisions)
    assert hit("p", "b", 3).allowed
    assert hit("q", "a", 3).allowed


def test_a_cost_passes_whole_or_not_at_all() -> None:
    assert hit("p", "a", 10, cost=6).remaining == 4
    assert not hit("p", "a", 10, cost=5).allowed
    assert hit("p", "a", 10, cost=4).allowed
    assert not hit("p", "a", 10).allowed


@pytest.mark.parametrize("cost", [1, 2])
def test_callers_at_once_never_get_more_than_the_rate(cost: int) -> None:
    gate = threading.Barrier(8)
    allowed: list[bool] = []

    def call() -> None:
        gate.wait()
        allowed.extend(hit("p", "a", 40, cost=cost).allowed for _ in range(10))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) * cost <= 40
    assert sum(allowed) > 0


def test_a_count_never_outlives_its_minute() -> None:
    hit("p", "a", 3)
    connection = get_redis_connection("default")
    assert all(0 < connection.ttl(key) <= 61 for key in connection.keys("triggers:rate:*"))
    assert connection.keys("triggers:rate:*")


@pytest.fixture
def without_redis() -> Iterator[None]:
    """Leave Redis alone, as after a failure."""
    core_redis.breaker.open(300)
    yield
    core_redis.breaker.reset()


def test_without_redis_the_rate_is_counted_in_this_process(without_redis: None) -> None:
    ratelimits.reset()
    assert [hit("p", "alone", 2).allowed for _ in range(3)] == [True, True, False]


def test_the_headers_tell_the_policy_what_is_left_and_when_to_come_back() -> None:
    assert RateLimitDecision(True, 60, 59, 12).headers("events") == {
        "RateLimit-Policy": '"events";q=60;w=60',
        "RateLimit": '"events";r=59;t=12',
    }
    assert RateLimitDecision(False, 60, 0, 0).headers("events")["Retry-After"] == "1"


def test_a_signal_is_taken_by_one_listener_and_one_that_comes_meanwhile_is_not_lost() -> None:
    taken: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        taken.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(30)

    listener = SignalListener(slowly)
    listener.start()
    try:
        assert signal_events()
        assert begun.wait(30)
        for _ in range(5):
            assert signal_events()  # while the listener is busy: they share one token
        assert get_redis_connection("default").zcard(SIGNAL_KEY) == 1
        go_on.set()
        wait_until(lambda: len(taken) == 2, "the second signal was lost")
        assert get_redis_connection("default").zcard(SIGNAL_KEY) == 0
    finally:
        listener.stop()
        listener.join(30)


def test_a_listener_outlives_a_redis_that_is_away() -> None:
    taken: list[int] = []
    core_redis.breaker.open(3600)
    assert not signal_events()
    listener = SignalListener(lambda: taken.append(1))
    listener.start()
    try:
        core_redis.breaker.reset()
        wait_until(lambda: signal_events() and bool(taken), "the listener takes no signal")
    finally:
        listener.stop()
        listener.join(30)


def test_a_fault_of_the_sentinels_names_their_setting_and_what_they_failed_with() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(MasterNotFoundError) as caught:
        Sentinel([("127.0.0.1", port)], sentinel_kwargs={"password": "secret"}).discover_master("mymaster")
    told = describe_fault(caught.value)
    assert told["setting"] == "REDIS_SENTINELS"
    assert re.fullmatch(r"No master found for 'mymaster': [^<>]*ConnectionError[^<>]*", told["reason"])
    assert describe_fault(RedisConnectionError("refused")) == {"setting": "REDIS_URL", "reason": "refused"}
