"""A test event: one synthetic event straight to a subscription's endpoint, whose outcome is shown at once.

It is signed and sent as every webhook is, in the subscription's format and under the same rules for addresses, but it
isn't an event of the organization: nothing is stored, nothing is retried, and the endpoint's circuit breaker doesn't
count it.
"""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings
from django.utils import timezone

from core import ratelimits
from core.ids import new_id
from webhooks.destinations.http.destination import HttpDestination
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.models import Subscription
from webhooks.outgoing import SingleOutgoing, endpoint_of

TYPE = "triggers.test"
# The request of an operator or tenant waits for the endpoint, and holds one of the web process's threads meanwhile.
MAX_SECONDS = 10.0
MAX_AT_A_TIME = 2
PER_MINUTE = 10

_places = threading.BoundedSemaphore(MAX_AT_A_TIME)


class TooManyTests(Exception):
    """The organization has sent PER_MINUTE, or this process is sending MAX_AT_A_TIME.  retry_after: in seconds."""

    def __init__(self, sentence: str, retry_after: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class EndpointTest:
    """What came of a test event.  It has no event or delivery of its own to look up."""

    event_id: uuid.UUID
    sent_at: datetime.datetime
    duration_ms: float
    outcome: Outcome

    @property
    def summary(self) -> str:
        """Return the outcome in a sentence."""
        took = f"after {self.duration_ms:.0f} ms"
        if self.outcome.succeeded:
            return f"The endpoint responded with {self.outcome.status_code} {took}."
        return f"{self.outcome.detail or 'The attempt failed.'} ({self.outcome.failure}, {took})"

    def for_audit(self) -> dict[str, Any]:
        """Return what the audit log keeps: nothing in the endpoint's words."""
        failure = self.outcome.failure.value if self.outcome.failure else None
        return {"event": str(self.event_id), "status_code": self.outcome.status_code, "error": failure}


def send_test_event(subscription: Subscription) -> EndpointTest:
    """Send a test event to the subscription's endpoint, also while it is disabled, and wait for the response.

    Raises TooManyTests.  To be called outside of a transaction: this takes up to MAX_SECONDS.
    """
    decision = ratelimits.hit("test-events", str(subscription.organization_id), PER_MINUTE)
    if not decision.allowed:
        raise TooManyTests(
            f"The organization may send {PER_MINUTE} test events a minute.", max(1, decision.reset_seconds)
        )
    if not _places.acquire(blocking=False):
        raise TooManyTests("Other test events are being sent; try again.", 5)
    try:
        return _send(subscription)
    finally:
        _places.release()


def _send(subscription: Subscription) -> EndpointTest:
    now = timezone.now()
    outgoing = SingleOutgoing(
        new_id(),
        TYPE,
        now,
        orjson.dumps({"test": True, "subscription_id": subscription.pk}).decode(),
        endpoint_of(subscription, now),
        subscription.organization_id,
    )
    started = time.monotonic()
    outcome = asyncio.run(_attempt(outgoing, now.timestamp()))
    return EndpointTest(outgoing.event_id, now, (time.monotonic() - started) * 1000, outcome)


async def _attempt(outgoing: SingleOutgoing, timestamp: float) -> Outcome:
    destination = HttpDestination()
    seconds = min(MAX_SECONDS, settings.DELIVERY_TIMEOUT)
    try:
        async with asyncio.timeout(seconds):
            return await destination.send(outgoing, timestamp)
    except TimeoutError:
        return Outcome(failure=Failure.TIMEOUT, detail=f"The endpoint did not respond within {seconds:g} seconds.")
    finally:
        await destination.aclose()
