"""The worker class and the two jobs, in this process: what waits is fanned out and delivered."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.core.management import get_commands
from django.db import connection
from django_redis import get_redis_connection
from django_rq import get_worker
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.serializers import JSONSerializer

from core.wakeups import EVENTS, WEBHOOKS, WakeUp, wake
from core.workers import count_live_workers
from devstack.http_receiver import Receiver
from devstack.processes import ROOT
from devstack.waiting import wait_until
from events.models import Event
from orgs.models import Organization
from triggers_project import jobs
from triggers_project.worker import TriggersWorker
from webhooks import subscriptions
from webhooks.dispatch.sender import current_sender
from webhooks.models import Delivery

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Give back what a worker changes about its process: signals, the threads' turns, open files."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interval, files = sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    sys.setswitchinterval(interval)
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sender = current_sender()
    if sender is not None:
        sender.stop(5)


@pytest.fixture
def posted(api: Any, organization: Organization, receiver: Receiver) -> list[str]:
    """Return the ids of events that were posted for one subscription to `receiver`."""
    subscriptions.create(organization.id, url=receiver.url(), event_types=["*"])
    return [api.post("/api/events", {"type": "a", "data": number}).json()["id"] for number in range(30)]


def test_a_worker_starts_without_what_serves_requests() -> None:
    code = """
