"""What the endpoints for deliveries and attempts return.

The OpenAPI schema shows these serializers and the views render with them, so each shape has one definition.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from core.openapi.descriptions import CREATED_AT
from core.row_rendering import row_renderer
from events.api import descriptions as of_events
from webhooks.api import descriptions
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
    cause = serializers.ChoiceField(
        choices=Cause.values,
        help_text="Why it was made. `schedule`: by the retry schedule. `manual`: somebody retried the delivery. "
        "`replay`: the delivery was queued again, with a fresh set of attempts.",
    )
    started_at = serializers.DateTimeField(help_text="When it began; for `worker_lost`, when that was noticed.")
    duration_ms = MillisecondsField(help_text=descriptions.DURATION_MS)
    status_code = serializers.IntegerField(allow_null=True, help_text=descriptions.STATUS_CODE)
    error = FailureField(help_text=descriptions.ERROR)
    error_detail = serializers.CharField(help_text=descriptions.ERROR_DETAIL)
    response_body = serializers.CharField(help_text=descriptions.RESPONSE_BODY)


class HeaderSerializer(serializers.Serializer[Any]):
    """One header."""

    name = serializers.CharField(help_text="Its name; empty for a line of a response that isn't a header.")
    value = serializers.CharField(
        help_text="Its value; `***` for a signature, for credentials, for a custom header of the subscription, and, if "
        "the key lacks the scope `events:read`, for what a CloudEvent's header says of the event."
    )


class RequestSerializer(serializers.Serializer[Any]):
    """The request of an attempt."""

    method = serializers.CharField(help_text=descriptions.METHOD)
    url = serializers.CharField(
        help_text="The URL that it was sent to, with `***` in place of what looks like a secret in its query."
    )
    http_version = serializers.CharField(help_text="The version of HTTP, `1.1`.")
    headers = HeaderSerializer(many=True, help_text=descriptions.REQUEST_HEADERS)
    format = serializers.ChoiceField(choices=list(FORMATS), help_text="The subscription's `format` at that time.")
    body = serializers.CharField(
        allow_null=True,
        help_text="The body as it was sent. Null if the key lacks the scope `events:read`, or if the body can't be "
        "made again.",
    )
    body_bytes = serializers.IntegerField(help_text=descriptions.BODY_BYTES)


class ResponseSerializer(serializers.Serializer[Any]):
    """The response to an attempt; its body is the attempt's `response_body`."""

    status_line = serializers.CharField(help_text="Its first line, such as `HTTP/1.1 200 OK`.")
    headers = HeaderSerializer(many=True, help_text="Its headers, in the order in which they came.")
    headers_truncated = serializers.BooleanField(
        help_text="Whether there were more: only the first 8 KiB of the status line and the headers are kept."
    )


class ConnectionSerializer(serializers.Serializer[Any]):
    """The connection that an attempt used."""

    remote_address = serializers.CharField(
        allow_null=True, help_text="IP address and port; null if there was no connection, or a proxy."
    )
    via_proxy = serializers.BooleanField(
        help_text="Whether the operator's proxy made it; then `dns_ms` and `connect_ms` are those of the proxy."
    )
    reused = serializers.BooleanField(help_text="Whether it had carried a request before.")
    resent = serializers.BooleanField(
        help_text="Whether a reused connection ended without a response, so that the request was sent on a new one."
    )


class TimingsSerializer(serializers.Serializer[Any]):
    """How long the parts of an attempt took; null for one that there was not."""

    dns_ms = serializers.FloatField(allow_null=True, help_text="Looking up the host, in milliseconds.")
    connect_ms = serializers.FloatField(allow_null=True, help_text="Opening the connection, in milliseconds.")
    tls_ms = serializers.FloatField(allow_null=True, help_text="The TLS handshake, in milliseconds.")
    first_byte_ms = serializers.FloatField(
        allow_null=True,
        help_text="From sending the request to the first byte of the response, in milliseconds.",
    )


class ExchangeSerializer(serializers.Serializer[Any]):
    """What an attempt sent and received."""

    request = RequestSerializer()
    response = ResponseSerializer(allow_null=True, help_text="Null if there was none.")
    connection = ConnectionSerializer()
    timings = TimingsSerializer()


class AttemptWithExchangeSerializer(AttemptSerializer):
    """One attempt with what it sent and received."""

    delivery_id = serializers.UUIDField(help_text=of_events.DELIVERY_ID)
    event_id = serializers.UUIDField(help_text=of_events.DELIVERED_EVENT)
    exchange = ExchangeSerializer(
        allow_null=True,
        help_text="Null if it wasn't kept: the organization doesn't want it, or no request was made.",
    )


class DeliverySerializer(serializers.Serializer[Delivery]):
    """A delivery: one event for one subscription."""

    id = serializers.UUIDField(help_text=of_events.DELIVERY_ID)
    event_id = serializers.UUIDField(help_text=of_events.DELIVERED_EVENT)
    subscription_id = serializers.UUIDField(help_text=of_events.SUBSCRIPTION_ID)
    status = DeliveryStateField(help_text=of_events.DELIVERY_STATUS)
    attempt_count = serializers.IntegerField(help_text=of_events.ATTEMPT_COUNT)
    next_attempt_at = NextAttemptField(help_text=of_events.NEXT_ATTEMPT_AT)
    ordering_key = serializers.CharField(allow_null=True, help_text="The event's, if the subscription is `ordered`.")
    last_status_code = serializers.IntegerField(
        allow_null=True, help_text="The status of the response to the last attempt; null if there was none."
    )
    last_error = FailureField(
        help_text="Error class of the last attempt; null if there was none, or if it succeeded. Also why the delivery "
        "was cancelled (`held_too_long`, `not_fetched`, `payload_erased`), or `given_back` for one that was given back "
        "to its inbox."
    )
    completed_at = serializers.DateTimeField(allow_null=True, help_text=of_events.COMPLETED_AT)
    created_at = serializers.DateTimeField(help_text=CREATED_AT)


class DeliveryWithAttemptsSerializer(DeliverySerializer):
    """A delivery with its attempts, the oldest first, at most 1,000 of them."""

    waits_for = serializers.UUIDField(
        allow_null=True,
        help_text="The delivery of the same ordering key that has to be over before this one is sent: it is on its "
        "way, waits, is held, or is `failed` and `ordered_on_failure` is `block`. Null for one that waits for none.",
    )
    attempts = AttemptSerializer(many=True, help_text="Its attempts, the oldest first; at most 1,000.")


render_delivery = row_renderer(DeliverySerializer())
render_attempt = row_renderer(AttemptSerializer())
