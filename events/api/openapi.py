"""What serializers can't say in the OpenAPI schema: the shape of a new event, and examples."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.utils import OpenApiExample, OpenApiParameter

from core.openapi import Schema
from events.channels import MAX_CHANNELS, MAX_CHARACTERS, NAME
from events.payload import EVENT_TYPE, MAX_DEDUP_ID_CHARACTERS, MAX_TYPE_CHARACTERS

EVENT_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
ORDER: Schema = {"type": "order.created", "data": {"order": 4711, "total": "19.90"}, "dedup_id": "order-4711-created"}
ORDER_AS_PAYLOAD: Schema = {"type": "order.created", "payload": {"order": 4711}}


class NewEventSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """`data` and `payload` are two names for one thing, which serializer fields can't say."""

    target_class = "events.api.serializers.NewEvent"

    def get_name(self, auto_schema: Any, direction: Any) -> str:
        """Return the component's name."""
        return "NewEvent"

    def map_serializer(self, auto_schema: Any, direction: Any) -> Schema:
        """Return the JSON schema of a new event."""
        return {
            "type": "object",
            "description": "Exactly one of `data` and `payload` is given.",
            "required": ["type"],
            "properties": {
                "type": {
                    "type": "string",
                    "pattern": f"^{EVENT_TYPE.pattern}$",
                    "minLength": 1,
                    "maxLength": MAX_TYPE_CHARACTERS,
                    "description": "What happened. Words of letters, digits, `_-/:`, separated by dots.",
                },
                "data": {
                    "description": "Any JSON value. It is stored and delivered byte for byte, so large integers, the "
                    "order of members, and the form of numbers don't change. U+0000 is refused."
                },
                "payload": {"description": "Another name for `data`."},
                "dedup_id": {
                    "type": ["string", "null"],
                    "minLength": 1,
                    "maxLength": MAX_DEDUP_ID_CHARACTERS,
                    "description": "Makes a retry safe: within 24 hours, the same id with the same "
                    "content is a duplicate, and with different content a conflict.",
                },
                "ordering_key": {
                    "type": ["string", "null"],
                    "minLength": 1,
                    "maxLength": MAX_DEDUP_ID_CHARACTERS,
                    "description": "Subscriptions that are `ordered` get the events of a key one at a time, in the "
                    "order in which they were accepted.",
                },
                "channels": {
                    "type": ["array", "null"],
                    "maxItems": MAX_CHANNELS,
                    "items": {"type": "string", "pattern": f"^{NAME.pattern}$", "maxLength": MAX_CHARACTERS},
                    "description": "Names by which subscriptions choose, beside the type: a subscription with "
                    "`channels` gets the event if they have one in common.",
                },
            },
            "oneOf": [{"required": ["data"]}, {"required": ["payload"]}],
            "additionalProperties": False,
        }


TRACE = [
    OpenApiParameter(
        name,
        str,
        OpenApiParameter.HEADER,
        description=f"{text} (W3C Trace Context). A value that isn't valid is ignored.",
    )
    for name, text in (
        ("traceparent", "The trace that the events belong to. Each delivery carries it on, with a span id of its own"),
        ("tracestate", "Passed on beside `traceparent`, at most 512 characters of it"),
    )
]

ACCEPTED = OpenApiExample(
    "accepted", {"id": EVENT_ID, "status": "accepted", "message": "Event queued for processing"}, status_codes=["202"]
)
DUPLICATE = OpenApiExample(
    "duplicate", {"id": EVENT_ID, "status": "duplicate", "message": "Event was accepted before"}, status_codes=["200"]
)
BATCH_RECEIPT: Schema = {
    "accepted": 1,
    "data": [
        {"status": "accepted", "id": EVENT_ID},
        {"status": "invalid", "errors": [{"pointer": "/type", "detail": "is required"}]},
    ],
}
NEW_EVENTS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"$ref": "#/components/schemas/NewEventRequest"},
    "description": (
        "At most 1,000 by default. An item that isn't valid gets the status `invalid`; the others are accepted."
    ),
}
NDJSON: Schema = {
    "type": "string",
    "description": "One event per line, each as in the JSON array. Blank lines are skipped.",
}
NDJSON_EXAMPLE = '{"type":"order.created","data":{"order":4711}}\n{"type":"order.paid","data":{"order":4711}}\n'
