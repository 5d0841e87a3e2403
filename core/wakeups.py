"""Wake-ups: the jobs on the RQ queues `events` and `webhooks`.  They say "there is work", no more.

The queue itself is the mark that a wake-up is waiting: none is added while one is there.  That loses
nothing, because a worker takes the job off the queue before it claims rows; whoever sees a waiting
job has committed its row before that job's claim begins.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from core.redis import RedisUnavailable, ask_redis, call_redis

log = structlog.get_logger()

EVENTS = "events"
WEBHOOKS = "webhooks"

# Named, not imported: the jobs stand on top of all apps, the wake-ups below them.
JOB_FUNCTIONS = {
    EVENTS: "triggers_project.jobs.process_events",
    WEBHOOKS: "triggers_project.jobs.deliver_webhooks",
}
JOB_TIMEOUT_SECONDS = 180
# Between two looks at a queue on behalf of requests: what was committed meanwhile shares the next one.
SHARE_SECONDS = 0.005


class ForbiddenJob(Exception):
    """A job on our queues names a function that isn't one of ours."""


class WakeUp(Job):
    """An RQ job that can only be one of JOB_FUNCTIONS without arguments.

    Who can write to Redis can put any function's name into a job; this class refuses to import it.
    """

    @property
    def func(self) -> Any:
        if self.func_name not in JOB_FUNCTIONS.values() or self._args or self._kwargs:
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
    """Tell the workers that `queue_name` has work.  False when Redis is away: the sweep will find it."""

    def enqueue(connection: Redis) -> None:
        queue = Queue(queue_name, connection=connection, job_class=WakeUp, serializer=JSONSerializer)
        queue.enqueue_call(
            JOB_FUNCTIONS[queue_name],
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=0,
            failure_ttl=3600,
            description=f"wake {queue_name}",
        )

    try:
        if ask_redis(lambda ask: ask("LLEN", f"{Queue.redis_queue_namespace_prefix}{queue_name}")) == 0:
            call_redis(enqueue)
    except RedisUnavailable:
        return False
    return True


class _Teller:
    """A thread that wakes one queue for whoever asked since it last did."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._changed = threading.Condition()
        self._asked = self._telling = False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        if self._asked:
            return  # whoever asked is told of after this moment, too
        with self._changed:
            self._asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell_on_and_on, name="wake-ups", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._asked and not self._telling, seconds)

    def _tell_on_and_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked)
                # Before the look: who asks from now on may have committed after it.
                self._asked, self._telling = False, True
            try:
                wake(self._queue_name)
            except Exception as error:
                log.warning("wake_up_failed", error=repr(error)[:300])
            with self._changed:
                self._telling = False
                self._changed.notify_all()
            time.sleep(SHARE_SECONDS)


_tellers = {name: _Teller(name) for name in JOB_FUNCTIONS}


def wake_soon(queue_name: str) -> None:
    """Have a thread of this process `wake` the queue in a moment: the caller doesn't wait for Redis.

    A process that is killed in that moment leaves the work to the workers' sweep, as one without Redis does.
    """
    _tellers[queue_name].ask()


def wait_until_told(seconds: float) -> bool:
    """Wait until what `wake_soon` was asked for is done; False when that takes longer than `seconds`."""
    return all(teller.wait(seconds) for teller in _tellers.values())
