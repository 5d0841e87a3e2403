"""A worker's second process, which works off backlogs: of queues, and of events that wait for their fan-out.

Working off a backlog keeps a Python interpreter busy all the time. In the same process, the fan-out and the claims of
queues without a backlog would have to share the interpreter with it, and an event that could be delivered in 10 ms
would take 200 ms.  So a worker whose claims leave something behind starts this process, and leaves to it the queues
with a backlog (`claim.QueueFilter`) and the organizations whose events need more deliveries than a round of the fan-out
makes (`routing.fan_out.Round.left_behind`). Without the process, the worker does everything.

It also advances the retries, replays, and recoveries of many deliveries that take longer than a slice of the sweep.

The two talk over pipes: a byte on the process's stdin wakes it, or says that such runs are under way, or that webhooks
of other queues are being sent, for which it makes way (`giving_way`); at the end of stdin it stops.  A line on its
stdout is a heartbeat, or says that the process is ready or has made deliveries due, and the end of stdout is the
process's own.  So each notices at once if the other was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Iterable

import structlog
from django.conf import settings

from webhooks.dispatch.in_flight import InFlight

log = structlog.get_logger()

READY = b"ready\n"
DUE = b"due\n"
HEARTBEAT = b"\n"
WAKE = b"\n"
RUNS = b"r"
OTHERS = b"."
HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 15.0
RESTART_SECONDS = 5.0
# How often it is told that others are being served; each time it gives way for a while (`giving_way`).
TELL_SECONDS = 0.1


class BacklogSender:
    """The process as the sender's event loop sees it.  All methods are called there.

    on_end: called when the process has ended and no process sends for the queues with a backlog. on_due: called when
    the process has fanned events out, of which some may be due for queues without a backlog. enabled: False for a
    sender that keeps all queues to itself; then nothing is ever started. silence_seconds: after two such spans without
    a heartbeat the process is killed.  Two, because after a pause of this process the clock is read before the pipe is.
    """

    def __init__(
        self,
        on_end: Callable[[], None],
        on_due: Callable[[], None] = lambda: None,
        *,
        enabled: bool = True,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._on_end = on_end
        self._on_due = on_due
        self._silence_seconds = silence_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._start_again_at = float("-inf")
        self._closed = not enabled
        self._told_of_others_at = float("-inf")
        # Queues that were left to it while this process still has some of their requests in flight: each result may
        # make room for its next claim.
        self._waiting_for_room: set[uuid.UUID] = set()
        self.is_ready = False

    @property
    def is_running(self) -> bool:
        """Return whether the process runs or is being started."""
        return self._task is not None

    def start(self) -> None:
        """Start the process unless it runs or ended a moment ago. It takes some time until it is ready."""
        if self._task is None and not self._closed and time.monotonic() >= self._start_again_at:
            self._start_again_at = time.monotonic() + RESTART_SECONDS
            self._task = asyncio.get_running_loop().create_task(self._run())

    def take_over(self, subscription_ids: Iterable[uuid.UUID], in_flight: InFlight) -> None:
        """Leave what is due in these queues to the process, and start it if necessary."""
        found = list(subscription_ids)
        if not found or self._closed:
            return
        self._waiting_for_room.update(key for key in found if in_flight.has_any_of(key))
        self.start()
        self.wake()

    def results_recorded(self, subscription_ids: Iterable[uuid.UUID], in_flight: InFlight) -> None:
        """Wake the process if results that this process recorded made room in queues that it took over."""
        recorded = self._waiting_for_room.intersection(subscription_ids)
        if recorded:
            self.wake()
            self._waiting_for_room.difference_update([key for key in recorded if not in_flight.has_any_of(key)])

    def wake(self) -> None:
        """Tell the process that something may be due."""
        self._tell(WAKE)

    def take_over_runs(self) -> None:
        """Have the process advance the runs in the background, and start it if necessary."""
        self.start()
        self._tell(RUNS)

    def others_are_served(self) -> None:
        """Tell the process that a webhook is sent for a queue without a backlog."""
        now = time.monotonic()
        if self.is_ready and now - self._told_of_others_at >= TELL_SECONDS:
            self._told_of_others_at = now
            self._tell(OTHERS)

    def _tell(self, message: bytes) -> None:
        pipe = self._process.stdin if self._process is not None else None
        # It hasn't read the last byte yet, which says the same, or it will be told again soon.
        if pipe is not None and not pipe.is_closing() and not pipe.transport.get_write_buffer_size():
            pipe.write(message)

    def close(self) -> None:
        """Tell the process to stop claiming and to finish what it has in flight, within its grace."""
        self._closed = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def join(self, seconds: float) -> None:
        """Wait for its end after `close`; kill it after `seconds`."""
        if (task := self._task) is not None:
            await asyncio.wait({task}, timeout=seconds)
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await task

    async def _run(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(settings.BASE_DIR / "manage.py"),
                "send_backlog",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # so that it can have a lower priority (core.process.lower_priority)
            )
        except OSError as error:
            log.error("backlog_sender_not_started", error=repr(error)[:300])
            self._task = None
            return
        self._process = process
        if self._closed:
            self.close()
        if process.stdout is not None:
            await self._listen(process, process.stdout)
        self.is_ready = False
        code = await process.wait()
        self._process = self._task = None
        if not self._closed:
            log.warning("backlog_sender_ended", pid=process.pid, code=code)
        self._on_end()

    async def _listen(self, process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
        """Follow the heartbeats until they end; kill a process that sends none."""
        silences = 0
        while True:
            try:
                async with asyncio.timeout(self._silence_seconds):
                    said = await stdout.read(4096)
            except TimeoutError:
                silences += 1
                if silences > 1:
                    log.error("backlog_sender_hangs", pid=process.pid)
                    process.kill()
                continue
            if not said:
                return
            silences = 0
            if DUE in said:
                self._on_due()
            if READY in said:
                self.is_ready = True
                log.info("backlog_sender_started", pid=process.pid)
