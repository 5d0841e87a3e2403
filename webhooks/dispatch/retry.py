"""What happens to a delivery after an attempt, and when the next attempt is made: decisions without I/O."""

from __future__ import annotations

import email.utils
import random
from collections.abc import Sequence
from enum import StrEnum

from webhooks.destinations.outcome import SLOW_DOWN, Outcome


class NextStep(StrEnum):
    """What becomes of a delivery after an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    FAILED = "failed"


def decide_next_step(outcome: Outcome, attempts_used: int, schedule: Sequence[float]) -> NextStep:
    """Return what becomes of the delivery.

    attempts_used: entries of the retry schedule that are used up, this attempt included.  A failure that every further
    attempt would repeat is retried only by hand.
    """
    if outcome.succeeded:
        return NextStep.DELIVERED
    is_over = outcome.is_permanent or attempts_used >= len(schedule)
    return NextStep.FAILED if is_over else NextStep.RETRY


def retry_delay(attempts_used: int, schedule: Sequence[float], jitter: float) -> float:
    """Return the seconds until the next attempt, drawn evenly from the schedule's delay ± `jitter` of it.

    jitter: a share from 0 to 1.  It keeps deliveries that failed together from being retried together.
    """
    return schedule[attempts_used] * (1 + jitter * random.uniform(-1, 1))


def retry_after_seconds(outcome: Outcome, now: float, most: float) -> float | None:
    """Return how many seconds a response with a status of SLOW_DOWN tells us to wait; None if it doesn't say.

    most: bounds the seconds.  now: seconds since the epoch.  `Retry-After` holds seconds or an HTTP date (RFC 9110
    §10.2.3).  A value that is neither, or that lies in the past, counts as absent.
    """
    if outcome.status_code not in SLOW_DOWN or outcome.retry_after is None:
        return None
    text = outcome.retry_after.strip()
    if text.isascii() and text.isdigit():
        wait = float(text[:12])
    else:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(wait, most) if wait > 0 else None
