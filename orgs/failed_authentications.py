"""Failed authentications, counted per client address; over the limit, they cost no look-up.

A valid key must work from an address that others abuse (an office, a proxy that TRUSTED_PROXIES doesn't count), so an
address over its limit is not simply locked out: keys that this process has seen working pass as before, and other keys
are looked up at a limited rate.
"""

from __future__ import annotations

import math
import threading
import time

from cachetools import TLRUCache
from django.conf import settings

from core.client_address import client_network
from core.ratelimits import RateLimitDecision, hit
from orgs.verified_keys import verified_keys

POLICY = "auth-failures"
MOST_ADDRESSES = 10_000
# For all blocked addresses of a process together: how often a key that it hasn't seen working is looked up.
LOOKUPS_PER_SECOND = 20


class FailedAuthentications:
    """The addresses over their limit that this process has seen; forgetting one only costs look-ups."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # From a subject to the monotonic time when its window ends, which is also when the entry expires.
        self._blocked: TLRUCache[str, float] = TLRUCache(
            MOST_ADDRESSES, ttu=lambda _subject, ends_at, _now: ends_at, timer=time.monotonic
        )
        self._next_lookup = 0.0

    def count(self, address: str) -> RateLimitDecision:
        """Count a failure and return whether the address is still within its limit."""
        who = client_network(address)
        decision = hit(POLICY, who, settings.AUTH_FAILURES_PER_MINUTE)
        if not decision.allowed:
            with self._lock:
                self._blocked[who] = time.monotonic() + decision.reset_seconds
        return decision

    def refuse_early(self, address: str, key: str) -> RateLimitDecision | None:
        """Return the refusal of an address over its limit whose key is not to be looked up now, else None."""
        with self._lock:
            ends_at = self._blocked.get(client_network(address)) if self._blocked.currsize else None
        if ends_at is None or key in verified_keys or self._may_look_up():
            return None
        return RateLimitDecision(
            False, settings.AUTH_FAILURES_PER_MINUTE, 0, max(1, math.ceil(ends_at - time.monotonic()))
        )

    def reset(self) -> None:
        """Forget every address."""
        with self._lock:
            self._blocked.clear()
            self._next_lookup = 0.0

    def _may_look_up(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._next_lookup:
                return False
            self._next_lookup = now + 1 / LOOKUPS_PER_SECOND
            return True


failed_authentications = FailedAuthentications()
