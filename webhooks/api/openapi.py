"""What only the OpenAPI schema needs: pages, custom fields, and the request that a receiver gets."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.utils import OpenApiWebhook
from rest_framework import serializers

from core.openapi import Schema, page_of
from webhooks.api.serializers import (
    HEADER_NAME,
    MAX_EVENT_TYPES,
    MAX_HEADER_VALUE,
    MAX_HEADERS,
    SubscriptionOut,
)
from webhooks.destinations.outcome import Failure
from webhooks.models import BulkRun, Cause, DeliveryStatus
from webhooks.routing.matching import PATTERN

SUBSCRIPTION_EXAMPLE = {
    "url": "https://example.com/webhooks",
    "event_types": ["order.*"],
    "description": "Orders for the warehouse",
    "headers": {"X-Warehouse": "north"},
}


class HeadersSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    """Custom headers."""

    target_class = "webhooks.api.serializers.HeadersField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        """Return the JSON schema of the field."""
        return {
            "type": "object",
            "maxProperties": MAX_HEADERS,
            "propertyNames": {"pattern": f"^{HEADER_NAME.pattern}$"},
            "additionalProperties": {"type": "string", "maxLength": MAX_HEADER_VALUE},
            "description": "Headers that each request bears on top of ours, which they can't replace. "
            "The values are encrypted at rest and never shown again.",
        }


class EventTypesSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    """Event type patterns."""

    target_class = "webhooks.api.serializers.EventTypesField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Schema:
        """Return the JSON schema of the field."""
        return {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_EVENT_TYPES,
            "items": {"type": "string", "maxLength": 257, "pattern": rf"^(\*|{PATTERN.pattern})$"},
            "description": "Exact (`order.created`), by prefix (`order.*`) or all (`*`).",
        }


class Subscription(SubscriptionOut):
    """A subscription; its secret and the values of its headers are never shown again."""

    status = serializers.ChoiceField(choices=["active", "disabled"])  # type: ignore[assignment]


class NewSubscription(Subscription):
    """A subscription as it is shown once, at its creation."""

    secret = serializers.CharField(help_text="`whsec_…`: keys the signature of each request. Shown once.")


class RotatedSubscription(NewSubscription):
    """A subscription with its new secret."""

    previous_secret_expires_at = serializers.DateTimeField(
        allow_null=True, help_text="Until then the old secret signs too; null when it ended at once."
    )


_FAILURES = [failure.value for failure in Failure]


class Attempt(serializers.Serializer[Any]):
    """One try."""

    number = serializers.IntegerField(help_text="1 is the first.")
    cause = serializers.ChoiceField(choices=Cause.values)
    started_at = serializers.DateTimeField()
    duration_ms = serializers.FloatField()
    status_code = serializers.IntegerField(allow_null=True, help_text="The receiver's; null when none came.")
    error = serializers.ChoiceField(choices=_FAILURES, allow_null=True, help_text="Error class; null for a success.")
    error_detail = serializers.CharField()
    response_body = serializers.CharField(help_text="The start of the receiver's answer.")


class Delivery(serializers.Serializer[Any]):
    """A delivery: one event for one subscription."""

    id = serializers.UUIDField()
    event_id = serializers.UUIDField()
    subscription_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=DeliveryStatus.values)
    attempt_count = serializers.IntegerField()
    next_attempt_at = serializers.DateTimeField(allow_null=True)
    last_status_code = serializers.IntegerField(allow_null=True)
    last_error = serializers.ChoiceField(choices=_FAILURES, allow_null=True)
    completed_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()


class DeliveryWithAttempts(Delivery):
    """A delivery with every try, the oldest first, at most 1,000 of them."""

    attempts = Attempt(many=True)


class Recovery(serializers.Serializer[Any]):
    """Where a recovery stands."""

    id = serializers.UUIDField()
    kind = serializers.ChoiceField(choices=[BulkRun.Kind.RECOVER.value])
    status = serializers.ChoiceField(choices=BulkRun.State.values)
    queued = serializers.IntegerField(help_text="Deliveries queued so far.")
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


SubscriptionPage = page_of(Subscription, "SubscriptionPage")
DeliveryPage = page_of(Delivery, "DeliveryPage")


def _sent_header(name: str, description: str, example: str) -> Schema:
    return {
        "name": name, "in": "header", "required": True, "description": description,
        "schema": {"type": "string"}, "example": example,
    }  # fmt: skip


event_webhook = OpenApiWebhook(
    name="event",
    decorator={
        "post": {
            "operationId": "receiveEvent",
            "tags": ["Webhooks"],
            "summary": "The request that your endpoint gets",
            "description": (
                "Standard Webhooks 1.0. Verify the signature over the bytes of the body as they came, before "
                "you parse them, and refuse a `webhook-timestamp` more than five minutes away from your clock. "
                "The same event may come more than once: its `webhook-id` is the same each time. "
                "Events may come in any order. The headers of the subscription are sent too."
            ),
            "parameters": [
                _sent_header(
                    "webhook-id", "The event's id, the same at every retry.", "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
                ),
                _sent_header("webhook-timestamp", "When this try was made, in seconds since 1970.", "1767225600"),
                _sent_header(
                    "webhook-signature",
                    "`v1,` and the base64 of HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`, keyed with "
                    "the bytes whose base64 follows `whsec_` in the secret; several with spaces between them while "
                    "a secret is being rotated, of which one has to fit.",
                    "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
                ),
                _sent_header("user-agent", "Who sends.", "TriggersAPI/1.0"),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/WebhookBody"},
                        "example": {
                            "id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91",
                            "type": "order.created",
                            "timestamp": "2026-01-01T00:00:00.000000Z",
                            "data": {"order": 4711, "total": "19.90"},
                        },
                    }
                },
            },
            "responses": {
                "2XX": {"description": "Received. Answer at once and work later: a try ends after 30 s in all."},
                "3XX": {"description": "A failure; redirects are not followed. Tried again later."},
                "410": {"description": "Gone for good: the subscription is disabled."},
                "429": {"description": "Tried again later, not before `Retry-After`."},
                "503": {"description": "Tried again later, not before `Retry-After`."},
                "default": {
                    "description": "A failure, as is no answer: tried again after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h "
                    "and 10 h by default."
                },
            },
        }
    },
)

_WEBHOOK_BODY: Schema = {
    "type": "object",
    "required": ["id", "type", "timestamp", "data"],
    "properties": {
        "id": {"type": "string", "format": "uuid", "description": "The event's id."},
        "type": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time", "description": "When the event was accepted."},
        "data": {"description": "As the producer sent it, byte for byte."},
    },
    "additionalProperties": False,
}


def add_webhook_body(result: Schema, **_: Any) -> Schema:
    """drf-spectacular's hook: add the component that the webhook refers to."""
    result["components"]["schemas"]["WebhookBody"] = _WEBHOOK_BODY
    return result
