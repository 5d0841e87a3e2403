"""Whether the machine's processors are busy: then work that can wait gives way, and small pieces of work are gathered.

Measured by how long the threads of this process wait for a processor, so that a machine with processors to spare is
never taken for a busy one, whatever it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from core.process import ProcessorTime, processor_time

# How often it is measured.
LOOK_SECONDS = 0.2
# They are busy when threads of this process wait for one for more than this share of the time that they want.
BUSY_SHARE = 0.2
# A process that never got one at all would see nothing: it counts as one that ran for this share of the time.
LEAST_RUN_SHARE = 0.02


class ProcessorLoad:
    """read: returns how long the process's threads have run and waited.  now: a monotonic clock, in seconds."""

    def __init__(
        self,
        read: Callable[[], ProcessorTime | None] = processor_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._now = now
        self._looked_at = float("-inf")
        self._before: ProcessorTime | None = None
        self.waited_share = 0.0

    def look(self) -> bool:
        """Measure, unless that was done a moment ago; return whether there is another measurement than before."""
        now = self._now()
        if now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            self.waited_share = 0.0
            return False
        waited = self._before.waited - before.waited
        wanted = waited + self._before.ran - before.ran
        self.waited_share = waited / wanted if wanted > 0 else 0.0
        return True

    @property
    def is_busy(self) -> bool:
        """Return whether the processors were busy at the last measurement."""
        return self.waited_share > BUSY_SHARE

    def with_waiting(self, seconds: float) -> float:
        """Return how long something that takes `seconds` may seem to take to this process.

        A process that gets a processor for a tenth of the time that it wants one sees what happens ten times as late.
        """
        return seconds / max(1 - self.waited_share, LEAST_RUN_SHARE)


_of_this_process = ProcessorLoad()


def processors_are_busy() -> bool:
    """Return whether the machine's processors are busy now, or were a moment ago."""
    _of_this_process.look()
    return _of_this_process.is_busy


def seconds_with_waiting(seconds: float) -> float:
    """Return how long something that takes `seconds` may seem to take to this process, as `with_waiting` does."""
    _of_this_process.look()
    return _of_this_process.with_waiting(seconds)
