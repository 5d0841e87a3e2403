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

from core.giving_way import Rests
from core.process import ProcessorTime, processor_time

T = TypeVar("T")

# How long it gives way after it was told that others are being served.
OTHERS_SECONDS = 0.5


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
        self._rests = Rests("backlog_sender", read, now)
        self._now = now
        self._sleep = sleep
        self._one_at_a_time = threading.Lock()
        self._piece_began: float | None = None
        self._others_until = float("-inf")

    def others_are_served(self) -> None:
        """Note that webhooks of queues without a backlog are being sent."""
        self._others_until = self._now() + OTHERS_SECONDS

    @property
    def gives_way(self) -> bool:
        """Return whether others are being served while the processors are busy."""
        return self._rests.are_due and self._now() < self._others_until

    def run(self, work: Callable[[], T]) -> T:
        """Run a transaction, and rest if it is time to give way."""
        self._rests.look()
        if self._now() >= self._others_until:
            self._rests.forget()
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
        self._sleep(self._rests.after(self._now() - began))
