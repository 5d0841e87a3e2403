"""What the API returns.  Members that a newer server adds are left out; words are strings, so new ones do no harm."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from triggers_client.json_text import read

T = TypeVar("T")


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all models: read-only, with members by name."""


class Page(_Model, Generic[T], frozen=True, kw_only=True):
    """A page of a list."""

    data: list[T]
    next_cursor: str | None = None


class EventReceipt(_Model, frozen=True, kw_only=True):
    """status: `accepted`, or `duplicate` if an event with this `dedup_id` was there; then id is that of the first."""

    id: str
    status: str
    message: str = ""


class ReceiptError(_Model, frozen=True, kw_only=True):
    """What is wrong with a field of a batch's item."""

    pointer: str
    detail: str


class BatchItem(_Model, frozen=True, kw_only=True):
    """status: `accepted`, `duplicate`, `conflict`, or `invalid`; the last has errors and no id."""

    status: str
    id: str | None = None
    errors: list[ReceiptError] = []


class BatchReceipt(_Model, frozen=True, kw_only=True):
    """What came of each event of a batch, in its order."""

    accepted: int
    data: list[BatchItem]


class EventDelivery(_Model, frozen=True, kw_only=True):
    """A delivery as an event shows it."""

    id: str
    subscription_id: str
    status: str
    attempt_count: int = 0
    next_attempt_at: datetime | None = None
    completed_at: datetime | None = None


class Event(_Model, frozen=True, kw_only=True):
    """An event.  raw_data: its data as it was sent, byte for byte."""

    id: str
    type: str
    status: str
    created_at: datetime
    raw_data: msgspec.Raw = msgspec.field(name="data", default=msgspec.Raw(b"null"))
    processed_at: datetime | None = None
    dedup_id: str | None = None
    request_id: str | None = None
    error: str | None = None

    @property
    def data(self) -> Any:
        """Return the value of the data, which each call reads from `raw_data` again."""
        return read(bytes(self.raw_data), Any)


class EventWithDeliveries(Event, frozen=True, kw_only=True):
    """An event that was read by its id."""

    deliveries: list[EventDelivery]


class Subscription(_Model, frozen=True, kw_only=True):
    """A subscription.  secret: only when it was just created or rotated."""

    id: str
    kind: str
    event_types: list[str]
    state: str
    status: str
    created_at: datetime
    updated_at: datetime
    inbox: str | None = None
    url: str | None = None
    description: str = ""
    header_names: list[str] = []
    state_since: datetime | None = None
    paused_until: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_error: str | None = None
    last_status_code: int | None = None
    next_attempt_at: datetime | None = None
    disabled_cause: str | None = None
    disabled_reason: str = ""
    disabled_at: datetime | None = None
    max_in_flight: int | None = None
    deliveries_per_second: float | None = None
    format: str = "standard"
    transform: str = ""
    secret: str | None = None
    previous_secret_expires_at: datetime | None = None


class Header(_Model, frozen=True, kw_only=True):
    """A header of a request or response; secret values are masked."""

    name: str
    value: str


class PreviewedRequest(_Model, frozen=True, kw_only=True):
    """The request that an event would be sent as."""

    method: str
    url: str
    headers: list[Header]
    body: str
    body_bytes: int


class Preview(_Model, frozen=True, kw_only=True):
    """How a subscription would send an event."""

    would_match: bool
    format: str
    request: PreviewedRequest | None = None
    error: str | None = None
    error_detail: str = ""


class EndpointTest(_Model, frozen=True, kw_only=True):
    """What came of a test event."""

    event_id: str
    type: str
    succeeded: bool
    duration_ms: float
    status_code: int | None = None
    error: str | None = None
    error_detail: str = ""
    response_body: str = ""


class Recovery(_Model, frozen=True, kw_only=True):
    """How far a recovery is."""

    id: str
    status: str
    events_seen: int = 0
    queued: int = 0
    held: int = 0
    created_at: datetime | None = None
    finished_at: datetime | None = None


