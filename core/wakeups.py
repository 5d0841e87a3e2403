"""Wake-ups: the jobs on the RQ queues `events` and `webhooks`.  A job says "there is work" and names no row.

A queue holds at most one wake-up: none is added while one is waiting.  That loses nothing, because a worker takes the
job off the queue before it claims rows; whoever sees a waiting job has committed its row before that job's claim
begins.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog
from django.conf import settings
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from core.redis import RedisUnavailable, call_redis

log = structlog.get_logger()

EVENTS = "events"
WEBHOOKS = "webhooks"

JOB_TIMEOUT_SECONDS = 180
# Pause between two wake-ups on behalf of requests: whatever was committed meanwhile shares the next one.
SHARE_SECONDS = 0.005


class ForbiddenJob(Exception):
    """A job on our queues names a function that isn't in settings.WAKE_UP_JOBS."""


class WakeUp(Job):
    """An RQ job that can only call one of settings.WAKE_UP_JOBS, without arguments.

    Anyone who can write to Redis can put any function's name into a job; this class refuses to import it.
    """

    @property
    def func(self) -> Any:
        if self.func_name not in settings.WAKE_UP_JOBS.values() or self._args or self._kwargs:
            raise ForbiddenJob(f"job {self.id} does not name a known job function")
        return super().func

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None


def wake(queue_name: str) -> bool:
    """Tell the workers that `queue_name` has work.  False while Redis is away: the sweep will find the work."""

    def enqueue(connection: Redis) -> None:
        queue = Queue(queue_name, connection=connection, job_class=WakeUp, serializer=JSONSerializer)
        queue.enqueue_call(
            settings.WAKE_UP_JOBS[queue_name],
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=0,
            failure_ttl=3600,
            description=f"wake {queue_name}",
        )

    try:
        if call_redis(lambda redis: redis.llen(f"{Queue.redis_queue_namespace_prefix}{queue_name}")) == 0:
            call_redis(enqueue)
    except RedisUnavailable:
        return False
    return True


class _Waker:
    """A thread that wakes one queue on behalf of all who requested it since it last did."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._changed = threading.Condition()
        self._requested = self._waking = False
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        if self._requested:
            return  # the wake-up that was requested is still to come, and covers this request
        with self._changed:
            self._requested = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wake-ups", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._requested and not self._waking, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requested)
                # Cleared before the queue is looked at: a later request may be for a row committed after that.
                self._requested, self._waking = False, True
            try:
                wake(self._queue_name)
            except Exception as error:
                log.warning("wake_up_failed", error=repr(error)[:300])
            with self._changed:
                self._waking = False
                self._changed.notify_all()
            time.sleep(SHARE_SECONDS)


_wakers = {name: _Waker(name) for name in (EVENTS, WEBHOOKS)}


def wake_soon(queue_name: str) -> None:
    """Have a thread of this process `wake` the queue in a moment, so that the caller doesn't wait for Redis.

    If the process is killed in that moment, the workers' sweep finds the work, as it does without Redis.
    """
    _wakers[queue_name].request()


def wait_until_woken(seconds: float) -> bool:
    """Wait until every wake-up requested through `wake_soon` is done; False when that takes longer than `seconds`."""
    return all(waker.wait(seconds) for waker in _wakers.values())
