"""How an event becomes the bytes that a destination gets."""

from __future__ import annotations

import orjson

from webhooks.destinations.base import SentEvent


def standard_envelope(event: SentEvent) -> bytes:
    """Return the body of Standard Webhooks 1.0; `data` is the producer's text, byte for byte."""
    head = orjson.dumps(
        {"id": event.event_id, "type": event.event_type, "timestamp": event.event_created_at},
        option=orjson.OPT_UTC_Z,
    )
    return head[:-1] + b',"data":' + event.event_data.encode() + b"}"
