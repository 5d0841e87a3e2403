"""The API keys that this process has seen working, by their hash, and whose they are.

Forgetting one only costs a look-up.
"""

from __future__ import annotations

import hashlib
import threading
import uuid

from cachetools import LRUCache

MOST_KEYS = 10_000


def digest(key: str) -> bytes:
    """Return what a key is remembered by; any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class VerifiedKeys:
    """The MOST_KEYS keys that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: LRUCache[bytes, uuid.UUID] = LRUCache(MOST_KEYS)

    def add(self, key: str, organization_id: uuid.UUID) -> None:
        """Remember that the key works, and whose it is."""
        with self._lock:
            self._seen[digest(key)] = organization_id

    def organization_of(self, key: str) -> uuid.UUID | None:
        """Return whose the key was when it was used last; None if this process hasn't seen it working."""
        with self._lock:
            return self._seen.get(digest(key))

    def __contains__(self, key: str) -> bool:
        return self.organization_of(key) is not None

    def reset(self) -> None:
        """Forget every key."""
        with self._lock:
            self._seen.clear()


verified_keys = VerifiedKeys()
