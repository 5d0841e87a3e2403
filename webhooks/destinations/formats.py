"""How an event becomes the bytes that a destination gets."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

import orjson

from webhooks.destinations.base import SentEvent
from webhooks.destinations.transform import transform

JSON = "application/json"


class Format(StrEnum):
    """The formats by the names that a subscription has for them."""

    STANDARD = "standard"
    CLOUDEVENTS = "cloudevents"
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    LEGACY = "legacy"
    RAW = "raw"
    TRANSFORM = "transform"


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: the bytes, their media type, and the headers that belong to the format."""

    content: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def standard_envelope(event: SentEvent) -> bytes:
    """Return the body of Standard Webhooks 1.0; `data` is the producer's text, byte for byte."""
    head = orjson.dumps(
        {"id": event.event_id, "type": event.event_type, "timestamp": event.event_created_at},
        option=orjson.OPT_UTC_Z,
    )
    return head[:-1] + b',"data":' + event.event_data.encode() + b"}"


def render(event: SentEvent, organization_id: uuid.UUID, form: str, expression: str = "") -> Body:
    """Return what an event is sent as.  Raises TransformError.

    form: one of Format; an empty one is the standard one.  expression: for the format `transform`.
    `data` is the producer's text, byte for byte, in all formats but `transform`.
    """
    data = event.event_data.encode()
    match form:
        case Format.CLOUDEVENTS:
            head = orjson.dumps({**_context(event, organization_id), "datacontenttype": JSON})
            return Body(head[:-1] + b',"data":' + data + b"}", "application/cloudevents+json; charset=utf-8")
        case Format.CLOUDEVENTS_BINARY:
            # Percent-encoded as the HTTP binding asks: what is not printable ASCII, spaces, `"`, and `%`.
            headers = (
                (f"ce-{name}", quote(value, safe=_SAFE)) for name, value in _context(event, organization_id).items()
            )
            return Body(data, JSON, tuple(headers))
        case Format.LEGACY:
            head = orjson.dumps({"event_id": event.event_id, "event_type": event.event_type})
            created = orjson.dumps(event.event_created_at, option=orjson.OPT_UTC_Z)
            return Body(head[:-1] + b',"payload":' + data + b',"created_at":' + created + b"}")
        case Format.RAW:
            return Body(data)
        case Format.TRANSFORM:
            return Body(transform(expression, standard_envelope(event)))
        case _:
            return Body(standard_envelope(event))


_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


def _context(event: SentEvent, organization_id: uuid.UUID) -> dict[str, str]:
    """Return the attributes of CloudEvents 1.0."""
    time = orjson.loads(orjson.dumps(event.event_created_at, option=orjson.OPT_UTC_Z))
    return {
        "specversion": "1.0",
        "id": str(event.event_id),
        "source": f"/organizations/{organization_id}",
        "type": event.event_type,
        "time": time,
    }
