"""The deliveries that one sender has in flight, counted by organization, subscription, host, and lease."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import TypeVar

from cachetools import LRUCache

from webhooks.dispatch.claim import Occupancy
from webhooks.dispatch.delivery import ClaimedDelivery

K = TypeVar("K", bound=Hashable)

# Over how many seconds the rate of an organization's deliveries is measured, and of how many organizations.
RATE_SECONDS = 0.5
RATES = 1_000


class InFlight:
    """Counts deliveries, from the claim until the result is recorded, and the places that are left.

    capacity: most deliveries in flight.  kept_for_hand_over: places that claims leave free.  now: a monotonic clock, in
    seconds.

    `add` and `remove` may only be called on the sender's thread, the other methods on any. A place that a claim or a
    hand-over may still fill is reserved, so that together they never take too many.
    """

    def __init__(self, capacity: int, kept_for_hand_over: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._capacity = capacity
        self._kept_for_hand_over = kept_for_hand_over
        self._reserved = 0
        self._lock = threading.Lock()
        self._total = 0
        self._by_organization: Counter[uuid.UUID] = Counter()
        self._by_subscription: Counter[uuid.UUID] = Counter()
        self._by_host: Counter[str] = Counter()
        self._by_lease: Counter[uuid.UUID] = Counter()
        # By delivery, its subscription and when it was counted in; the oldest first.
        self._since: dict[uuid.UUID, tuple[uuid.UUID, float]] = {}
        # By organization, the deliveries per second that were counted out, and when that was so.
        self._rates: LRUCache[uuid.UUID, tuple[float, float]] = LRUCache(RATES)

    def __len__(self) -> int:
        return self._total

    def has_any_of(self, subscription_id: uuid.UUID) -> bool:
        """Tell whether deliveries of the subscription are in work."""
        return subscription_id in self._by_subscription

    @property
    def leases(self) -> set[uuid.UUID]:
        """The leases under which deliveries are in flight."""
        return set(self._by_lease)

    @property
    def free(self) -> int:
        """How many places are neither taken nor reserved."""
        return max(0, self._capacity - self._total - self._reserved)

    @property
    def unoccupied(self) -> int:
        """How many places are not taken, reserved or not."""
        return max(0, self._capacity - self._total)

    @property
    def claimable(self) -> int:
        """How many places claims may fill, reserved or not."""
        return max(0, self._capacity - self._kept_for_hand_over - self._total)

    def reserve_for_claim(self) -> int:
        """Reserve the places that a claim may fill; return how many, 0 when there is none."""
        return self.reserve(self.claimable)

    def reserve(self, wanted: int) -> int:
        """Reserve up to `wanted` places; return how many."""
        with self._lock:
            number = min(wanted, self.free)
            self._reserved += number
            return number

    def release(self, number: int) -> None:
        """Give reserved places back, whether or not they were filled."""
        with self._lock:
            self._reserved -= number

    def add(self, delivery: ClaimedDelivery) -> None:
        """Count a delivery in."""
        self._total += 1
        self._since[delivery.delivery_id] = delivery.subscription_id, self._now()
        self._by_organization[delivery.organization_id] += 1
        self._by_subscription[delivery.subscription_id] += 1
        self._by_host[delivery.endpoint.host] += 1
        self._by_lease[delivery.lease_id] += 1

    def remove(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        """Count deliveries out."""
        numbers: Counter[uuid.UUID] = Counter()
        for delivery in deliveries:
            self._total -= 1
            self._since.pop(delivery.delivery_id, None)
            numbers[delivery.organization_id] += 1
            _decrement(self._by_organization, delivery.organization_id)
            _decrement(self._by_subscription, delivery.subscription_id)
            _decrement(self._by_host, delivery.endpoint.host)
            _decrement(self._by_lease, delivery.lease_id)
        with self._lock:
            now = self._now()
            for organization_id, number in numbers.items():
                self._rates[organization_id] = self._rate(organization_id, now) + number / RATE_SECONDS, now

    def rate(self, organization_id: uuid.UUID) -> float:
        """Return how many deliveries of the organization were counted out per second, lately."""
        with self._lock:
            return self._rate(organization_id, self._now())

    def _rate(self, organization_id: uuid.UUID, now: float) -> float:
        rate, at = self._rates.get(organization_id, (0.0, now))
        return rate * math.exp((at - now) / RATE_SECONDS)

    def slow_subscriptions(self, seconds: float) -> set[uuid.UUID]:
        """Return the subscriptions that have a delivery in flight for longer than `seconds`."""
        began_before = self._now() - seconds
        return {
            subscription_id
            # A copy, because the sender's thread may add and remove meanwhile.
            for subscription_id, began in takewhile(lambda one: one[1] < began_before, list(self._since.values()))
        }

    def occupancy(self) -> Occupancy:
        """Return a copy of the counts, for a claim or a hand-over on another thread."""
        return Occupancy(self._by_organization.copy(), self._by_subscription.copy(), self._by_host.copy())


def _decrement(counts: Counter[K], key: K) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
