"""A test event: one synthetic event straight to a subscription's endpoint, whose outcome is shown at once.

It is signed and sent as every webhook is, in the subscription's format and under the same rules for addresses, but it
isn't an event of the organization: nothing is stored, nothing is retried, and the endpoint's circuit breaker doesn't
count it.
"""

from __future__ import annotations

import datetime
import time
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from django.utils import timezone

from core.ids import new_id
from webhooks import probes
from webhooks.destinations.outcome import Outcome
from webhooks.models import Subscription
from webhooks.outgoing import SingleOutgoing, endpoint_of

TYPE = "triggers.test"
PER_MINUTE = 10


@dataclass(frozen=True, slots=True)
class EndpointTest:
    """What came of a test event.  It has no event or delivery to look up."""

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
        """Return what the audit log keeps: nothing from the response."""
        failure = self.outcome.failure.value if self.outcome.failure else None
        return {"event": str(self.event_id), "status_code": self.outcome.status_code, "error": failure}


def send_test_event(subscription: Subscription) -> EndpointTest:
    """Send a test event to the subscription's endpoint, also while it is disabled, and wait for the response.

    Raises TooManyProbes.  To be called outside of a transaction: this takes up to `probes.MAX_SECONDS`.
    """
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
    outcome = probes.probe(
        subscription.organization_id,
        "test events",
        PER_MINUTE,
        lambda destination: destination.send(outgoing, now.timestamp()),
    )
    return EndpointTest(outgoing.event_id, now, (time.monotonic() - started) * 1000, outcome)
