"""The callers that this process has looked up in the last seconds, by their keys.

No decision relies on this cache alone.  The statement that stores an event checks the key again, and so does the front
door before it refuses a request.
"""

from __future__ import annotations

import time

from orgs.keys import Caller
from orgs.verified_keys import digest

MOST_CALLERS = 10_000
# After this the key is looked up again, which also keeps its `last_used_at` current.
SECONDS = 10.0
_NOBODY: tuple[float, None] = (0.0, None)


class CallerCache:
    """The callers that were looked up in the last `seconds`.  For use by one thread."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        # Until when each is remembered, by the monotonic clock; the oldest first.
        self._callers: dict[bytes, tuple[float, Caller]] = {}

    def add(self, key: str, caller: Caller) -> None:
        """Remember whose the key is."""
        hashed = digest(key)
        self._callers.pop(hashed, None)
        if len(self._callers) >= MOST_CALLERS:
            del self._callers[next(iter(self._callers))]
        self._callers[hashed] = time.monotonic() + self._seconds, caller

    def get(self, key: str) -> Caller | None:
        """Return whose the key was when it was looked up a moment ago; None if it wasn't."""
        until, caller = self._callers.get(digest(key), _NOBODY)
        return caller if time.monotonic() < until else None

    def reset(self) -> None:
        """Forget every caller."""
        self._callers.clear()
