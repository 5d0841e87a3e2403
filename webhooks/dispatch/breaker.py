"""How many requests an endpoint gets: its concurrency window and its circuit breaker, without I/O.

The window works like TCP's slow start: it begins small, each success lets one more request be in flight, and a failure
halves it.  So an endpoint that hangs from the start never holds more than a few requests, and one that responds quickly
gets as many as it can take.

The breaker is *closed* while deliveries flow.  After `threshold` consecutive failures it *opens*: nothing is sent for
a pause that doubles with each trip.  Then it is *half-open*: one request at a time is let through, until the first
success closes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """The settings behind the decisions.  Delays in seconds; a threshold of 0 never opens the breaker."""

    initial_window: int
    threshold: int
    base_delay: float
    max_delay: float


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """The state of an endpoint.

    window: most requests in flight.  breaker_trips: how often in a row the breaker opened; 0 while it is closed. pause:
    how many seconds from now nothing is sent.
    """

    window: int
    consecutive_failures: int
    breaker_trips: int
    pause: float = 0.0


def after_success(health: EndpointHealth, policy: BreakerPolicy, max_window: int) -> EndpointHealth:
    """Return the health after a success.  max_window: the largest window that the subscription may have."""
    if health.breaker_trips:
        return EndpointHealth(min(policy.initial_window, max_window), consecutive_failures=0, breaker_trips=0)
    return replace(health, window=min(max_window, health.window + 1), consecutive_failures=0)


def after_failure(health: EndpointHealth, policy: BreakerPolicy, is_overload: bool) -> EndpointHealth:
    """Return the health after a failure, with a pause if it opens the breaker.

    is_overload: the failure is about load or reachability (`Outcome.is_overload`); another one leaves the window.
    """
    failures = health.consecutive_failures + 1
    if policy.threshold and failures >= policy.threshold:
        if health.pause and health.breaker_trips:
            # Requests that were in flight when the breaker opened must not prolong the pause.  (A pause without a trip
            # is the endpoint's Retry-After, during which the breaker may open.)
            return replace(health, consecutive_failures=failures)
        trips = health.breaker_trips + 1
        pause = min(policy.max_delay, policy.base_delay * 2 ** min(trips - 1, 30))
        return EndpointHealth(window=1, consecutive_failures=failures, breaker_trips=trips, pause=pause)
    window = max(1, health.window // 2) if is_overload else health.window
    return replace(health, window=window, consecutive_failures=failures)
