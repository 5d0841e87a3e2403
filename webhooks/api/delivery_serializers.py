"""What the endpoints for deliveries and attempts return.

The OpenAPI schema shows these serializers and the views render with them, so each shape has one definition.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from core.row_rendering import row_renderer
from webhooks.api.fields import (
    DeliveryStateField,
    FailureField,
    MillisecondsField,
    NextAttemptField,
)
from webhooks.models import (
    FORMATS,
    Cause,
    Delivery,
    DeliveryAttempt,
)


class AttemptSerializer(serializers.Serializer[DeliveryAttempt]):
    """One attempt of a delivery."""

    number = serializers.IntegerField(help_text="1 is the first.")
    cause = serializers.ChoiceField(choices=Cause.values)
    started_at = serializers.DateTimeField()
    duration_ms = MillisecondsField()
    status_code = serializers.IntegerField(
        allow_null=True, help_text="The status of the endpoint's response; null if there was none."
    )
    error = FailureField(help_text="Error class; null for a success.")
    error_detail = serializers.CharField()
    response_body = serializers.CharField(help_text="The beginning of the response's body.")


class HeaderSerializer(serializers.Serializer[Any]):
    """One header."""

    name = serializers.CharField()
    value = serializers.CharField(help_text="`***` for a signature or a custom header of the subscription.")


class RequestSerializer(serializers.Serializer[Any]):
    """The request of an attempt."""

    method = serializers.CharField()
    url = serializers.CharField()
    http_version = serializers.CharField()
    headers = HeaderSerializer(many=True)
    format = serializers.ChoiceField(choices=list(FORMATS), help_text="The subscription's `format` at that time.")
    body = serializers.CharField(
        allow_null=True,
        help_text="The body as it was sent. Null if the key lacks the scope `events:read`, or if the body can't be "
        "made again.",
    )
    body_bytes = serializers.IntegerField(help_text="Its length.")


class ResponseSerializer(serializers.Serializer[Any]):
    """The response to an attempt; its body is the attempt's `response_body`."""

    status_line = serializers.CharField()
    headers = HeaderSerializer(many=True)
    headers_truncated = serializers.BooleanField(help_text="Only the first 8 KiB are kept.")


class ConnectionSerializer(serializers.Serializer[Any]):
    """The connection that an attempt used."""

    remote_address = serializers.CharField(
        allow_null=True, help_text="IP address and port; null if there was no connection, or a proxy."
    )
    via_proxy = serializers.BooleanField()
    reused = serializers.BooleanField(help_text="Whether it had carried a request before.")
    resent = serializers.BooleanField(
        help_text="Whether a reused connection ended without a response, so that the request was sent on a new one."
    )


class TimingsSerializer(serializers.Serializer[Any]):
    """How long the parts of an attempt took; null for one that there was not."""

    dns_ms = serializers.FloatField(allow_null=True)
    connect_ms = serializers.FloatField(allow_null=True)
    tls_ms = serializers.FloatField(allow_null=True)
    first_byte_ms = serializers.FloatField(allow_null=True, help_text="From sending the request.")


class ExchangeSerializer(serializers.Serializer[Any]):
    """What an attempt sent and received."""

    request = RequestSerializer()
    response = ResponseSerializer(allow_null=True)
    connection = ConnectionSerializer()
    timings = TimingsSerializer()


class AttemptWithExchangeSerializer(AttemptSerializer):
    """One attempt with what it sent and received."""

    delivery_id = serializers.UUIDField()
    event_id = serializers.UUIDField()
    exchange = ExchangeSerializer(
        allow_null=True,
        help_text="Null if it wasn't kept: the organization doesn't want it, or no request was made.",
    )


class DeliverySerializer(serializers.Serializer[Delivery]):
    """A delivery: one event for one subscription."""

    id = serializers.UUIDField()
    event_id = serializers.UUIDField()
    subscription_id = serializers.UUIDField()
    status = DeliveryStateField(
        help_text="`pending` waits for its first attempt, `retrying` failed and waits for another one. In an inbox, "
        "`pending` can be fetched, `delivering` is with a consumer that has fetched it, and `retrying` was given back."
    )
    attempt_count = serializers.IntegerField()
    next_attempt_at = NextAttemptField(
        help_text="When the next attempt is due; null if none is planned, or if it waits for an earlier delivery of "
        "its ordering key. Of an inbox: when it can be fetched; while it is `delivering`, that is the end of the lease."
    )
    ordering_key = serializers.CharField(allow_null=True, help_text="The event's, if the subscription is `ordered`.")
    last_status_code = serializers.IntegerField(allow_null=True)
    last_error = FailureField()
    completed_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()


class DeliveryWithAttemptsSerializer(DeliverySerializer):
    """A delivery with its attempts, the oldest first, at most 1,000 of them."""

    waits_for = serializers.UUIDField(
        allow_null=True,
        help_text="The delivery of the same ordering key that has to be over before this one is sent: it is on its "
        "way, waits, is held, or is `failed` and `ordered_on_failure` is `block`. Null for one that waits for none.",
    )
    attempts = AttemptSerializer(many=True)


render_delivery = row_renderer(DeliverySerializer())
render_attempt = row_renderer(AttemptSerializer())
