"""How hard a subscription may be tried: its window and its circuit breaker, without I/O.

The window works like TCP's slow start: it begins small, each success lets one more request be in
flight, a failure halves it.  A receiver that hangs from its first request therefore never holds more
than a few; one that answers soon has all it can take.  After CIRCUIT_THRESHOLD failures in a row the
circuit opens: the subscription is left alone for a while, then probed with one request, and the first
success closes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings behind the decisions.  Delays in seconds; threshold 0 never opens the circuit."""

    initial_window: int
    threshold: int
    base_delay: float
    max_delay: float


@dataclass(frozen=True, slots=True)
class Health:
    """A subscription's standing.  pause: seconds to leave it alone from now on, 0 for none."""

    window: int
    failures_in_row: int
    circuit_opened: int
    pause: float = 0.0


def after_success(health: Health, policy: Policy, most: int) -> Health:
    """Return the standing after a success.  most: the largest window that the subscription may have."""
    if health.circuit_opened:
        return Health(window=min(policy.initial_window, most), failures_in_row=0, circuit_opened=0)
    return replace(health, window=min(most, health.window + 1), failures_in_row=0)


def after_failure(health: Health, policy: Policy, overloaded: bool) -> Health:
    """Return the standing after a failure, with a pause when it opens the circuit.

    overloaded: the failure looks like too much load (a timeout, a lost connection, 429, 5xx) and not
    like a dislike of this one event (another 4xx), which says nothing about the window.
    """
    failures = health.failures_in_row + 1
    if policy.threshold and failures >= policy.threshold:
        if health.pause:
            # The rest of what was in flight when the circuit opened: no longer pause for each.
            return replace(health, failures_in_row=failures)
        opened = health.circuit_opened + 1
        pause = min(policy.max_delay, policy.base_delay * 2 ** min(opened - 1, 30))
        return Health(window=1, failures_in_row=failures, circuit_opened=opened, pause=pause)
    window = max(1, health.window // 2) if overloaded else health.window
    return replace(health, window=window, failures_in_row=failures)
