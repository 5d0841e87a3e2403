"""A subscription's rate limit over all workers: the generic cell rate algorithm (GCRA), without I/O.

A queue's row holds the time until which its rate is reserved.  Each delivery reserves 1 / rate seconds more.  All
times are seconds since the epoch by the database's clock.
"""

from __future__ import annotations


def burst(rate: float) -> float:
    """Return how many deliveries may go at once: a tenth of a second's worth, at least one."""
    return max(1.0, rate / 10)


def allowed_now(rate: float, reserved_until: float, now: float) -> int:
    """Return how many deliveries the limit allows at `now`."""
    ahead = max(0.0, reserved_until - now)
    return int(burst(rate) - ahead * rate + 1e-6)


def reserve(rate: float, reserved_until: float, now: float, deliveries: int) -> float:
    """Return until when the rate is reserved after `deliveries` more."""
    return max(reserved_until, now) + deliveries / rate


def next_allowed_at(rate: float, reserved_until: float) -> float:
    """Return when a rate limit that is used up allows the next delivery."""
    return reserved_until - (burst(rate) - 1) / rate
