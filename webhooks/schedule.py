"""What an answer means and when to try again: plain decisions, without I/O."""

from __future__ import annotations

import email.utils
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """Error classes of an attempt."""

    HTTP_STATUS = "http_status"
    REDIRECT = "redirect"
    TIMEOUT = "timeout"
    DNS_FAILED = "dns_failed"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_FAILED = "connection_failed"
    CONNECTION_LOST = "connection_lost"
    TLS_FAILED = "tls_failed"
    INVALID_RESPONSE = "invalid_response"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    PROXY_FAILED = "proxy_failed"
    INTERNAL_ERROR = "internal_error"
    WORKER_LOST = "worker_lost"


class Verdict(StrEnum):
    """What becomes of a delivery after an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt brought: a status code, or the error class that kept one away.

    retry_after: the header's text, when there was one.
    """

    status_code: int | None = None
    failure: Failure | None = None
    detail: str = ""
    body: str = ""
    retry_after: str | None = None

    @property
    def succeeded(self) -> bool:
        """Tell whether the receiver took the webhook: 2xx and nothing else."""
        return self.failure is None


def judge_status(status_code: int) -> Failure | None:
    """Return the error class of an HTTP status; None for 2xx.  A redirect is never followed."""
    if 200 <= status_code <= 299:
        return None
    if 300 <= status_code <= 399:
        return Failure.REDIRECT
    return Failure.HTTP_STATUS


def retry_after_seconds(answer: Answer, now: float, most: float) -> float | None:
    """Return how long a 429 or 503 asks us to wait, at most `most` seconds; None when it doesn't.

    now: seconds since the epoch.  `Retry-After` is seconds or an HTTP date (RFC 9110 §10.2.3); what
    is neither, or lies in the past, counts as not given.
    """
    if answer.status_code not in {429, 503} or answer.retry_after is None:
        return None
    text = answer.retry_after.strip()
    if text.isascii() and text.isdigit():
        wait = float(text[:12])
    else:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(wait, most) if wait > 0 else None


def asks_to_stop(answer: Answer) -> bool:
    """Tell whether the receiver says that it is gone for good (410)."""
    return answer.status_code == 410


def looks_overloaded(answer: Answer) -> bool:
    """Tell whether a failure is about load or reach, not about this one event."""
    return answer.failure is not Failure.HTTP_STATUS or answer.status_code == 429 or (answer.status_code or 0) >= 500


def decide(answer: Answer, tries_used: int, schedule: Sequence[float]) -> Verdict:
    """Return what becomes of the delivery.  tries_used: entries of the schedule used, this one included."""
    if answer.succeeded:
        return Verdict.DELIVERED
    return Verdict.RETRY if tries_used < len(schedule) else Verdict.FAILED


def retry_delay(tries_used: int, schedule: Sequence[float], jitter: float, spread: float | None = None) -> float:
    """Return the seconds until the next try.

    tries_used: entries used so far; jitter: share of the delay that it may differ by, both ways;
    spread: a number in -1…1 that stands in for chance.
    """
    chance = random.uniform(-1, 1) if spread is None else spread
    return schedule[tries_used] * (1 + jitter * chance)