import django, sys
django.setup()
import triggers_project.worker
from core.management.commands import rqworker
print([name for name in ("rest_framework.views", "drf_spectacular.utils", "uvicorn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_plain_command_gets_our_worker_with_json_jobs_and_both_queues() -> None:
    worker = get_worker(EVENTS, WEBHOOKS)
    assert isinstance(worker, TriggersWorker)
    assert worker.serializer is JSONSerializer
    assert worker.job_class is WakeUp
    assert [queue.name for queue in worker.queues] == [EVENTS, WEBHOOKS]
    assert "rqworker" in get_commands()


def test_a_burst_fans_out_and_delivers_all_that_waits(posted: list[str], receiver: Receiver) -> None:
    assert get_worker(EVENTS, WEBHOOKS).work(burst=True)
    assert set(Event.objects.values_list("status", flat=True)) == {"processed"}
    assert set(Delivery.objects.values_list("status", flat=True)) == {"delivered"}
    assert sorted(request.headers["webhook-id"] for request in receiver.requests) == sorted(posted)
    assert get_redis_connection("default").llen("rq:queue:events") == 0
    assert not get_redis_connection("default").keys("rq:job:*"), "a wake-up that was followed leaves nothing"
    assert not get_redis_connection("default").keys("rq:wip:*")


def test_wake_ups_that_were_followed_are_counted_and_one_that_failed_is_kept() -> None:
    worker = get_worker(EVENTS, WEBHOOKS)
    redis = get_redis_connection("default")
    worker.register_birth()
    for name in (EVENTS, WEBHOOKS, EVENTS):
        assert wake(name)
        job, queue = worker.dequeue_job_and_maintain_ttl(timeout=None)
        if name == WEBHOOKS:
            job.timeout = 1
            job._func_name = "os.getcwd"
        worker.execute_job(job, queue)
    worker._beat()
    assert redis.hget(worker.key, "successful_job_count") == b"2"
    assert redis.hget(worker.key, "failed_job_count") == b"1"
    assert redis.hget(worker.key, "state") == b"idle"
    (failed,) = Queue(WEBHOOKS, connection=redis, job_class=WakeUp).failed_job_registry.get_job_ids()
    assert redis.keys("rq:job:*") == [f"rq:job:{failed}".encode()]
    assert (
        "ForbiddenJob" in WakeUp.fetch(failed, connection=redis, serializer=JSONSerializer).latest_result().exc_string
    )
    worker.register_death()


def test_a_worker_needs_no_job_to_find_what_waits(posted: list[str], receiver: Receiver) -> None:
    get_redis_connection("default").flushall()
    worker = get_worker(EVENTS, WEBHOOKS)

    def stop_when_done() -> None:
        try:
            wait_until(lambda: len(receiver.requests) == len(posted))
            wait_until(lambda: get_redis_connection("default").scard("rq:workers") == 1)
            alive.append(count_live_workers(get_redis_connection("default")))
            get_redis_connection("default").flushall()  # forgets the worker, which registers again
            wait_until(lambda: count_live_workers(get_redis_connection("default")) == 1)
        finally:
            connection.close()
            signal.raise_signal(signal.SIGTERM)

    alive: list[int] = []
    watcher = threading.Thread(target=stop_when_done)
    watcher.start()
    before = set(threading.enumerate())
    worker.work()
    watcher.join()
    # RQ gives its thread a second to end, which a busy machine may need; one that was left would take a minute.
    wait_until(lambda: {thread.name for thread in set(threading.enumerate()) - before} <= {"wake-ups"}, timeout=20)
    assert alive == [1]
    assert set(Delivery.objects.values_list("status", flat=True)) == {"delivered"}
    assert current_sender() is None
    assert count_live_workers(get_redis_connection("default")) == 0


def _listening(worker: TriggersWorker) -> threading.Thread:
    """Return the thread that listens for RQ's commands, once it does."""
    worker.subscribe()
    thread: Any = worker.pubsub_thread
    wait_until(thread._running.is_set)
    return cast(threading.Thread, thread)


def test_the_thread_that_listens_for_commands_ends_although_it_reads_the_reply_before_rq_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = get_worker(EVENTS, WEBHOOKS)
    thread, pubsub = _listening(worker), worker.pubsub
    unsubscribe = pubsub.unsubscribe

    def until_read() -> None:
        unsubscribe()
        wait_until(lambda: not pubsub.subscribed)

    monkeypatch.setattr(pubsub, "unsubscribe", until_read)
    worker.teardown()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("end", ["teardown", "subscribe"])
def test_the_thread_that_listens_for_commands_ends_where_redis_was_away_when_the_loop_ended(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    worker = get_worker(EVENTS, WEBHOOKS)
    thread = _listening(worker)

    def away() -> None:
        raise RedisConnectionError("away")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "register_death", away)
        getattr(worker, end)()  # the loop's end, or the next one's beginning after one that had none
    # What a Redis that ends does to the thread's connection.
    get_redis_connection("default").client_kill_filter(_type="pubsub")
    thread.join(timeout=10)
    assert not thread.is_alive()
    worker.teardown()


def test_a_worker_class_without_a_sender_delivers_within_the_job(posted: list[str], receiver: Receiver) -> None:
    jobs.process_events()
    assert get_redis_connection("default").llen("rq:queue:webhooks") == 1
    assert jobs.last_fan_out() <= time.monotonic()
    jobs.deliver_webhooks()
    assert len(receiver.requests) == len(posted)
    assert set(Delivery.objects.values_list("status", flat=True)) == {"delivered"}


def test_a_slice_that_leaves_work_wakes_the_next_one(posted: list[str], settings: Any) -> None:
    settings.MAX_CONCURRENT_EVENTS = 10
    get_redis_connection("default").flushall()
    assert jobs.fan_out_for(0) is True
    assert Event.objects.filter(status="processed").count() == 10
    jobs.process_events()
    assert Event.objects.filter(status="processed").count() == 30
    assert jobs.fan_out_for(0) is False


def test_on_busy_processors_a_round_after_one_of_several_events_waits_for_more(
    posted: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_CONCURRENT_EVENTS = 10
    busy, pauses = [False], list[float]()
    monkeypatch.setattr(jobs, "processors_are_busy", lambda: busy[0])
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    monkeypatch.setattr(jobs._state, "seen_before", 0)
    jobs.fan_out_for(0)
    jobs.fan_out_for(0)
    busy[0] = True
    jobs.fan_out_for(0)
    assert pauses == [jobs.GATHER_SECONDS]
    jobs.fan_out_for(0)
    jobs.fan_out_for(0)  # the one before found nothing
    assert pauses == [jobs.GATHER_SECONDS] * 2


def test_a_burst_with_nothing_to_do_ends() -> None:
    assert get_worker(EVENTS, WEBHOOKS).work(burst=True) is False
    assert wake(EVENTS)
    assert get_worker(EVENTS, WEBHOOKS).work(burst=True) is True


def test_one_thread_fans_out_for_all_who_ask_meanwhile() -> None:
    turns = jobs.OneThreadAtATime()
    began, may_end = threading.Event(), threading.Event()
    rounds: list[str] = []

    def work() -> bool:
        rounds.append(threading.current_thread().name)
        began.set()
        assert may_end.wait(30)
        return False

    first = threading.Thread(target=turns.run, args=(work, 60), name="first")
    first.start()
    assert began.wait(30)
    assert [turns.run(work, 60) for _ in range(3)] == [False] * 3  # at once, while the first one works
    may_end.set()
    first.join(30)
    assert rounds == ["first", "first"]  # once more for the three of them
    assert turns.run(lambda: True, 60) is True


def test_a_fan_out_that_fails_leaves_the_turn_to_the_next() -> None:
    turns = jobs.OneThreadAtATime()

    def fail() -> bool:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        turns.run(fail, 60)
    assert turns.run(lambda: True, 60) is True


def test_what_is_asked_for_at_the_end_of_the_time_is_left_over() -> None:
    turns = jobs.OneThreadAtATime()

    def work() -> bool:
        return turns.run(lambda: True, 0)  # as another thread would ask meanwhile

    assert turns.run(work, 0) is True
