"""How the backlog sender gives way to the webhooks of others on a machine whose processors are all busy.

Its own priority is low (`core.process.lower_priority`), but PostgreSQL does half of its work, at the usual priority: an
event of another organization would have to wait for a processor at each step.  So while others are being served and
threads of this process wait for a processor, its transactions run one at a time, and it rests after each one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from core.process import ProcessorTime, processor_time

log = structlog.get_logger()
T = TypeVar("T")

# How long it gives way after it was told that others are being served.
OTHERS_SECONDS = 0.5
# How often it checks whether the processors are busy.
LOOK_SECONDS = 0.2
# They are busy when threads of this process wait for one for more than this share of the time that they want.
BUSY_SHARE = 0.2
# A rest lasts this many times as long as the transaction before it. The factor grows at each check that finds the
# processors busy, and shrinks at every other one.
MORE, LESS, MOST = 1.0, 0.5, 8.0
MOST_SECONDS = 0.5
# How often it is logged.
LOG_SECONDS = 60.0


class Pace:
    """The pace of a process that works off backlogs, for all its threads.

    read: returns how long its threads have run and waited.  now, sleep: the clock and a pause, in seconds.
    """

    def __init__(
        self,
        read: Callable[[], ProcessorTime | None] = processor_time,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read = read
        self._now = now
        self._sleep = sleep
        self._one_at_a_time = threading.Lock()
        self._piece_began: float | None = None
        self._others_until = float("-inf")
        self._looked_at = float("-inf")
        self._before: ProcessorTime | None = None
        self._rest = 0.0
        self._logged_at = float("-inf")

    def others_are_served(self) -> None:
        """Note that webhooks of queues without a backlog are being sent."""
        self._others_until = self._now() + OTHERS_SECONDS

    @property
    def gives_way(self) -> bool:
        """Return whether others are being served while the processors are busy."""
        return self._rest > 0 and self._now() < self._others_until

    def run(self, work: Callable[[], T]) -> T:
        """Run a transaction, and rest if it is time to give way."""
        self._look()
        if not self.gives_way:
            return work()
        with self._one_at_a_time:
            self._piece_began = self._now()
            try:
                return work()
            finally:
                self._rest_after_piece(self._piece_began)
                self._piece_began = None

    def between_pieces(self) -> None:
        """Rest in the middle of a transaction that `run` runs, if it is time to give way.

        For one that takes long and holds no lock yet that others wait for: while it keeps a processor busy, what should
        take some milliseconds waits for the other one.
        """
        if self._piece_began is not None:
            self._rest_after_piece(self._piece_began)
            self._piece_began = self._now()

    def _rest_after_piece(self, began: float) -> None:
        self._sleep(min(MOST_SECONDS, self._rest * (self._now() - began)))

    def _look(self) -> None:
        """Check whether the processors are busy, unless that was done a moment ago."""
        now = self._now()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        before, self._before = self._before, self._read()
        if before is None or self._before is None or now >= self._others_until:
            self._rest = 0.0
            return
        waited = self._before.waited - before.waited
        wanted = waited + self._before.ran - before.ran
        if wanted > 0 and waited > BUSY_SHARE * wanted:
            if now - self._logged_at >= LOG_SECONDS:
                self._logged_at = now
                log.info("backlog_sender_gives_way", waited_share=round(waited / wanted, 2))
            self._rest = min(MOST, self._rest + MORE)
        else:
            self._rest = max(0.0, self._rest - LESS)
