"""Shapes of the subscriptions' and deliveries' endpoints."""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from rest_framework import serializers

from core.serializers import (
    StrictCharField,
    StrictFloatField,
    StrictIntegerField,
    StrictSerializer,
    validate_plain_text,
)
from webhooks.destinations.http.addresses import UrlError, check_url, normalize_url
from webhooks.models import BulkRun, Subscription
from webhooks.routing.matching import pattern_error

MAX_EVENT_TYPES = 100
MAX_HEADERS = 20
MAX_HEADER_VALUE = 2048
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110 §5.1: token
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?|")  # RFC 9110 §5.5, ASCII only
_OURS = {
    "host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive",
    "te", "trailer", "upgrade", "expect", "user-agent", "cookie", "proxy-authorization", "proxy-connection",
}  # fmt: skip


class HeadersField(serializers.Field[dict[str, str], Any, dict[str, str], Any]):
    """Custom headers of a subscription: names and values that fit into HTTP and don't replace ours."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object of header names and values")
        if len(data) > MAX_HEADERS:
            raise serializers.ValidationError(f"must hold at most {MAX_HEADERS} headers")
        errors: dict[str, list[str]] = {}
        for name, value in data.items():
            if not HEADER_NAME.fullmatch(name):
                errors[name] = ["is not a header name"]
            elif name.lower() in _OURS or name.lower().startswith("webhook-"):
                errors[name] = ["is set by the system and can't be replaced"]
            elif not isinstance(value, str) or len(value) > MAX_HEADER_VALUE or not _HEADER_VALUE.fullmatch(value):
                errors[name] = [f"must be printable ASCII text of at most {MAX_HEADER_VALUE} characters"]
        if len({name.lower() for name in data}) < len(data):
            raise serializers.ValidationError("names a header twice")
        if errors:
            raise serializers.ValidationError(errors)
        return dict(data)

    def to_representation(self, value: Any) -> dict[str, str]:
        return dict(value)


class EventTypesField(serializers.Field[list[str], Any, list[str], Any]):
    """Event type patterns: exact (`order.created`), by prefix (`order.*`) or all (`*`)."""

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list):
            raise serializers.ValidationError("must be an array of event types")
        if not 1 <= len(data) <= MAX_EVENT_TYPES:
            raise serializers.ValidationError(f"must hold 1 to {MAX_EVENT_TYPES} event types")
        errors = {str(position): [reason] for position, item in enumerate(data) if (reason := pattern_error(item))}
        if errors:
            raise serializers.ValidationError(errors)
        return list(dict.fromkeys(data))

    def to_representation(self, value: Any) -> list[str]:
        return list(value)


class UrlField(StrictCharField):
    """A webhook URL that the policy lets through as far as its text tells."""

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        try:
            url = normalize_url(text)
            check_url(url, settings.WEBHOOK_ALLOWED_SUBNETS, settings.WEBHOOK_ALLOWED_PORTS)
        except UrlError as error:
            raise serializers.ValidationError(str(error)) from None
        return url


class SubscriptionChange(StrictSerializer):
    """What `PATCH /api/subscriptions/{id}` takes."""

    url = UrlField(
        max_length=2048,
        trim_whitespace=False,
        help_text=(
            "Where webhooks are sent: an absolute `http` or `https` URL. Whitespace around it is removed, an "
            "internationalized host name is converted to its ASCII form (`https://bücher.example` to "
            "`https://xn--bcher-kva.example`), and other non-ASCII characters are percent-encoded. The response shows "
            "the stored URL, and its path and query are what requests use, byte for byte."
        ),
    )
    event_types = EventTypesField()
    description = StrictCharField(max_length=500, required=False, allow_blank=True, validators=[validate_plain_text])
    headers = HeadersField(required=False)
    max_in_flight = StrictIntegerField(min_value=1, max_value=10_000, required=False, allow_null=True)
    deliveries_per_second = StrictFloatField(min_value=0.01, max_value=100_000, required=False, allow_null=True)


class SubscriptionCreate(SubscriptionChange):
    """What `POST /api/subscriptions` takes."""


class SubscriptionOut(serializers.Serializer[Subscription]):
    """A subscription; its secret and the values of its headers are never shown again."""

    id = serializers.UUIDField()
    url = serializers.CharField()
    event_types = serializers.ListField(child=serializers.CharField())
    description = serializers.CharField()
    header_names = serializers.ListField(child=serializers.CharField())
    status = serializers.SerializerMethodField()
    disabled_reason = serializers.CharField()
    disabled_at = serializers.DateTimeField(allow_null=True)
    max_in_flight = serializers.IntegerField(allow_null=True)
    deliveries_per_second = serializers.FloatField(allow_null=True)
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()

    def get_status(self, subscription: Subscription) -> str:
        """Return `active` or `disabled`."""
        return "active" if subscription.is_active else "disabled"


class SecretRotate(StrictSerializer):
    """What `POST /api/subscriptions/{id}/rotate-secret` takes."""

    overlap_seconds = StrictIntegerField(min_value=0, max_value=30 * 86400, required=False, default=86400)


class Recover(StrictSerializer):
    """What `POST /api/subscriptions/{id}/recover` takes."""

    since = serializers.DateTimeField(help_text="Events made at this time or later are queued.")


class BulkRunOut(serializers.Serializer[BulkRun]):
    """Where a recovery stands."""

    id = serializers.UUIDField()
    kind = serializers.CharField()
    status = serializers.CharField(source="state")
    queued = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
