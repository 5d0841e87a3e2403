"""The interface of a kind of destination that is pushed to."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Protocol

from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.outcome import Outcome


class SentEvent(Protocol):
    """What a destination gets of an event.

    event_data: the producer's JSON text.  event_cloudevent: what is kept of a CloudEvent (`events.cloudevents`).
    """

    @property
    def event_id(self) -> uuid.UUID: ...
    @property
    def event_type(self) -> str: ...
    @property
    def event_created_at(self) -> datetime.datetime: ...
    @property
    def event_data(self) -> str: ...
    @property
    def event_cloudevent(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A stored event, for `formats` to render."""

    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    event_cloudevent: str | None = None


class Outgoing(SentEvent, Protocol):
    """An event that is sent to one destination.

    event_trace: the trace that it belongs to, as `events.origin` stores it.
    """

    @property
    def organization_id(self) -> uuid.UUID: ...
    @property
    def event_trace(self) -> str | None: ...
    @property
    def endpoint(self) -> Endpoint: ...


class Destination(Protocol):
    """Sends events to destinations of one kind.  Made, used, and closed on one event loop."""

    async def send(self, outgoing: Outgoing, timestamp: float) -> Outcome:
        """Make one attempt and return its outcome.  Raises nothing but cancellation.

        timestamp: when the attempt starts, in seconds since the epoch, by the database's clock.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
