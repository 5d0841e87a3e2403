"""How the body of a request with events is read: with which limit and parser, depending on the headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from core.json_body import require_media_type
from events import cloudevents
from events.api.serializers import FieldErrors
from events.payload import NewEvent, parse_batch, parse_event

JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the headers say about the body.  head: of a CloudEvent in binary mode."""

    media_type: str
    is_batch: bool
    head: cloudevents.BinaryHead | None = None

    @property
    def limit(self) -> int:
        """Return the most bytes that the body may have."""
        limit: int = settings.MAX_BATCH_BYTES if self.is_batch else settings.MAX_EVENT_BYTES
        return limit

    def content(self, body: bytes) -> bytes:
        """Return what makes two requests the same: the body, and headers that are a part of the content."""
        return body if self.head is None else body + self.head.fingerprint()

    def event(self, body: bytes) -> NewEvent:
        """Return the event.  Raises Problem."""
        if self.head is not None:
            return cloudevents.parse_binary(self.head, body)
        return cloudevents.parse_structured(body) if self.media_type == cloudevents.STRUCTURED else parse_event(body)

    def items(self, body: bytes) -> list[NewEvent | FieldErrors]:
        """Return each item of a batch: the event, or what is wrong with it.  Raises Problem."""
        return parse_batch(
            body,
            ndjson=self.media_type == NDJSON,
            max_events=settings.MAX_BATCH_EVENTS,
            max_event_bytes=settings.MAX_EVENT_BYTES,
            parse_item=cloudevents.parse_item if self.media_type == cloudevents.BATCH else None,
        )


def reading_of_event(content_type: str, headers: Mapping[str, str] | None) -> Reading:
    """Return how a request to `/api/events` is read.

    headers: by lowercase name; None if none of `cloudevents.MARKS` is among them.  Raises Problem 415.
    """
    if headers is not None and (head := cloudevents.binary_head(headers, content_type)) is not None:
        return Reading("", False, head)
    return _reading_of_event(content_type)


@lru_cache(1000)
def _reading_of_event(content_type: str) -> Reading:
    media_type = require_media_type(content_type, JSON, cloudevents.STRUCTURED, cloudevents.BATCH)
    return Reading(media_type, media_type == cloudevents.BATCH)


def reading_of_batch(content_type: str) -> Reading:
    """Return how a request to `/api/events/batch` is read.  Raises Problem 415."""
    return Reading(require_media_type(content_type, JSON, NDJSON, cloudevents.BATCH), True)
