"""An inbox as a log: all that came into it, in order, for consumers that keep their own place.

The order is that of `created_at` and the id.  Deliveries are inserted into an inbox under the lock of its queue, so
they become visible in this order, and a reader that goes on from its place misses none.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import uuid
from dataclasses import dataclass

from psycopg.rows import class_row, scalar_row

from core.db import server_cursor
from webhooks.destinations.inbox.fetching import MAX_BYTES
from webhooks.models import Delivery

# A place behind everything moves on with the time, so that one in a quiet inbox doesn't become too old.  By so much
# less than now: no transaction takes that long.
SLACK = datetime.timedelta(hours=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_BEFORE_ALL_IDS = uuid.UUID(int=0)


class ForeignCursor(ValueError):
    """The cursor isn't one of this inbox."""


class ExpiredCursor(ValueError):
    """The cursor's place is older than what the inbox still holds."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log, behind the delivery with this time and id."""

    at: datetime.datetime
    id: uuid.UUID


START = Place(_EPOCH, _BEFORE_ALL_IDS)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event in the log."""

    delivery_id: uuid.UUID
    place_at: datetime.datetime
    status: str
    last_error: str
    lease_id: uuid.UUID | None
    next_attempt_at: datetime.datetime | None
    event_id: uuid.UUID
    event_type: str
    event_data: str
    event_created_at: datetime.datetime
    size: int
    total: int

    @property
    def place(self) -> Place:
        return Place(self.place_at, self.delivery_id)


@dataclass(frozen=True, slots=True)
class Page:
    """Events from a place on, the place behind them, and whether more follow at once."""

    events: list[LoggedEvent]
    following: Place
    has_more: bool


# SQL, because of the LATERAL join, and because a place is two columns that are compared together.  The five statuses
# that an inbox's delivery may have are those of the index webhooks_delivery_sub_list.
_READ = """
SELECT d.id AS delivery_id, d.created_at AS place_at, d.status, d.last_error, d.lease_id, d.next_attempt_at,
       e.id AS event_id, e.type AS event_type, e.data AS event_data, e.created_at AS event_created_at,
       octet_length(e.data) AS size,
       sum(octet_length(e.data)) OVER (ORDER BY d.created_at, d.id ROWS UNBOUNDED PRECEDING) AS total
FROM (
    SELECT * FROM webhooks_delivery
    WHERE subscription_id = %(inbox)s AND status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')
      AND (created_at, id) > (%(at)s, %(id)s)
    ORDER BY created_at, id LIMIT %(rows)s
) AS d CROSS JOIN LATERAL (SELECT * FROM events_event WHERE id = d.event_id LIMIT 1) AS e
ORDER BY d.created_at, d.id
"""
# The database's clock decides what is recent.  The ORM reads it only beside a row.
_NOW = "SELECT statement_timestamp()"


def read(inbox_id: uuid.UUID, place: Place, limit: int) -> Page:
    """Return the next events behind `place`, at most `limit`, and about MAX_BYTES of data."""
    with server_cursor(scalar_row) as cursor:
        now: datetime.datetime = cursor.execute(_NOW).fetchone() or _EPOCH
    with server_cursor(class_row(LoggedEvent)) as cursor:
        parameters = {"inbox": inbox_id, "at": place.at, "id": place.id, "rows": limit + 1}
        found = cursor.execute(_READ, parameters).fetchall()
    shown = [event for event in found[:limit] if event.total - event.size < MAX_BYTES]
    has_more = len(found) > len(shown)
    following = shown[-1].place if shown else place
    if not has_more and following.at < now - SLACK:
        following = Place(now - SLACK, _BEFORE_ALL_IDS)
    return Page(shown, following, has_more)


def end_of(inbox_id: uuid.UUID) -> Place:
    """Return the place behind all that is in the inbox now."""
    events = Delivery.objects.filter(Delivery.LIST_PARTS[0], subscription_id=inbox_id)
    last = events.order_by("-created_at", "-id").values_list("created_at", "id").first()
    return Place(*last) if last else START


def encode(inbox_id: uuid.UUID, place: Place) -> str:
    """Return the place as a cursor, which is for this inbox alone."""
    microseconds = (place.at - _EPOCH) // _MICROSECOND
    packed = inbox_id.bytes + microseconds.to_bytes(8) + place.id.bytes
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str, inbox_id: uuid.UUID, retention_days: int) -> Place:
    """Return the place of a cursor; an empty one is the beginning.  Raises ForeignCursor and ExpiredCursor."""
    if not text:
        return START
    try:
        packed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(packed) != 40 or packed[:16] != inbox_id.bytes:
            raise ForeignCursor
        place = Place(_EPOCH + int.from_bytes(packed[16:24]) * _MICROSECOND, uuid.UUID(bytes=packed[24:]))
    except (ValueError, OverflowError, binascii.Error):
        raise ForeignCursor from None
    if place == START:
        return place
    with server_cursor(scalar_row) as cursor:
        now = cursor.execute(_NOW).fetchone()
    if now and place.at < now - datetime.timedelta(days=retention_days):
        raise ExpiredCursor
    return place
