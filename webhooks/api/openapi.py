"""What serializers can't tell the OpenAPI schema: pages, custom fields, examples, and the webhook request itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.utils import OpenApiWebhook, extend_schema_serializer

from core.openapi import Schema, page_of
from events.api.descriptions import ACCEPTED_AT, EVENT_ID, EVENT_TYPE
from events.payload import PATTERN
from webhooks.api.delivery_serializers import DeliverySerializer
from webhooks.api.fields import (
    MAX_EVENT_TYPES,
    MAX_HEADER_VALUE,
    MAX_HEADERS,
    MAX_METADATA,
    MAX_METADATA_NAME,
    MAX_METADATA_VALUE,
)
from webhooks.api.header_rules import HEADER_NAME
from webhooks.api.subscription_serializers import SubscriptionSerializer
from webhooks.destinations.outcome import SLOW_DOWN

SUBSCRIPTION_EXAMPLE = {
    "url": "https://example.com/webhooks",
    "event_types": ["order.*"],
    "description": "Orders for the warehouse",
    "headers": {"X-Warehouse": "north"},
}


INBOX_EXAMPLE = {"kind": "inbox", "inbox": "orders", "event_types": ["order.*"]}


class HeadersSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "webhooks.api.fields.HeadersField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        return {
            "type": "object",
            "maxProperties": MAX_HEADERS,
            "propertyNames": {"pattern": f"^{HEADER_NAME.pattern}$"},
            "additionalProperties": {"type": "string", "maxLength": MAX_HEADER_VALUE},
            "description": "Headers sent with each request in addition to ours, which they can't replace. "
            "Their values are encrypted at rest and never shown again.",
        }


class MetadataSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "webhooks.api.fields.MetadataField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        return {
            "type": "object",
            "maxProperties": MAX_METADATA,
            "propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_NAME},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
            "description": "Names and values that you keep with the subscription. A change replaces them as a whole.",
        }


class EventTypesSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "webhooks.api.fields.EventTypesField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        return {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_EVENT_TYPES,
            "items": {"type": "string", "maxLength": 257, "pattern": rf"^(\*|{PATTERN.pattern})$"},
            "description": "An exact type (`order.created`), a prefix (`order.*`) or all types (`*`).",
        }


class OneOrMoreTypesSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "webhooks.api.hooks.OneOrMoreTypesField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        pattern = {"type": "string", "maxLength": 257, "pattern": rf"^(\*|{PATTERN.pattern})$"}
        if self.target.field_name == "event_types":
            return {"type": "array", "minItems": 1, "maxItems": MAX_EVENT_TYPES, "items": pattern,
                    "description": "Several types or prefixes. Without any of the three, all events."}  # fmt: skip
        return {**pattern, "description": "A type (`order.created`), a prefix (`order.*`), or all types (`*`)."}


# The page is an object; without this a viewset's `list` action would be shown as an array of them.
SubscriptionPage = extend_schema_serializer(many=False)(page_of(SubscriptionSerializer, "SubscriptionPage"))
DeliveryPage = extend_schema_serializer(many=False)(page_of(DeliverySerializer, "DeliveryPage"))


def _sent_header(name: str, description: str, example: str) -> Schema:
    return {
        "name": name, "in": "header", "required": True, "description": description,
        "schema": {"type": "string"}, "example": example,
    }  # fmt: skip


_DATA_SCHEMA: Schema = {"description": "The event's data exactly as the producer sent it, byte for byte."}
_VERIFY = (
    "Verify the signature over the raw bytes of the body, before you parse it, and reject a `webhook-timestamp` that "
    "is more than five minutes away from your clock. You may receive an event more than once, always with the same "
    "`webhook-id`, and events may arrive in any order. The subscription's custom headers are sent as well."
)
_STANDARD_HEADERS = [
    _sent_header("webhook-id", "The event's id, the same on every attempt.", "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"),
    _sent_header("webhook-timestamp", "When this attempt was made, in seconds since 1970-01-01 UTC.", "1767225600"),
    _sent_header(
        "webhook-signature",
        "`v1,` and the base64 of HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`, keyed with "
        "the bytes whose base64 follows `whsec_` in the secret. While a secret is being rotated there are "
        "several, separated by spaces; accept the request if any of them matches. A subscription with an ed25519 "
        "secret has `v1a,` and the base64 of a signature that its public key (`whpk_…`) verifies.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
    _sent_header("user-agent", "The sender.", "TriggersAPI/1.0"),
]
_RESPONSES = {
    "2XX": {"description": "Received. Respond at once and do the work later: an attempt times out after 30 s."},
    "3XX": {"description": "A failure: redirects are not followed. The delivery is retried."},
    "410": {"description": "The endpoint is gone: the subscription is disabled, or deleted if it is a hook."},
    **{
        str(status): {"description": "The delivery is retried, no sooner than `Retry-After` says."}
        for status in sorted(SLOW_DOWN)
    },
    "default": {
        "description": "A failure, as is no response at all. By default, the delivery is retried after "
        "5 s, 5 min, 30 min, 2 h, 5 h, 10 h and 10 h."
    },
}
_EVENT_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
_TIME = "2026-01-01T00:00:00.000000Z"
_DATA = {"order": 4711, "total": "19.90"}
_SOURCE = "/organizations/0198f2d0-0000-7000-8000-000000000001"
# Of an event that came as a CloudEvent, these are its producer's.
_CLOUD_EVENT_ID = "The event's id, the same as `webhook-id`; its own `id` if it came as a CloudEvent."
_CLOUD_EVENT_SOURCE = "`/organizations/{organization_id}`; its own `source` if it came as a CloudEvent."
_CLOUD_EVENT_TIME = "When the event was accepted; its own `time` if it came as a CloudEvent that has one."
_CAME_AS_ONE = (
    "An event that came as a CloudEvent keeps its attributes and extensions, and its data may be something else than "
    "JSON."
)


def _webhook(
    name: str,
    form: str,
    description: str,
    media_type: str,
    schema: Schema,
    example: Any,
    headers: Sequence[Schema] = (),
    others: Schema | None = None,
) -> OpenApiWebhook:
    """Return the request that an endpoint receives in one format.

    headers: what the format has beside the others.  others: the schema of bodies of other media types, if it has any.
    """
    content = {media_type: {"schema": schema, "example": example}}
    if others is not None:
        content["*/*"] = {"schema": others}
    suffix = name.removeprefix("event")
    return OpenApiWebhook(
        name=name,
        decorator={
            "post": {
                "security": [],  # your endpoint verifies the signature
                "operationId": f"receiveEvent{suffix}",
                "tags": ["Webhooks"],
                "summary": f"The request that your endpoint receives in the format {form}"
                if suffix
                else "The request that your endpoint receives",
                "description": f"{description} {_VERIFY}",
                "parameters": [*_STANDARD_HEADERS, *headers],
                "requestBody": {"required": others is None, "content": content},
                "responses": _RESPONSES,
            }
        },
    )


# The data alone, of an event that came as a CloudEvent; one without data makes a request without a body.
_OTHER_DATA: Schema = {
    "description": "The data of an event that came as a CloudEvent, with its own `datacontenttype`: text or bytes if "
    "it isn't JSON; no body if it has no data."
}


def _component(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# One for each `format` of a subscription; the settings refer to them by name.
event_webhook = _webhook(
    "event",
    "standard",
    "Follows Standard Webhooks 1.0. A subscription with another `format` gets another body, with the same headers.",
    "application/json",
    _component("WebhookBody"),
    {"id": _EVENT_ID, "type": "order.created", "timestamp": _TIME, "data": _DATA},
)
cloud_event_webhook = _webhook(
    "eventAsCloudEvent",
    "cloudevents",
    f"CloudEvents 1.0 in structured mode. {_CAME_AS_ONE}",
    "application/cloudevents+json",
    _component("CloudEventBody"),
    {
        "specversion": "1.0",
        "id": _EVENT_ID,
        "source": _SOURCE,
        "type": "order.created",
        "time": _TIME,
        "datacontenttype": "application/json",
        "data": _DATA,
    },
)
binary_cloud_event_webhook = _webhook(
    "eventAsBinaryCloudEvent",
    "cloudevents-binary",
    f"CloudEvents 1.0 in binary mode: the attributes are headers. {_CAME_AS_ONE}",
    "application/json",
    _DATA_SCHEMA,
    _DATA,
    [
        _sent_header("ce-specversion", "The version of CloudEvents.", "1.0"),
        _sent_header("ce-id", f"{_CLOUD_EVENT_ID} Percent-encoded as the HTTP binding asks.", _EVENT_ID),
        _sent_header("ce-source", f"{_CLOUD_EVENT_SOURCE} Percent-encoded as the HTTP binding asks.", _SOURCE),
        _sent_header("ce-type", "The event's type, percent-encoded as the HTTP binding asks.", "order.created"),
        _sent_header("ce-time", _CLOUD_EVENT_TIME, _TIME),
    ],
    _OTHER_DATA,
)
legacy_webhook = _webhook(
    "eventAsLegacy",
    "legacy",
    "The shape of receivers that were written for it.",
    "application/json",
    _component("LegacyBody"),
    {"event_id": _EVENT_ID, "event_type": "order.created", "payload": _DATA, "created_at": _TIME},
)
raw_webhook = _webhook(
    "eventAsData", "raw", "The event's data alone.", "application/json", _DATA_SCHEMA, _DATA, others=_OTHER_DATA
)
transformed_webhook = _webhook(
    "eventAsTransformed",
    "transform",
    "What the subscription's `transform` makes of the standard body.",
    "application/json",
    {"description": "Any JSON value but null."},
    {"text": "order.created 4711"},
)

_WEBHOOK_BODY: Schema = {
    "type": "object",
    "required": ["id", "type", "timestamp", "data"],
    "properties": {
        "id": {"type": "string", "format": "uuid", "description": EVENT_ID},
        "type": {"type": "string", "description": EVENT_TYPE},
        "timestamp": {"type": "string", "format": "date-time", "description": ACCEPTED_AT},
        "data": _DATA_SCHEMA,
    },
    "additionalProperties": False,
}
_CLOUD_EVENT_BODY: Schema = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "time"],
    "properties": {
        "specversion": {"const": "1.0", "description": "The version of CloudEvents."},
        "id": {"type": "string", "description": _CLOUD_EVENT_ID},
        "source": {"type": "string", "format": "uri-reference", "description": _CLOUD_EVENT_SOURCE},
        "type": {"type": "string", "description": EVENT_TYPE},
        "time": {"type": "string", "format": "date-time", "description": _CLOUD_EVENT_TIME},
        "datacontenttype": {
            "type": "string",
            "description": "The media type of the data: `application/json`; its own, or absent, if the event came as a "
            "CloudEvent.",
        },
        "data": _DATA_SCHEMA,
        "data_base64": {
            "type": "string",
            "contentEncoding": "base64",
            "description": "In place of `data`, if the event came as a CloudEvent with binary data.",
        },
    },
    "additionalProperties": True,  # further attributes, and extensions
}
_LEGACY_BODY: Schema = {
    "type": "object",
    "required": ["event_id", "event_type", "payload", "created_at"],
    "properties": {
        "event_id": {"type": "string", "format": "uuid", "description": EVENT_ID},
        "event_type": {"type": "string", "description": EVENT_TYPE},
        "payload": _DATA_SCHEMA,
        "created_at": {"type": "string", "format": "date-time", "description": ACCEPTED_AT},
    },
    "additionalProperties": False,
}


def add_webhook_body(result: Schema, **_: Any) -> Schema:
    """drf-spectacular's hook: add the components that the webhooks refer to."""
    bodies = {"WebhookBody": _WEBHOOK_BODY, "CloudEventBody": _CLOUD_EVENT_BODY, "LegacyBody": _LEGACY_BODY}
    result["components"]["schemas"].update(bodies)
    return result