class Exchange(_Model, frozen=True, kw_only=True):
    """What went over the wire in an attempt; see the API's reference for the members."""

    request: dict[str, Any] = {}
    response: dict[str, Any] | None = None
    connection: dict[str, Any] = {}
    timings: dict[str, float | None] = {}


class Attempt(_Model, frozen=True, kw_only=True):
    """An attempt.  exchange: only of one that was read by its number."""

    number: int
    cause: str
    started_at: datetime
    duration_ms: float
    status_code: int | None = None
    error: str | None = None
    error_detail: str = ""
    response_body: str = ""
    exchange: Exchange | None = None


class Delivery(_Model, frozen=True, kw_only=True):
    """A delivery."""

    id: str
    event_id: str
    subscription_id: str
    status: str
    attempt_count: int
    created_at: datetime
    next_attempt_at: datetime | None = None
    last_status_code: int | None = None
    last_error: str | None = None
    completed_at: datetime | None = None
    ordering_key: str | None = None


class DeliveryWithAttempts(Delivery, frozen=True, kw_only=True):
    """A delivery that was read by its id.

    waits_for: the delivery of the same ordering key that has to be over first.
    """

    attempts: list[Attempt]
    waits_for: str | None = None


class EventType(_Model, frozen=True, kw_only=True):
    """A type of the catalog."""

    id: str
    name: str
    version: int
    created_at: datetime
    updated_at: datetime
    description: str = ""
    examples: list[Any] = []
    schema: Any = None
    archived: bool = False


class EventTypeSettings(_Model, frozen=True, kw_only=True):
    """Which events the organization takes: `free`, `known`, or `schema`."""

    strictness: str


class ImportedEventType(_Model, frozen=True, kw_only=True):
    """status: `created`, `changed`, or `unchanged`."""

    id: str
    name: str
    status: str


class InboxEvent(_Model, frozen=True, kw_only=True):
    """An event of an inbox.  attempt: how often it was fetched; 0 in the log.

    raw_payload: the event's data as it was sent, byte for byte.
    """

    id: str
    type: str
    raw_payload: msgspec.Raw = msgspec.field(name="payload")
    created_at: datetime
    delivery_id: str
    delivery_status: str
    attempt: int = 0

    @property
    def payload(self) -> Any:
        """Return the value of the payload, which each call reads from `raw_payload` again."""
        return read(bytes(self.raw_payload), Any)


class Fetched(_Model, frozen=True, kw_only=True):
    """Events under a lease: acknowledge them before it ends."""

    events: list[InboxEvent]
    lease_id: str | None = None
    lease_expires_at: datetime | None = None


class RawInboxEvent(_Model, frozen=True, kw_only=True):
    """An event of an inbox, with the payload and the time as they came, byte for byte."""

    id: str
    type: str
    payload: msgspec.Raw
    created_at: str
    attempt: int = 0


class RawFetched(_Model, frozen=True, kw_only=True):
    """Events under a lease, with their payloads as they came."""

    events: list[RawInboxEvent]
    lease_id: str | None = None


class LogPage(_Model, frozen=True, kw_only=True):
    """A page of an inbox's log.  next_cursor: where to go on, also if there was nothing."""

    events: list[InboxEvent]
    next_cursor: str
    has_more: bool = False


class StreamedEvent(_Model, frozen=True, kw_only=True):
    """An event of a stream.  cursor: what to begin with to get what comes after it."""

    cursor: str
    event: InboxEvent


class SettledItem(_Model, frozen=True, kw_only=True):
    """What came of an event that was acknowledged, given back, or extended."""

    status: str
    event_id: str | None = None
    delivery_id: str | None = None


class Settled(_Model, frozen=True, kw_only=True):
    """What came of each.  failed: how many of them couldn't be settled."""

    failed: int
    results: list[SettledItem]


class Organization(_Model, frozen=True, kw_only=True):
    """An organization."""

    id: str
    name: str


class Key(_Model, frozen=True, kw_only=True):
    """The key in use."""

    id: str
    prefix: str
    scopes: list[str]


class Me(_Model, frozen=True, kw_only=True):
    """Whose key this is, and what it may do."""

    organization: Organization
    key: Key
    events_per_minute: int
