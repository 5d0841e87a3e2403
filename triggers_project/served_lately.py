"""Who was served at the front door in the last moments, by any of the web processes."""

from __future__ import annotations

import mmap
import time
import zlib
from collections.abc import Hashable

# Who was served longer ago doesn't count.
LATELY_SECONDS = 0.5
_LATELY = int(LATELY_SECONDS * 1e9)


class ServedLately:
    """Remembers whom each web process has served last, in memory that gunicorn's processes share.

    Made in gunicorn's master; its workers inherit it.  Each of them writes only its own places, so that nothing needs a
    lock; what is read may be a moment old.  The clock is the system's monotonic one, the same for all processes.
    """

    PROCESSES = 256  # a worker whose number is as much higher than another's would share its places

    def __init__(self) -> None:
        # For each process the last two who differ: who it was, as a number, and when, in nanoseconds.
        self._places = memoryview(mmap.mmap(-1, 8 * 4 * self.PROCESSES)).cast("q")
        self._own = 0

    def choose_place(self, age: int) -> None:
        """Choose the places of this process.  age: gunicorn's number of the worker."""
        self._own = 4 * (age % self.PROCESSES)

    def note(self, who: Hashable) -> None:
        """Note that somebody is served."""
        number, now, places, own = _number(who), time.monotonic_ns(), self._places, self._own
        first, second = own, own + 2
        if places[first] == number:
            chosen = first
        elif places[second] == number:
            chosen = second
        else:
            chosen = first if places[first + 1] <= places[second + 1] else second
        places[chosen] = number
        places[chosen + 1] = now

    def another_than(self, who: Hashable) -> bool:
        """Return whether somebody else was served lately."""
        number, since = _number(who), time.monotonic_ns() - _LATELY
        places = self._places.tolist()
        return any(at > since and found != number for found, at in zip(places[::2], places[1::2], strict=True) if at)


def _number(who: Hashable) -> int:
    return zlib.crc32(repr(who).encode())


served_lately = ServedLately()
