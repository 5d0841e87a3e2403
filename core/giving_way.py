"""How work that can wait gives way to work that can't, on a machine whose processors are all busy."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from core.process import ProcessorTime, processor_time
from core.processor_load import ProcessorLoad

log = structlog.get_logger()

# A rest lasts this many times as long as the work before it. The factor grows at each check that finds the processors
# busy, and shrinks at every other one.
MORE, LESS, MOST = 1.0, 0.5, 8.0
MOST_SECONDS = 0.5
# How often it is logged.
LOG_SECONDS = 60.0


class Rests:
    """How long work of this process rests after each piece of it.

    part: what rests, for the log.  read: returns how long the process's threads have run and waited.
    now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        part: str,
        read: Callable[[], ProcessorTime | None] = processor_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._part = part
        self._now = now
        self._load = ProcessorLoad(read, now)
        self._factor = 0.0
        self._logged_at = float("-inf")

    @property
    def are_due(self) -> bool:
        """Return whether the processors were busy lately."""
        return self._factor > 0

    def after(self, seconds: float) -> float:
        """Return how long to rest after work of so many seconds, and log now and then that there are rests."""
        now = self._now()
        if self._factor > 0 and now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            log.info("gives_way", part=self._part, waited_share=round(self._load.waited_share, 2))
        return min(MOST_SECONDS, self._factor * seconds)

    def forget(self) -> None:
        """Begin again without rests: how busy the processors were until now doesn't count."""
        self._factor = 0.0

    def look(self) -> None:
        """Check whether the processors are busy, unless that was done a moment ago."""
        if not self._load.look():
            return
        if self._load.is_busy:
            self._factor = min(MOST, self._factor + MORE)
        else:
            self._factor = max(0.0, self._factor - LESS)
