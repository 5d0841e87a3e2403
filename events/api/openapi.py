"""What serializers can't express in the OpenAPI schema: the shape of a new event, and examples."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.utils import OpenApiExample, OpenApiParameter

from core.openapi import Schema
from events.channels import MAX_CHANNELS, MAX_CHARACTERS, NAME
from events.payload import EVENT_TYPE, MAX_DEDUP_ID_CHARACTERS, MAX_TYPE_CHARACTERS

EVENT_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
ORDER: Schema = {"type": "order.created", "data": {"order": 4711, "total": "19.90"}, "dedup_id": "order-4711-created"}
PAYMENT: Schema = {"type": "order.paid", "data": {"order": 4711}}


class NewEventSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """`data` may be any JSON value, which serializer fields can't express."""

    target_class = "events.api.serializers.NewEvent"

    def get_name(self, auto_schema: Any, direction: Any) -> str:
        return "NewEvent"

    def map_serializer(self, auto_schema: Any, direction: Any) -> Schema:
        """Return the JSON schema of a new event, member by member, with the limits of `events.payload`."""
        return {
            "type": "object",
            "description": "`payload` is taken as another name for `data`.",
            "required": ["type", "data"],
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
                    "description": "Names that subscriptions can select in addition to the type: a subscription with "
                    "`channels` gets the event if they have one in common.",
                },
            },
            "additionalProperties": False,
        }


_TEXT: Schema = {"type": "string", "minLength": 1}
CLOUDEVENT_SCHEMA: Schema = {
    "type": "object",
    "description": "A CloudEvent 1.0 in the JSON format. `source` and `id` are the dedup id. At most one of `data` and "
    "`data_base64` is given.",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0", "description": "The version of CloudEvents."},
        "id": {**_TEXT, "description": "Unique for the `source`."},
        "source": {**_TEXT, "format": "uri-reference", "description": "Where it happened."},
        "type": {
            "type": "string",
            "pattern": f"^{EVENT_TYPE.pattern}$",
            "minLength": 1,
            "maxLength": MAX_TYPE_CHARACTERS,
            "description": "The event's type.",
        },
        "subject": {**_TEXT, "description": "What it happened to, within the `source`."},
        "time": {"type": "string", "format": "date-time", "description": "When it happened."},
        "datacontenttype": {**_TEXT, "description": "`application/json` if it isn't given."},
        "dataschema": {**_TEXT, "format": "uri", "description": "The schema of `data`."},
        "data": {"description": "Any JSON value, stored and delivered byte for byte."},
        "data_base64": {"type": "string", "contentEncoding": "base64", "description": "Data that isn't JSON."},
    },
    "patternProperties": {"^[a-z0-9]+$": {"description": "An extension: a string, a boolean, or an integer."}},
    "additionalProperties": False,
}
CLOUDEVENT: Schema = {
    "specversion": "1.0",
    "id": "order-4711-created",
    "source": "/shop",
    "type": "order.created",
    "time": "2026-01-31T12:00:00Z",
    "data": {"order": 4711, "total": "19.90"},
}
CLOUDEVENTS_SCHEMA: Schema = {
    "type": "array",
    "description": "Any number of CloudEvents within the limits of a batch.",
    "items": CLOUDEVENT_SCHEMA,
}
BINARY_MODE = [
    OpenApiParameter(
        name,
        str,
        OpenApiParameter.HEADER,
        description=f"{text} If any of `ce-specversion`, `ce-id`, `ce-source`, and `ce-type` is given, the request is "
        "a CloudEvent in binary mode: the body is the data, and `Content-Type` is its type.",
    )
    for name, text in (
        ("ce-specversion", "`1.0`."),
        ("ce-id", "The CloudEvent's `id`, percent-encoded."),
        ("ce-source", "The CloudEvent's `source`, percent-encoded."),
        ("ce-type", "The event's type."),
    )
]

TRACE = [
    OpenApiParameter(
        name,
        str,
        OpenApiParameter.HEADER,
        description=f"{text} (W3C Trace Context). A value that isn't valid is ignored.",
    )
    for name, text in (
        ("traceparent", "The trace that the events belong to. Each delivery carries it on, with its own span id"),
        ("tracestate", "Passed on with `traceparent`, at most 512 characters of it"),
    )
]

ACCEPTED = OpenApiExample(
    "accepted", {"id": EVENT_ID, "status": "accepted", "message": "Event queued for processing"}, status_codes=["202"]
)
DUPLICATE = OpenApiExample(
    "duplicate", {"id": EVENT_ID, "status": "duplicate", "message": "Event was accepted before"}, status_codes=["200"]
)
VALID = OpenApiExample(
    "valid", {"id": None, "status": "valid", "message": "Event is valid; nothing was stored"}, status_codes=["200"]
)
VALIDATE_ONLY = OpenApiParameter(
    "validate_only",
    bool,
    description="`true`: check the body, the limits of its size, and the event types as for a real request, and store "
    "nothing. Duplicates aren't looked up, and the rate limit doesn't count it.",
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
