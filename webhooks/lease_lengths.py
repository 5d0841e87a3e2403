"""How long a lease on a delivery lasts, in seconds."""

from __future__ import annotations

from django.conf import settings

# A lease of the front door that no sender has taken over: if the front door is killed, or Redis loses the event, its
# deliveries are late by this much.
UNTAKEN_SECONDS = 10.0


def lease_seconds() -> float:
    """Return how long the lease of a sender lasts."""
    return settings.DELIVERY_TIMEOUT + settings.LEASE_MARGIN


def untaken_seconds() -> float:
    """Return how long a lease of the front door lasts, until a sender extends it."""
    return min(UNTAKEN_SECONDS, lease_seconds())
