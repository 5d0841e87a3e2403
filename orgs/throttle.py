"""Failed authentications, counted for each client address; over the limit they cost no look-up.

A valid key must work from an address that others abuse (an office, a proxy that wasn't announced in
TRUSTED_PROXIES), so an address over its limit is not simply shut out: keys that this process has seen
working pass as ever, and the others are looked up at a bounded pace.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time

from django.conf import settings

from core.ratelimits import RateLimitDecision, hit
from core.recent import Recent
from orgs import key_cache

POLICY = "auth-failures"
# For all blocked addresses of a process together: keys that it hasn't seen working are looked up this often.
LOOKUPS_PER_SECOND = 20


def subject(address: str) -> str:
    """Return what failures are counted by: an IPv4 address, or the /64 that one IPv6 client has to itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return hashlib.sha256(address.encode()).hexdigest()[:32]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


class _Memory:
    """What this process knows; forgetting it costs look-ups, no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocked: Recent[str, float] = Recent()
        self._next_lookup = 0.0
        self.lookups = 0

    def clear(self) -> None:
        with self._lock:
            self._blocked.clear()
            self._next_lookup = 0.0

    def block(self, who: str, seconds: float) -> None:
        with self._lock:
            self._blocked[who] = time.monotonic() + seconds

    def blocks_anybody(self) -> bool:
        return bool(self._blocked)

    def blocked_for(self, who: str) -> float:
        """Return for how many seconds more the address is over its limit; 0 when it isn't, as far as known."""
        if who not in self._blocked:
            return 0.0
        with self._lock:
            left = self._blocked.get(who, 0.0) - time.monotonic()
            if left <= 0:
                self._blocked.pop(who, None)
            return max(0.0, left)

    def may_look_up(self, key: str) -> bool:
        if key_cache.is_known(key):
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._next_lookup:
                return False
            self._next_lookup = now + 1 / LOOKUPS_PER_SECOND
            self.lookups += 1
            return True


_memory = _Memory()


def forget() -> None:
    """Forget what this process knows, for tests."""
    _memory.clear()


def lookups() -> int:
    """Return how many keys of blocked addresses this process has looked up all the same."""
    return _memory.lookups


def refuse_early(address: str, key: str) -> RateLimitDecision | None:
    """Return the verdict for an address over its limit whose key shan't be looked up now; else None."""
    if not _memory.blocks_anybody():
        return None
    left = _memory.blocked_for(subject(address))
    if not left or _memory.may_look_up(key):
        return None
    return RateLimitDecision(False, settings.AUTH_FAILURES_PER_MINUTE, 0, int(left) + 1)


def failed(address: str) -> RateLimitDecision:
    """Count a failure and tell whether the address is still within its limit."""
    who = subject(address)
    verdict = hit(POLICY, who, settings.AUTH_FAILURES_PER_MINUTE)
    if not verdict.allowed:
        _memory.block(who, verdict.reset_seconds)
    return verdict
