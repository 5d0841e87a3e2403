"""Fanning out what others left behind: a thread of the backlog sender's process."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from django.conf import settings

from core.db import borrow_connection
from webhooks.routing.fan_out import BACKLOG_DELIVERIES_AT_A_TIME, FanOut

log = structlog.get_logger()

# Newer events are the workers' own: one that is fanned out at once never waits so long.
BACKLOG_AGE_SECONDS = 0.1
LOOK_SECONDS = 0.25
RETRY_SECONDS = 1.0


class BacklogFanOut:
    """Fans out events that have waited for a while, for organizations with more than a round makes.

    on_due: called after each round, on the thread, because deliveries may be due.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._fan_out = FanOut(BACKLOG_DELIVERIES_AT_A_TIME, BACKLOG_AGE_SECONDS)
        self._woken = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="fan-out", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Say that events may have been left behind."""
        self._woken.set()

    def stop(self) -> None:
        """Finish the round that is under way and end the thread."""
        self._stopped = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._woken.wait()
            self._woken.clear()
            try:
                idle_looks = 0
                # What was left behind a moment ago has not waited long enough yet: look a few times more.
                while not self._stopped and idle_looks < 2:
                    idle_looks = 0 if self._work_off() else idle_looks + 1
                    if idle_looks:
                        self._woken.wait(LOOK_SECONDS)
            except Exception as error:
                log.warning("backlog_fan_out_failed", error=repr(error)[:300])
                self._woken.set()
                if not self._stopped:
                    threading.Event().wait(RETRY_SECONDS)

    def _work_off(self) -> bool:
        """Run rounds as long as there are events; tell whether there were any."""
        worked = False
        while not self._stopped:
            result = borrow_connection(lambda: self._fan_out.run_round(settings.MAX_CONCURRENT_EVENTS))
            if not result.seen:
                break
            worked = True
            self._on_due()
        return worked
