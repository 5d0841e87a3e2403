"""The API keys that this process has seen working, by their hash.

Forgetting one costs a look-up, no more.
"""

from __future__ import annotations

import hashlib
import threading

from cachetools import LRUCache

MOST_KEYS = 10_000


def digest(key: str) -> bytes:
    """Return what a key is remembered by; any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class VerifiedKeys:
    """The MOST_KEYS keys that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: LRUCache[bytes, bool] = LRUCache(MOST_KEYS)

    def add(self, key: str) -> None:
        """Remember that the key works."""
        with self._lock:
            self._seen[digest(key)] = True

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._seen.get(digest(key), False)

    def reset(self) -> None:
        """Forget every key."""
        with self._lock:
            self._seen.clear()


verified_keys = VerifiedKeys()
