"""Wake-ups: the jobs on the RQ queues `events` and `webhooks`.  A job says "there is work" and names no row.

A queue holds at most one wake-up: none is added while one is waiting.  That loses nothing, because a worker takes the
job off the queue before it claims rows; whoever sees a waiting job has committed its row before that job's claim
begins.

In addition, there is a cheaper signal for new events, only for speed.
"""

from __future__ import annotations

import threading
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from django.conf import settings
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, parse_job_id
from rq.results import Result
from rq.serializers import JSONSerializer

from core.redis import RedisUnavailable, call_redis

log = structlog.get_logger()

EVENTS = "events"
WEBHOOKS = "webhooks"

JOB_TIMEOUT_SECONDS = 180
RESULT_TTL_SECONDS = 0
FAILURE_TTL_SECONDS = 3600
# Pause between two wake-ups on behalf of requests: whatever was committed meanwhile shares the next one.
SHARE_SECONDS = 0.005
# The same after the signal: the job is only a safeguard.
BESIDE_SIGNAL_SECONDS = 0.25

# The signal of new events: a sorted set of at most one token, left with this command.
SIGNAL_KEY = "triggers:new-events"
SIGNAL: tuple[str | int, ...] = ("ZADD", SIGNAL_KEY, 0, "token")
LISTEN_SECONDS = 0.25  # below the timeout of Redis's socket


class ForbiddenJob(Exception):
    """A job on our queues names a function that isn't in settings.WAKE_UP_JOBS."""


# A wake-up takes about 300 bytes in Redis; with the traceback of a failure, some thousand.
MAX_FIELD_BYTES = 64 * 1024
MAX_INFLATED_BYTES = 256 * 1024
MAX_RESULTS = 10

# What is read of a job.  Not in the list: everything with which RQ would do more than run one of our functions once,
# such as webhooks (requests to any URL), callbacks, retries, repetitions, and dependencies; and what may be in any
# serialization, such as `meta` and `result`.
_FIELDS = (
    "data", "origin", "status", "description", "exc_info", "worker_name",
    "created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat",
)  # fmt: skip

# Redis itself leaves out what is too long, so that it never reaches this process.
_READ_FIELDS = """
local found = {}
for i = 2, #ARGV do
    if redis.call('HSTRLEN', KEYS[1], ARGV[i]) <= tonumber(ARGV[1]) then
        found[i - 1] = redis.call('HGET', KEYS[1], ARGV[i])
    else
        found[i - 1] = false
    end
end
return {redis.call('EXISTS', KEYS[1]), found}
"""
_READ_RESULTS = """
local found = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])) do
    local size = 0
    for _, word in ipairs(entry[2]) do size = size + #word end
    if size <= tonumber(ARGV[1]) then found[#found + 1] = entry end
end
return found
"""


def _stays_small(compressed: bytes) -> bool:
    """Return whether `compressed` inflates to at most MAX_INFLATED_BYTES; it isn't inflated any further."""
    try:
        return len(zlib.decompressobj().decompress(compressed, MAX_INFLATED_BYTES + 1)) <= MAX_INFLATED_BYTES
    except zlib.error:
        return True  # RQ takes it as it is, then


class WakeUp(Job):
    """An RQ job that can only call one of settings.WAKE_UP_JOBS, without arguments.

    Anyone who can write to Redis can put any function's name into a job; this class refuses to import it.  A job also
    can't cost more memory than it takes in Redis, or be one that RQ can't read: such a job is dropped, as one that
    doesn't exist, with a line in the log.
    """

    def __init__(self, id: str | None = None, connection: Redis | None = None, serializer: Any = None) -> None:
        # RQ's default would unpickle.
        super().__init__(id, connection, JSONSerializer)

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> WakeUp:  # noqa: ARG003
        """Return the job.  Raises NoSuchJobError, also for one that isn't a readable job of ours."""
        try:
            job = cls(parse_job_id(id), connection)
        except ValueError:
            raise _dropped(id, "the id isn't one") from None
        job.refresh()
        return job

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Redis, serializer: Any = None) -> list[Job | None]:  # noqa: ARG003
        """Return the jobs, None for each one that `fetch` would refuse."""
        found: list[Job | None] = []
        for job_id in job_ids:
            try:
                found.append(cls.fetch(job_id, connection))
            except NoSuchJobError:
                found.append(None)
        return found

    def refresh(self) -> None:
        """Read the job from Redis.  Raises NoSuchJobError."""
        try:
            exists, values = self.connection.eval(_READ_FIELDS, 1, self.key, MAX_FIELD_BYTES, *_FIELDS)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise _dropped(self.id, "its key holds something else") from None
        if not exists:
            raise NoSuchJobError(f"No such job: {self.key}")
        fields = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
        if "data" not in fields:
            raise _dropped(self.id, "its data is missing or too long")
        if not _stays_small(fields["data"]):
            raise _dropped(self.id, "its data inflates beyond all bounds")
        if not _stays_small(fields.get("exc_info", b"")):
            del fields["exc_info"]
        try:
            self.restore(fields)
            _ = self.func_name  # which is read from `data` only now
        except Exception as error:
            raise _dropped(self.id, f"it can't be read: {error!r}") from None
        self.timeout = JOB_TIMEOUT_SECONDS
        self.result_ttl, self.failure_ttl = RESULT_TTL_SECONDS, FAILURE_TTL_SECONDS

    def latest_result(self, timeout: int = 0) -> Result | None:
        """Return the job's last result."""
        return next(iter(self._read_results(1)), None)

    def results(self) -> list[Result]:
        """Return the job's results, the last one first."""
        return self._read_results(MAX_RESULTS)

    def _read_results(self, most: int) -> list[Result]:
        key = Result.get_key(self.id)
        found = []
        for result_id, words in self.connection.eval(_READ_RESULTS, 1, key, MAX_FIELD_BYTES, most):
            fields = dict(zip(words[::2], words[1::2], strict=True))
            try:
                if _stays_small(b64decode(fields.get(b"exc_string", b""))):
                    found.append(Result.restore(self.id, result_id.decode(), fields, self.connection, JSONSerializer))
            except Exception as error:
                log.warning("job_result_dropped", job_id=self.id, reason=repr(error)[:300])
        return found

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


