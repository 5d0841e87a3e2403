"""How an event becomes the bytes that a destination gets."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import orjson

from events import cloudevents
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
    `data` is the producer's JSON text, byte for byte, in all formats but `transform`.
    """
    data = event.event_data.encode()
    match form:
        case Format.CLOUDEVENTS:
            return _structured(event, organization_id)
        case Format.CLOUDEVENTS_BINARY:
            attributes, _ = _context(event, organization_id)
            body = _bare(event)
            # Percent-encoded as the HTTP binding asks: what is not printable ASCII, spaces, `"`, and `%`.
            headers = (
                (f"ce-{name}", quote(_as_text(value), safe=_SAFE))
                for name, value in attributes.items()
                if name != "datacontenttype"
            )
            return Body(body.content, body.content_type, tuple(headers))
        case Format.LEGACY:
            head = orjson.dumps({"event_id": event.event_id, "event_type": event.event_type})
            created = orjson.dumps(event.event_created_at, option=orjson.OPT_UTC_Z)
            return Body(head[:-1] + b',"payload":' + data + b',"created_at":' + created + b"}")
        case Format.RAW:
            return _bare(event)
        case Format.TRANSFORM:
            return Body(transform(expression, standard_envelope(event)))
        case _:
            return Body(standard_envelope(event))


_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


def _context(event: SentEvent, organization_id: uuid.UUID) -> tuple[dict[str, Any], str]:
    """Return the attributes of CloudEvents 1.0, and the kind of the data (`events.cloudevents`).

    Those that the event came with, if it came as a CloudEvent; its `time` is added if it had none.
    """
    time = orjson.loads(orjson.dumps(event.event_created_at, option=orjson.OPT_UTC_Z))
    if event.event_cloudevent is None:
        source = f"/organizations/{organization_id}"
        kept: dict[str, Any] = {"id": str(event.event_id), "source": source, "time": time, "datacontenttype": JSON}
    else:
        kept = {"time": time, **orjson.loads(event.event_cloudevent)}
    kind = kept.pop(cloudevents.DATA, "")
    return {"specversion": "1.0", "type": event.event_type, **kept}, kind


def _structured(event: SentEvent, organization_id: uuid.UUID) -> Body:
    attributes, kind = _context(event, organization_id)
    content = orjson.dumps(attributes)
    if kind != cloudevents.NO_DATA:
        member = b"data_base64" if kind == cloudevents.BASE64 else b"data"
        content = content[:-1] + b',"%s":' % member + event.event_data.encode() + b"}"
    return Body(content, "application/cloudevents+json; charset=utf-8")


def _bare(event: SentEvent) -> Body:
    """Return only the data, as the producer had it: what isn't JSON was stored as a JSON string."""
    data = event.event_data.encode()
    if event.event_cloudevent is None:
        return Body(data)
    kept = orjson.loads(event.event_cloudevent)
    content_type: str = kept.get("datacontenttype", JSON)
    kind = kept.get(cloudevents.DATA)
    if kind == cloudevents.NO_DATA:
        return Body(b"", kept.get("datacontenttype", ""))
    if kind == cloudevents.BASE64:
        return Body(base64.b64decode(orjson.loads(data)), kept.get("datacontenttype", "application/octet-stream"))
    if not cloudevents.JSON_TYPE.fullmatch(content_type) and data.startswith(b'"'):
        try:
            return Body(orjson.loads(data).encode(), content_type)
        except orjson.JSONDecodeError:  # it has half of a surrogate pair
            return Body(data, content_type)
    return Body(data, content_type)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
