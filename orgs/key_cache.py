"""The keys that this process has seen working, by their hash, and whose they were then."""

from __future__ import annotations

import hashlib
import threading
import time

from core.recent import Recent
from orgs.keys import Caller

# So long a caller is recalled, for statements that make sure of it themselves; then the database is asked again,
# which also keeps the key's time of last use.
RECALL_SECONDS = 10.0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class _KnownKeys:
    """Forgetting one costs a look-up, no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: Recent[bytes, tuple[Caller, float]] = Recent()

    def note(self, key: str, caller: Caller) -> None:
        digest = _digest(key)
        with self._lock:
            self._callers[digest] = caller, time.monotonic() + RECALL_SECONDS

    def recall(self, key: str) -> Caller | None:
        caller, until = self._callers.get(_digest(key), (None, 0.0))
        return caller if time.monotonic() < until else None

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self._callers

    def clear(self) -> None:
        with self._lock:
            self._callers.clear()


_keys = _KnownKeys()


def note(key: str, caller: Caller) -> None:
    """Note that the key works, and whose it is."""
    _keys.note(key, caller)


def recall(key: str) -> Caller | None:
    """Return whose the key was less than RECALL_SECONDS ago.

    Not whose it is: nothing may be done or refused for that caller before the database was asked, as `keys.HOLDS`
    does within the statement that does it.
    """
    return _keys.recall(key)


def is_known(key: str) -> bool:
    """Tell whether this process has seen the key working."""
    return key in _keys


def forget() -> None:
    """Forget every key."""
    _keys.clear()