def _dropped(job_id: str, reason: str) -> NoSuchJobError:
    """Log that a job is dropped, and return the error that RQ expects for a job that doesn't exist, which it skips."""
    log.warning("job_dropped", job_id=job_id[:100], reason=reason[:300])
    return NoSuchJobError(f"No such job: {job_id[:100]}")


def wake(queue_name: str) -> bool:
    """Tell the workers that `queue_name` has work.  False while Redis is away: the sweep will find the work."""

    def enqueue(connection: Redis) -> None:
        queue = Queue(queue_name, connection=connection, job_class=WakeUp, serializer=JSONSerializer)
        queue.enqueue_call(
            settings.WAKE_UP_JOBS[queue_name],
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=RESULT_TTL_SECONDS,
            failure_ttl=FAILURE_TTL_SECONDS,
            description=f"wake {queue_name}",
        )

    try:
        if call_redis(lambda redis: redis.llen(f"{Queue.redis_queue_namespace_prefix}{queue_name}")) == 0:
            call_redis(enqueue)
    except RedisUnavailable:
        return False
    return True


def signal_events() -> bool:
    """Leave the token that one worker's `SignalListener` takes at once.  False while Redis is away."""
    try:
        call_redis(lambda redis: redis.execute_command(*SIGNAL))
    except RedisUnavailable:
        return False
    return True


class SignalListener:
    """A worker's thread that waits for the signal and then calls `on_signal`.

    An RQ job takes milliseconds from its creation to its function; this takes one round trip.  Without this thread, RQ
    jobs and the sweep are enough.

    on_silence: called after LISTEN_SECONDS without a signal, and when the thread ends.
    """

    def __init__(self, on_signal: Callable[[], None], on_silence: Callable[[], None] = lambda: None) -> None:
        self._on_signal = on_signal
        self._on_silence = on_silence
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current work."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                token = call_redis(lambda redis: redis.bzpopmin(SIGNAL_KEY, LISTEN_SECONDS))
            except RedisUnavailable:
                self._on_silence()
                self._stopping.wait(1.0)
                continue
            if token is not None:
                self._on_signal()
            else:
                self._on_silence()
        self._on_silence()


class _Waker:
    """A thread that wakes the workers once for all requests since the last time.

    wake: what it does.  pause: seconds until it does so again, or until somebody waits for it.
    """

    def __init__(self, wake: Callable[[], bool], pause: float) -> None:
        self._wake = wake
        self._pause = pause
        self._changed = threading.Condition()
        self._requested = self._waking = False
        self._awaited = threading.Event()
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
        self._awaited.set()
        try:
            with self._changed:
                return self._changed.wait_for(lambda: not self._requested and not self._waking, seconds)
        finally:
            self._awaited.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requested)
                # Cleared before the queue is looked at: a later request may be for a row committed after that.
                self._requested, self._waking = False, True
            try:
                self._wake()
            except Exception as error:
                log.warning("wake_up_failed", error=repr(error)[:300])
            with self._changed:
                self._waking = False
                self._changed.notify_all()
            self._awaited.wait(self._pause)


_signaler = _Waker(signal_events, SHARE_SECONDS)
_wakers = {
    EVENTS: _Waker(lambda: wake(EVENTS), BESIDE_SIGNAL_SECONDS),
    WEBHOOKS: _Waker(lambda: wake(WEBHOOKS), SHARE_SECONDS),
}


def wake_soon(queue_name: str, *, signal: bool = True) -> None:
    """Let a thread of this process `wake` the queue in a moment, so that the caller doesn't wait for Redis.

    If the process is killed in that moment, the workers' sweep finds the work, as it does without Redis.

    signal: whether that thread leaves the signal of new events as well; False if the caller does.
    """
    if queue_name == EVENTS and signal:
        _signaler.request()
    _wakers[queue_name].request()


def wait_until_woken(seconds: float) -> bool:
    """Wait until every wake-up requested through `wake_soon` is done; False when that takes longer than `seconds`."""
    return all(waker.wait(seconds) for waker in (_signaler, *_wakers.values()))
