"""The fields of requests and responses about subscriptions and deliveries, and what they accept."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from core.query import ParameterError
from core.serializers import StrictCharField, validate_plain_text
from events.channels import MAX_CHANNELS, channels_error
from events.payload import pattern_error
from webhooks.api.descriptions import DESCRIPTION
from webhooks.api.header_rules import HEADER_VALUE, name_error
from webhooks.destinations.http.egress_policy import UrlError, check_url, normalize_url
from webhooks.destinations.outcome import Failure
from webhooks.destinations.transform import TransformError, check_expression
from webhooks.inboxes import NAME as INBOX_NAME
from webhooks.inboxes import NAME_RULE as INBOX_NAME_RULE
from webhooks.models import (
    DestinationKind,
)
from webhooks.routing.filters import FilterError, check_filter
from webhooks.states import DeliveryState, next_attempt_at, state_of

MAX_EVENT_TYPES = 100
MAX_METADATA = 50
MAX_METADATA_NAME = 100
MAX_METADATA_VALUE = 500
MAX_HEADERS = 20
MAX_HEADER_VALUE = 2048


class HeadersField(serializers.Field[dict[str, str], Any, dict[str, str], Any]):
    """The custom headers of a subscription: valid HTTP names and values, none of them one that we set ourselves."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object of header names and values")
        if len(data) > MAX_HEADERS:
            raise serializers.ValidationError(f"must hold at most {MAX_HEADERS} headers")
        errors: dict[str, list[str]] = {}
        for name, value in data.items():
            if reason := name_error(name):
                errors[name] = [reason]
            elif not isinstance(value, str) or len(value) > MAX_HEADER_VALUE or not HEADER_VALUE.fullmatch(value):
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


class ChannelsField(serializers.ListField):
    """Names of channels."""

    def __init__(self, **options: Any) -> None:
        super().__init__(child=serializers.CharField(max_length=128), max_length=MAX_CHANNELS, **options)

    def to_internal_value(self, data: Any) -> list[str]:
        if (wrong := channels_error(data)) is not None:
            position, reason = wrong
            raise serializers.ValidationError([reason] if position is None else {str(position): [reason]})
        return list(dict.fromkeys(data))


class DescriptionField(StrictCharField):
    """What a subscription is for, which may be left out."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            max_length=500,
            required=False,
            allow_blank=True,
            validators=[validate_plain_text],
            help_text=DESCRIPTION,
            **more,
        )


class ExpressionField(StrictCharField):
    """A JMESPath expression, or nothing."""

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if text:
            try:
                check_expression(text)
            except TransformError as error:
                raise serializers.ValidationError(str(error)) from None
        return text


@extend_schema_field(OpenApiTypes.OBJECT)
class FilterField(serializers.JSONField):
    """The conditions of a payload filter; an empty object is none."""

    def to_internal_value(self, data: Any) -> Any:
        try:
            check_filter(data)
        except FilterError as error:
            detail: Any = [error.reason]
            for name in reversed(error.path):
                detail = {name: detail}
            raise serializers.ValidationError(detail) from None
        return data or None


class UrlField(StrictCharField):
    """A webhook URL.  Its scheme, port and literal addresses are checked here; what its host resolves to, later."""

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        try:
            url = normalize_url(text)
            check_url(url, settings.WEBHOOK_ALLOWED_SUBNETS, settings.WEBHOOK_ALLOWED_PORTS)
        except UrlError as error:
            raise serializers.ValidationError(str(error)) from None
        return url


def url_parameter(raw: str) -> str:
    """Return a URL in a query parameter as it is stored."""
    try:
        url = normalize_url(raw)
    except UrlError as error:
        raise ParameterError(str(error)) from None
    if "\x00" in url:
        raise ParameterError("is not a URL")
    return url


class MetadataField(serializers.Field[dict[str, str], Any, dict[str, str], Any]):
    """Names and values whose meaning is the tenant's."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object of names and texts")
        if len(data) > MAX_METADATA:
            raise serializers.ValidationError(f"must hold at most {MAX_METADATA} names")
        errors: dict[str, list[str]] = {}
        for name, value in data.items():
            if not 1 <= len(name) <= MAX_METADATA_NAME:
                errors[name] = [f"is a name that doesn't have 1 to {MAX_METADATA_NAME} characters"]
            elif not isinstance(value, str) or len(value) > MAX_METADATA_VALUE:
                errors[name] = [f"must be a text of at most {MAX_METADATA_VALUE} characters"]
        if errors:
            raise serializers.ValidationError(errors)
        return dict(data)

    def to_representation(self, value: Any) -> dict[str, str]:
        return dict(value)


def validate_inbox_name(value: str) -> None:
    """Reject what isn't a name of an inbox.  Raises ValidationError."""
    if not INBOX_NAME.fullmatch(value):
        raise serializers.ValidationError(INBOX_NAME_RULE)


class ChoiceOrNullField(serializers.ChoiceField):
    """One of several words, for which the database keeps an empty text for none; shown as null."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_null=True, **options)

    def to_representation(self, value: Any) -> Any:
        return value or None


class FailureField(ChoiceOrNullField):
    """An error class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=[failure.value for failure in Failure], **options)


class TextOrNullField(serializers.CharField):
    """A text that the database keeps empty for none; shown as null."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_null=True, **options)

    def to_representation(self, value: Any) -> Any:
        return value or None


class EndpointUrlField(serializers.CharField):
    """An endpoint's URL; that of an inbox is only for people, and shown as null."""

    def __init__(self, **options: Any) -> None:
        super().__init__(source="*", allow_null=True, **options)

    def to_representation(self, value: Any) -> Any:
        return None if value.kind == DestinationKind.INBOX else value.url


class MillisecondsField(serializers.FloatField):
    """A duration in milliseconds, shown with two decimals."""

    def to_representation(self, value: Any) -> Any:
        return round(value, 2)


class DeliveryStateField(serializers.ChoiceField):
    """A delivery's state, which comes from several of its columns."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=DeliveryState.values, source="*", **options)

    def to_representation(self, value: Any) -> Any:
        return state_of(value)


class NextAttemptField(serializers.DateTimeField):
    """When a delivery is attempted next."""

    def __init__(self, **options: Any) -> None:
        super().__init__(source="*", allow_null=True, **options)

    def to_representation(self, value: Any) -> Any:
        return next_attempt_at(value)
