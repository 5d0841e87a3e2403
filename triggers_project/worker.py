"""The worker class behind `manage.py rqworker events webhooks`.

It runs jobs in its own process, without forking, beside a sender thread (webhooks) and a housekeeping
thread (sweep and heartbeat).  It survives what stops RQ's own: a Redis that restarts, goes away for an
hour or forgets everything.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import Queue, SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker import WorkerStatus

from core.db import borrow_connection, give_connection_back, keep_connection
from core.metrics.process import publish
from core.process import prepare
from core.redis import RedisUnavailable, call_redis, describe_fault
from core.wakeups import EVENTS, JOB_TIMEOUT_SECONDS, SignalListener, WakeUp, wake
from triggers_project import metrics
from triggers_project.jobs import fan_out_for, last_fan_out, process_events
from triggers_project.start_checks import check_services
from webhooks.dispatch.sender import current_sender, start_sender
from webhooks.upkeep.operator_messages import start_notifier
from webhooks.upkeep.sweep import Sweep

log = structlog.get_logger()

HEARTBEAT_SECONDS = 5.0
BEAT_AGAIN_SECONDS = 1.0
RECONNECT_SECONDS = 1.0
FAN_OUT_HERE_SECONDS = 1.0
# When events wait and the job loop has fanned out none for this long, it may hang in a call to Redis.
JOB_LOOP_IDLE_SECONDS = 5.0
# RQ's own calls to Redis wait up to this many seconds (it calls them the worker's TTL).
REDIS_PATIENCE_SECONDS = 30


class TriggersWorker(SimpleWorker):
    """An RQ worker for our two queues: JSON jobs of our own functions only."""

    max_connection_wait_time = 1.0  # seconds between looks for a Redis that went away

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # django-rq's command passes the pickle serializer unless told otherwise: never unpickle.
        kwargs["serializer"] = JSONSerializer
        kwargs["job_class"] = WakeUp
        # RQ's default of seven minutes is how long a Redis that hangs would hold the job loop.
        kwargs["worker_ttl"] = REDIS_PATIENCE_SECONDS
        # RQ would ask Redis for this worker's address here, and fail without Redis.
        kwargs["prepare_for_work"] = False
        super().__init__(*args, **kwargs)
        self.hostname, self.pid = socket.gethostname(), os.getpid()
        self._asked_to_stop = threading.Event()
        self._in_loop = False
        self._ends = False
        self._told_state = ""
        self._reconnecting = False
        self._beat_at = float("-inf")
        self._done = 0  # wake-ups since the last heartbeat, and how long they took
        self._done_seconds = 0.0
        self._done_lock = threading.Lock()

    # --- life -------------------------------------------------------------------------------------

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Work until told to stop.  Returns whether any job was done, as RQ's worker does.

        Check the services, start the threads (sender, housekeeping, notifier, listener), run RQ's loop again and again
        while Redis comes and goes, and end the threads.  The sender and the housekeeping run all the time.
        """
        check_services()
        prepare(sockets=settings.MAX_CONCURRENT_DELIVERIES)
        self._install_signal_handlers()
        # A worker that is to end by itself ends when nothing is due, which one process alone can tell.
        self._ends = bool(kwargs.get("burst")) or any(
            kwargs.get(key) is not None for key in ("max_jobs", "max_idle_time")
        )
        sender = start_sender(with_backlog_sender=not self._ends)
        housekeeping = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        housekeeping.start()
        notifier = None if self._ends else start_notifier()
        listener = None
        if not self._ends:
            listener = SignalListener(_process_signaled_events, on_silence=give_connection_back)
            listener.start()
        kwargs["logging_level"] = "WARNING"  # RQ tells of every job; ours tell what they did
        logging.getLogger("rq.worker").addFilter(_is_news)
        worked = False
        try:
            self._in_loop = True
            while not self._asked_to_stop.is_set():
                try:
                    worked = super().work(*args, **kwargs) or worked
                except StopRequested:
                    break
                except (RedisError, OSError) as error:
                    if not self._reconnecting:
                        log.warning("worker_reconnecting", **describe_fault(error))
                    self._reconnecting = True
                else:
                    if self._ends:
                        sender.wake()
                        sender.wait_until_drained()
                        break
                with contextlib.suppress(StopRequested):
                    self._asked_to_stop.wait(RECONNECT_SECONDS)
        finally:
            self._asked_to_stop.set()
            if listener is not None:
                listener.stop()
            if notifier is not None:
                notifier.stop()
            sender.stop(settings.WORKER_SHUTDOWN_GRACE)
            housekeeping.join(timeout=5)
            if listener is not None:
                listener.join(timeout=5)
            metrics.port.close()
            with contextlib.suppress(RedisError, OSError):
                self.register_death()
        return worked

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Stop claiming at once, on SIGTERM or SIGINT; what is in flight may finish."""
        self._asked_to_stop.set()
        sender = current_sender()
        if sender is not None:
            sender.stop_claiming()
        if self._in_loop:  # RQ interrupts the loop with an exception, which nothing would catch before
            super().request_stop(signum, frame)

    def teardown(self) -> None:
        """RQ's end of work, which must not fail because Redis is away."""
        self._end_listening()
        with contextlib.suppress(RedisError, OSError):
            super().teardown()

    def subscribe(self) -> None:
        """Listen for RQ's commands, in a thread."""
        self._end_listening()  # of a loop that failed before its end
        super().subscribe()

    def _end_listening(self) -> None:
        """Tell the thread that listens for RQ's commands to end with the next thing that it reads.

        RQ unsubscribes first and then tells the thread. One that reads the reply in between waits a minute for another
        subscription, and where Redis is away, it is never told: it would subscribe again, beside the thread of the
        next loop.
        """
        listener: Any = self.pubsub_thread  # RQ's annotation is None alone
        if listener is not None:
            listener.stop()

    def set_shutdown_requested_date(self) -> None:
        """Note the request in Redis, if it is there."""
        with contextlib.suppress(RedisError, OSError):
            super().set_shutdown_requested_date()

    def register_birth(self) -> None:
        """Register under our name, also when Redis still knows us from before a broken connection."""
        self._register(self.connection)

    def _register(self, connection: Redis) -> None:
        """Tell Redis about this worker.

        RQ's own refuses when it finds anything under the name, be it only a heartbeat that came before
        the registration; names are random, so what stands there is ours.
        """
        self.birth_date = self.last_heartbeat = now()
        with contextlib.suppress(ResponseError):  # not permitted; RQ's pages show "unknown"
            self.ip_address = str(connection.client_info()["addr"])
        with connection.pipeline() as pipeline:
            pipeline.delete(self.key)
            pipeline.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, pipeline)
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.execute()
        self._reconnecting = False

    # --- jobs ---------------------------------------------------------------------------------------

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Do what a wake-up asks for.

        A lost wake-up costs nothing, so of RQ's bookkeeping around a job, only that of a failed one is left, which
        operators find in its registry. The rest was a dozen round trips, a quarter of what a worker with little to do
        spends (docs/performance.md). A job is forgotten before it is followed, so that a worker that is killed
        meanwhile leaves nothing behind.

        `_state` and `_finalize_failure` are private to RQ: tests/project/test_worker.py fails if they change.
        """
        self.connection.delete(job.key)
        self._state = WorkerStatus.BUSY  # SIGTERM's handler lets a job finish
        started = time.monotonic()
        try:
            with self.death_penalty_class(job.timeout or JOB_TIMEOUT_SECONDS, JobTimeoutException, job_id=job.id):
                job.func()
        except Exception:
            self._keep_failure(job, queue)
        else:
            with self._done_lock:
                self._done += 1
                self._done_seconds += time.monotonic() - started
        finally:
            self._state = WorkerStatus.IDLE

    def _keep_failure(self, job: Job, queue: Queue) -> None:
        error = sys.exc_info()
        job.save()
        execution = self.prepare_execution(job)
        self.prepare_job_execution(job)
        job.started_at = now()
        self._finalize_failure(job, queue, execution, error)
        self.set_state(WorkerStatus.IDLE)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Tell Redis the state when it is another one than Redis was told last."""
        if pipeline is not None or state != self._told_state:
            super().set_state(state, pipeline)
            self._told_state = state
        self._state = state

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Tell Redis that this worker lives, once a second: RQ's loop would do so several times for each job."""
        if pipeline is None and time.monotonic() - self._beat_at < BEAT_AGAIN_SECONDS:
            return
        self._beat_at = time.monotonic()
        super().heartbeat(timeout, pipeline)

    # --- between jobs -------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        """Sweep and send heartbeats until the worker stops; no failure ends this thread."""
        sweep = Sweep(self._events_waiting, _take_over_runs)
        beat_at = float("-inf")
        publish("worker")
        metrics.port.open()
        while not self._asked_to_stop.wait(settings.SWEEP_INTERVAL):
            try:
                borrow_connection(sweep.run)
            except Exception as error:
                log.warning("sweep_failed", error=repr(error)[:300])
            if not self._asked_to_stop.is_set():
                start_sender(with_backlog_sender=not self._ends)  # the one that runs, as long as it does
                _show_life()
            if time.monotonic() - beat_at >= HEARTBEAT_SECONDS:
                beat_at = time.monotonic()
                publish("worker")
                metrics.port.open()
                try:
                    self._beat()
                except (RedisUnavailable, RedisError, OSError):
                    pass  # core.redis has told
                except Exception as error:
                    log.warning("heartbeat_failed", error=repr(error)[:300])

    def _events_waiting(self) -> None:
        """Wake the events queue; without Redis, or when the job loop doesn't move, do the work here."""
        if not wake(EVENTS) or time.monotonic() - last_fan_out() > JOB_LOOP_IDLE_SECONDS:
            # Beside the job loop, if that is in a round: it may be stuck there.
            fan_out_for(FAN_OUT_HERE_SECONDS)

    def _beat(self) -> None:
        """Tell Redis that this worker lives, and register again when Redis was emptied.

        Asked over the connection with short timeouts: a Redis that hangs must not stop the sweep.
        """

        def beat(connection: Redis) -> None:
            if not connection.hexists(self.key, "birth"):
                self._register(connection)
                return
            with self._done_lock:
                done, self._done = self._done, 0
                seconds, self._done_seconds = self._done_seconds, 0.0
            with connection.pipeline() as pipeline:
                self.heartbeat(pipeline=pipeline)
                pipeline.hset(self.key, "state", self.get_state())
                if done:
                    pipeline.hincrby(self.key, "successful_job_count", done)
                    self.increment_total_working_time(datetime.timedelta(seconds=seconds), pipeline)
                pipeline.execute()

        call_redis(beat)


def _process_signaled_events() -> None:
    """Do what an RQ job on `events` does; no failure ends the listening thread."""
    try:
        process_events(keep_connection)
    except Exception as error:
        log.error("fan_out_failed", error=repr(error)[:300])


def _is_news(record: logging.LogRecord) -> bool:
    """Keep RQ from saying once a second that Redis is away: `core.redis` says so once."""
    return "could not connect to Redis" not in str(record.msg)


def _take_over_runs() -> bool:
    """Have the backlog sender advance the runs in the background; return whether it can."""
    sender = current_sender()
    return sender is not None and sender.take_over_runs()


def _show_life() -> None:
    """Touch WORKER_HEARTBEAT_FILE: a supervisor that sees it grow old knows that this process hangs."""
    if settings.WORKER_HEARTBEAT_FILE:
        try:
            Path(settings.WORKER_HEARTBEAT_FILE).touch()
        except OSError as error:
            log.warning("heartbeat_file_failed", error=repr(error)[:300])
