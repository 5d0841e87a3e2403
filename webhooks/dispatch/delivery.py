"""A delivery on its way: as it is claimed, and with the result of its attempt."""

from __future__ import annotations

import datetime
import time
import uuid
from dataclasses import dataclass

import msgspec

from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.outcome import Outcome


class ClaimedDelivery(msgspec.Struct, frozen=True):
    """A delivery that is this worker's to send until its lease ends.  event_data: the producer's JSON text.

    event_request_id, event_trace: as `events.origin` stores them.  keeps_exchange: the organization wants exchanges
    kept.  most_attempts: fewer than the retry schedule allows.
    """

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    lease_id: uuid.UUID
    attempts_used: int
    cause: str
    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    endpoint: Endpoint
    event_request_id: bytes | None = None
    event_trace: str | None = None
    keeps_exchange: bool = True
    event_cloudevent: str | None = None
    most_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """An attempt that is over.  started_at: seconds since the epoch, by the database's clock."""

    delivery: ClaimedDelivery
    outcome: Outcome
    started_at: float
    duration_ms: float


@dataclass(frozen=True, slots=True)
class DatabaseClock:
    """The database's time, continued by this machine's monotonic clock. The machine's own date isn't trusted."""

    epoch_seconds: float
    monotonic: float

    def now(self) -> float:
        """Return the database's time in seconds since the epoch."""
        return self.epoch_seconds + time.monotonic() - self.monotonic
