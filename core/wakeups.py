"""Wake-ups: the jobs on the RQ queues `events` and `webhooks`.  They say "there is work", no more.

The queue itself is the mark that a wake-up is waiting: none is added while one is there.  That loses
nothing, because a worker takes the job off the queue before it claims rows; whoever sees a waiting
job has committed its row before that job's claim begins.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from core.redis import RedisUnavailable, ask_redis, call_redis

EVENTS = "events"
WEBHOOKS = "webhooks"

# Named, not imported: the jobs stand on top of all apps, the wake-ups below them.
JOB_FUNCTIONS = {
    EVENTS: "triggers_project.jobs.process_events",
    WEBHOOKS: "triggers_project.jobs.deliver_webhooks",
}
JOB_TIMEOUT_SECONDS = 180


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
