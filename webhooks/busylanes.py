"""A worker's second process, which sends for the busy lanes.

Working off a backlog keeps an interpreter busy from end to end.  In the same one, the fan-out and the
claims of the lanes that have next to nothing waiting would take turns with it, and an event that could be
delivered in ten milliseconds takes two hundred.  So a worker whose claims leave something behind starts this
process and leaves the busy lanes to it (`claiming.Lanes`); without it, the worker sends for all.

What the two say to each other: a byte on the process's stdin is a wake-up, its end the order to stop; a byte
on its stdout is a sign of life, its end the process's.  So each notices at once when the other was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable

import structlog
from django.conf import settings

log = structlog.get_logger()

READY = b"ready\n"
ALIVE = b"\n"
WAKE = b"\n"
SIGN_OF_LIFE_SECONDS = 1.0
SILENCE_SECONDS = 15.0
RESTART_SECONDS = 5.0


class BusyLanes:
    """The process as the sender's event loop sees it.  All methods are called there.

    on_end: called when the process ended, after which nobody sends for the busy lanes.  silence_seconds: twice
    as long without a sign of life, and it is killed.  Twice, because after a pause of this process the clock is
    looked at before the pipe.
    """

    def __init__(self, on_end: Callable[[], None], silence_seconds: float = SILENCE_SECONDS) -> None:
        self._on_end = on_end
        self._silence_seconds = silence_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._start_again_at = float("-inf")
        self._closed = False
        self.is_ready = False

    def start(self) -> None:
        """Start the process unless it runs or ended a moment ago; it is ready some time later."""
        if self._task is None and not self._closed and time.monotonic() >= self._start_again_at:
            self._start_again_at = time.monotonic() + RESTART_SECONDS
            self._task = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Say that busy lanes may have something due."""
        pipe = self._process.stdin if self._process is not None else None
        # What it hasn't read yet says the same.
        if pipe is not None and not pipe.is_closing() and not pipe.transport.get_write_buffer_size():
            pipe.write(WAKE)

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
                "send_busy_lanes",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # so that it can be put behind others (core.process.give_way)
            )
        except OSError as error:
            log.error("busy_lanes_not_started", error=repr(error)[:300])
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
            log.warning("busy_lanes_ended", pid=process.pid, code=code)
        self._on_end()

    async def _listen(self, process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
        """Follow the signs of life until they end; kill a process that gives none."""
        silent = 0
        while True:
            try:
                async with asyncio.timeout(self._silence_seconds):
                    said = await stdout.read(4096)
            except TimeoutError:
                silent += 1
                if silent > 1:
                    log.error("busy_lanes_hangs", pid=process.pid)
                    process.kill()
                continue
            if not said:
                return
            silent = 0
            if READY in said:
                self.is_ready = True
                log.info("busy_lanes_started", pid=process.pid)
