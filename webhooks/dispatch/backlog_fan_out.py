"""A thread of the backlog sender's process that fans out the events that workers left behind."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings

from core.db import borrow_connection
from webhooks.dispatch.backlog_thread import BacklogThread
from webhooks.dispatch.giving_way import Pace
from webhooks.routing.fan_out import BACKLOG_DELIVERIES_AT_A_TIME, DELIVERIES_AT_A_TIME, FanOut, Round

# Workers fan out newer events themselves: an event that is fanned out at once never waits this long.
BACKLOG_AGE_SECONDS = 0.1
LOOK_SECONDS = 0.25
# While more is due than the sender can take, the thread rests after each round for this many times its length: nothing
# is sent later because of it, and PostgreSQL has time for others.  Its processes don't have the low priority of this
# one.
REST = 3


class BacklogFanOut(BacklogThread):
    """Fans out events that have waited for a while, for organizations with more than a round makes.

    on_due: called on the thread after each round, because deliveries may be due.  has_room: returns whether more of
    them could be sent now.  pace: of the rounds.
    """

    def __init__(self, on_due: Callable[[], None], has_room: Callable[[], bool], pace: Pace) -> None:
        super().__init__("fan-out")
        self._pace = pace
        self._on_due = on_due
        self._has_room = has_room
        self._fan_out = FanOut(BACKLOG_AGE_SECONDS)

    def work(self) -> None:
        """Fan out until nothing is left."""
        idle_looks = 0
        # What was left behind a moment ago hasn't waited long enough yet: look a few more times.
        while not self._stopping.is_set() and idle_looks < 2:
            idle_looks = 0 if self._work_off() else idle_looks + 1
            if idle_looks:
                self._woken.wait(LOOK_SECONDS)

    def _run_round(self) -> tuple[Round, float]:
        """Run a round, a small one in pieces while this process gives way; return what it did and how long it took."""
        gives_way = self._pace.gives_way
        started = time.monotonic()
        result = borrow_connection(
            lambda: self._fan_out.run_round(
                settings.MAX_CONCURRENT_EVENTS,
                deliveries=DELIVERIES_AT_A_TIME if gives_way else BACKLOG_DELIVERIES_AT_A_TIME,
                between_pieces=self._pace.between_pieces if gives_way else None,
            )
        )
        return result, time.monotonic() - started

    def _work_off(self) -> bool:
        """Run rounds as long as there are events; return whether there were any."""
        worked = False
        while not self._stopping.is_set():
            result, seconds = self._pace.run(self._run_round)
            if not result.seen:
                break
            worked = True
            self._on_due()
            if not self._has_room():
                self._stopping.wait(REST * seconds)
        return worked
