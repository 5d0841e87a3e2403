"""The callers that this process has looked up in the last seconds, by their keys.

No decision relies on this cache alone.  The statement that stores an event checks the key again, and so does the front
door before it refuses a request.
"""

from __future__ import annotations

from cachetools import TTLCache

from orgs.keys import Caller
from orgs.verified_keys import digest

MOST_CALLERS = 10_000
# After this the key is looked up again, which also keeps its `last_used_at` current.
SECONDS = 10.0


class CallerCache:
    """The callers that were looked up in the last `seconds`.  For use by one thread."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._callers: TTLCache[bytes, Caller] = TTLCache(MOST_CALLERS, seconds)

    def add(self, key: str, caller: Caller) -> None:
        """Remember whose the key is."""
        self._callers[digest(key)] = caller

    def get(self, key: str) -> Caller | None:
        """Return whose the key was when it was looked up a moment ago; None if it wasn't."""
        return self._callers.get(digest(key))

    def reset(self) -> None:
        """Forget every caller."""
        self._callers.clear()
