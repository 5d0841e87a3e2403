"""What the endpoints for subscriptions take and return.

The OpenAPI schema shows these serializers and the views render with them, so each shape has one definition.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal

from rest_framework import serializers

from core.openapi.descriptions import CREATED_AT
from core.row_rendering import row_renderer
from core.serializers import (
    StrictBooleanField,
    StrictCharField,
    StrictChoiceField,
    StrictFloatField,
    StrictIntegerField,
    StrictSerializer,
    validate_plain_text,
)
from webhooks import endpoint_test, subscriptions
from webhooks.api import descriptions
from webhooks.api.credentials import (
    ShownCertificateSerializer,
    check_secret_type,
    check_together,
    credential_fields,
    secret_fields,
)
from webhooks.api.fields import (
    ChannelsField,
    ChoiceOrNullField,
    DescriptionField,
    EndpointUrlField,
    EventTypesField,
    ExpressionField,
    FailureField,
    FilterField,
    HeadersField,
    MetadataField,
    TextOrNullField,
    UrlField,
    validate_inbox_name,
)
from webhooks.api.handshakes import handshake_field
from webhooks.endpoint_test import EndpointTest
from webhooks.inboxes import MAX_NAME as MAX_INBOX_NAME
from webhooks.models import (
    FORMATS,
    BulkRun,
    DestinationKind,
    DisabledCause,
    OrderedOnFailure,
    Subscription,
)
from webhooks.notices import types_error
from webhooks.routing.filters import OPERATORS
from webhooks.signing_secrets import stored_secrets
from webhooks.states import Breaker, SubscriptionState

URL_HELP = (
    "Where webhooks are sent: an absolute `http` or `https` URL. Whitespace around it is removed, an "
    "internationalized host name is converted to its ASCII form (`https://bücher.example` to "
    "`https://xn--bcher-kva.example`), and other non-ASCII characters are percent-encoded. The response shows "
    "the stored URL, and its path and query are what requests use, byte for byte."
)
ORDERING = ("ordered", "ordered_attempts", "ordered_on_failure")
# What an inbox doesn't have.
ONLY_OF_ENDPOINTS = (
    "url", "headers", "max_in_flight", "deliveries_per_second", "format", "transform", "secret", "secret_type", "auth",
    "client_certificate", "signature_header", "handshake", *ORDERING,
)  # fmt: skip
NOT_OF_INBOXES = "an inbox has none: nothing is sent to it"
_SWITCH = "`POST /api/subscriptions/{id}/disable` and `/enable` switch a subscription off and on"
_ROTATE = "the secret is made by the system; `POST /api/subscriptions/{id}/rotate-secret` makes another one"
HINTS = {
    **dict.fromkeys(("events", "event", "types", "type", "topics", "topic", "enabled_events"), "event_types"),
    **dict.fromkeys(("target_url", "targetUrl", "hookUrl", "endpoint", "endpoint_url", "callback_url", "uri"), "url"),
    **dict.fromkeys(("name", "title", "label"), "description"),
    **dict.fromkeys(("status", "state", "active", "is_active", "enabled", "disabled", "paused"), _SWITCH),
    **dict.fromkeys(("secret", "signing_secret"), _ROTATE),
    **dict.fromkeys(("rate_limit", "max_per_second"), "deliveries_per_second"),
    "concurrency": "max_in_flight",
    **dict.fromkeys(("operational", "is_operational"), "`operational` is chosen when a subscription is created"),
    **dict.fromkeys(("kind", "inbox"), "whether a subscription is an inbox is chosen when it is created"),
    "secret_type": "`POST /api/subscriptions/{id}/secrets` adds a secret of another type",
    "id": "ids are made by the system; keep one of your own in `uid`",
}

_OPERATORS = ", ".join(f"`{name}`" for name in OPERATORS)


class SubscriptionChangeSerializer(StrictSerializer):
    """The body of `PATCH /api/subscriptions/{id}`."""

    hints = HINTS

    url = UrlField(
        max_length=2048,
        trim_whitespace=False,
        help_text=URL_HELP,
    )
    event_types = EventTypesField()
    filter = FilterField(
        required=False,
        allow_null=True,
        help_text='Only events whose data meets these conditions: `{"customer": {"country": "DE"}, "total": '
        f'{{"$gte": 100}}}}`. Operators: {_OPERATORS}. Null for all events of the types.',
    )
    channels = ChannelsField(
        required=False, help_text="Only events that have one of these channels. Empty for all events."
    )
    ordered = StrictBooleanField(
        required=False,
        help_text="Send events that have the same `ordering_key` one at a time, in the order in which they were "
        "accepted. Other keys don't wait.",
    )
    ordered_attempts = StrictIntegerField(
        min_value=1,
        max_value=100,
        required=False,
        allow_null=True,
        help_text=descriptions.ORDERED_ATTEMPTS,
    )
    ordered_on_failure = StrictChoiceField(
        choices=OrderedOnFailure.values,
        required=False,
        help_text=descriptions.ORDERED_ON_FAILURE,
    )
    description = DescriptionField()
    uid = StrictCharField(
        max_length=255,
        required=False,
        allow_null=True,
        validators=[validate_plain_text],
        help_text="An id of your own for it, unique in the organization; null for none.",
    )
    metadata = MetadataField(required=False)
    headers = HeadersField(required=False)
    max_in_flight = StrictIntegerField(
        min_value=1,
        max_value=10_000,
        required=False,
        allow_null=True,
        help_text=descriptions.MAX_IN_FLIGHT,
    )
    deliveries_per_second = StrictFloatField(
        min_value=0.01,
        max_value=100_000,
        required=False,
        allow_null=True,
        help_text=descriptions.DELIVERIES_PER_SECOND,
    )
    format = StrictChoiceField(
        choices=list(FORMATS),
        required=False,
        help_text=descriptions.FORMAT,
    )
    transform = ExpressionField(
        max_length=4096,
        required=False,
        allow_blank=True,
        help_text=descriptions.TRANSFORM,
    )

    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), **credential_fields(), "handshake": handshake_field()}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Require an expression for the format `transform`, and credentials that go together."""
        current = self.context.get("subscription")
        if self.partial and set(attrs) == {"handshake"}:
            raise serializers.ValidationError({"handshake": ["goes with a change, such as of `url`"]})
        check_together(attrs, current)
        is_operational = attrs.get("is_operational", getattr(current, "is_operational", False))
        patterns = enumerate(attrs.get("event_types", ()))
        if wrong := {str(at): [reason] for at, one in patterns if (reason := types_error(one, is_operational))}:
            raise serializers.ValidationError({"event_types": wrong})
        wanted = attrs.get("format", getattr(current, "format", "standard"))
        if wanted == "transform" and not attrs.get("transform", getattr(current, "transform", "")):
            raise serializers.ValidationError({"transform": ["is required for the format transform"]})
        if wanted != "transform" and attrs.get("transform"):
            raise serializers.ValidationError({"transform": ["goes with `format` `transform`"]})
        return attrs


class SubscriptionCreateSerializer(SubscriptionChangeSerializer):
    """The body of `POST /api/subscriptions`."""

    kind = StrictChoiceField(
        choices=DestinationKind.values,
        required=False,
        default=DestinationKind.HTTP.value,
        help_text="`inbox`: nothing is sent, and events wait in the inbox until you fetch them.",
    )
    inbox = StrictCharField(
        required=False,
        max_length=MAX_INBOX_NAME,
        validators=[validate_inbox_name],
        help_text="The name of the inbox to make: letters, digits, `.`, `_`, and `-`.",
    )
    url = UrlField(
        max_length=2048,
        trim_whitespace=False,
        required=False,
        help_text=f"Required, unless `kind` is `inbox`. {URL_HELP}",
    )

    operational = StrictBooleanField(
        required=False,
        default=False,
        source="is_operational",
        help_text="Receive operational events, about your endpoints and keys (`triggers.endpoint.failing`), and no "
        "others. It can't be changed later.",
    )

    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), **secret_fields()}

    def to_internal_value(self, data: Any) -> Any:
        """Require what the kind needs: here, so that it is told together with what else is wrong."""
        if isinstance(data, Mapping):
            needed = "inbox" if data.get("kind") == DestinationKind.INBOX else "url"
            self.fields[needed].required = True
            self.fields["inbox"].error_messages["required"] = "is required for an inbox"
        return super().to_internal_value(data)

    def validate(self, attrs: Any) -> Any:
        """Refuse what the kind doesn't have."""
        attrs = super().validate(attrs)
        check_secret_type(attrs)
        errors: dict[str, list[str]] = {}
        if attrs.pop("kind") == DestinationKind.INBOX:
            errors |= {name: [NOT_OF_INBOXES] for name in ONLY_OF_ENDPOINTS if name in attrs}
        elif "inbox" in attrs:
            errors["inbox"] = ["goes with `kind` `inbox`"]
        if errors:
            raise serializers.ValidationError(errors)
        return attrs


class SecretRotateSerializer(StrictSerializer):
    """The body of `POST /api/subscriptions/{id}/rotate-secret`."""

    overlap_seconds = StrictIntegerField(
        min_value=0,
        max_value=30 * 86400,
        required=False,
        default=86400,
        help_text="How long the old secret keeps signing along with the new one; 0 ends it at once.",
    )
    end_earlier_secrets = StrictBooleanField(
        required=False,
        default=False,
        help_text=(
            "Also end the secrets of earlier rotations, even if their overlaps aren't over. After a leak, send "
            "this with `overlap_seconds` 0: then only the new secret signs."
        ),
    )

    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), **secret_fields()}

    def validate(self, attrs: Any) -> Any:
        """Refuse a type that contradicts the secret."""
        check_secret_type(attrs)
        return attrs


class ReasonSerializer(StrictSerializer):
    """The body of `POST /api/subscriptions/{id}/disable`, which may be empty."""

    reason = StrictCharField(
        max_length=300,
        required=False,
        default="",
        allow_blank=True,
        validators=[validate_plain_text],
        help_text="Why, for those who ask later: shown with the subscription and in the audit log.",
    )


class RecoverSerializer(StrictSerializer):
    """The body of `POST /api/subscriptions/{id}/recover`."""

    since = serializers.DateTimeField(help_text="Events accepted at this time or later are queued.")


class SubscriptionSerializer(serializers.Serializer[Subscription]):
    """A subscription; its secret and the values of its headers are never shown again."""

    id = serializers.UUIDField(help_text="The subscription's id, for `/api/subscriptions/{subscription_id}`.")
    kind = serializers.ChoiceField(choices=DestinationKind.values, help_text="`inbox`: events wait to be fetched.")
    inbox = TextOrNullField(help_text="The inbox's name; null for an endpoint.")
    url = EndpointUrlField(help_text="Where webhooks are sent; null for an inbox.")
    event_types = serializers.ListField(child=serializers.CharField(), help_text=descriptions.EVENT_TYPES)
    channels = serializers.ListField(child=serializers.CharField(), help_text="Empty for all events.")
    operational = serializers.BooleanField(
        source="is_operational", help_text="Whether it receives operational events, and no others."
    )
    ordered = serializers.BooleanField(help_text="Whether events with an ordering key are sent in order.")
    ordered_attempts = serializers.IntegerField(allow_null=True, help_text=descriptions.ORDERED_ATTEMPTS)
    ordered_on_failure = serializers.ChoiceField(
        choices=OrderedOnFailure.values, help_text=descriptions.ORDERED_ON_FAILURE
    )
    filter = FilterField(allow_null=True, help_text="Null for all events of these types.")
    description = serializers.CharField(help_text=descriptions.DESCRIPTION)
    uid = serializers.CharField(allow_null=True, help_text="Your own id for it; null if it has none.")
    metadata = MetadataField(help_text="What you keep with it.")
    header_names = serializers.ListField(
        child=serializers.CharField(), help_text="The names of its custom headers, whose values are never shown."
    )
    status = serializers.SerializerMethodField(
        help_text="What you set with `enable` and `disable`, or an endpoint that is gone has set. `state` says more."
    )
    state = serializers.ChoiceField(
        choices=SubscriptionState.values,
        help_text=(
            "`failing`: the last attempt failed. `paused`: nothing is sent until `paused_until`, because the circuit "
            "breaker is open or the endpoint asked for it with `Retry-After`. `disabled`: see `disabled_cause`."
        ),
    )
    state_since = serializers.DateTimeField(
        help_text="When the state began; for `failing` and `paused`, when the failures began."
    )
    breaker = serializers.ChoiceField(
        choices=Breaker.values,
        help_text="The circuit breaker. `half-open`: one request at a time is sent, until one succeeds.",
    )
    paused_until = serializers.DateTimeField(allow_null=True, help_text="The end of the pause; null if there is none.")
    last_success_at = serializers.DateTimeField(
        allow_null=True, help_text="When an attempt last succeeded; null if none has."
    )
    last_failure_at = serializers.DateTimeField(
        allow_null=True,
        help_text="When an attempt last failed; null if none has since the URL was changed or the subscription was "
        "enabled.",
    )
    last_error = FailureField(help_text="Error class of the attempt at `last_failure_at`; null if there was none.")
    last_status_code = serializers.IntegerField(
        allow_null=True,
        help_text="The status of the response to the attempt at `last_failure_at`; null if there was none.",
    )
    next_attempt_at = serializers.DateTimeField(
        allow_null=True, help_text="When the next attempt is planned; null if nothing waits or it is disabled."
    )
    disabled_cause = ChoiceOrNullField(
        choices=DisabledCause.values,
        help_text="`by_request`: with this API or in the portal. `by_operator`, `with_host`: whoever runs this service "
        "has disabled it, or stopped sending to its host. `gone`: its endpoint returned 410. `always_failed`: every "
        "delivery failed for days. Null while it isn't disabled.",
    )
    disabled_reason = serializers.CharField(help_text="The cause in a sentence; empty while it isn't disabled.")
    disabled_at = serializers.DateTimeField(
        allow_null=True, help_text="When it was disabled; null while it isn't disabled."
    )
    max_in_flight = serializers.IntegerField(allow_null=True, help_text=descriptions.MAX_IN_FLIGHT)
    deliveries_per_second = serializers.FloatField(allow_null=True, help_text=descriptions.DELIVERIES_PER_SECOND)
    format = serializers.ChoiceField(choices=list(FORMATS), help_text=descriptions.FORMAT)
    transform = serializers.CharField(help_text=descriptions.TRANSFORM)
    auth_type = TextOrNullField(help_text="`basic`, `bearer`, or `oauth2`; null if requests are only signed.")
    client_certificate = ShownCertificateSerializer(
        source="client_certificate_details",
        allow_null=True,
        help_text="The certificate that connections to the endpoint present (mTLS); null for none.",
    )
    signature_header = TextOrNullField(help_text="A header that repeats `webhook-signature`; null for none.")
    created_at = serializers.DateTimeField(help_text=CREATED_AT)
    updated_at = serializers.DateTimeField(
        help_text="When it was last changed, enabled, or disabled, or its secrets were."
    )

    def get_status(self, subscription: Subscription) -> Literal["active", "disabled"]:
        return "active" if subscription.is_active else "disabled"


class NewSubscriptionSerializer(SubscriptionSerializer):
    """A subscription with its secret."""

    # The row keeps it encrypted, so the view hands it over as `context={"secret": …}`.
    secret = serializers.SerializerMethodField(
        help_text="`whsec_…`: the key that signs each request. Shown once. Null for an inbox, for a secret of your "
        "own, and for ed25519, whose private key stays here."
    )
    public_key = serializers.SerializerMethodField(
        help_text="`whpk_…`: what verifies `v1a` signatures of this secret; null unless it is an ed25519 one."
    )

    def get_secret(self, subscription: Subscription) -> str | None:
        return self.context["secret"] or None

    def get_public_key(self, subscription: Subscription) -> str | None:
        current = stored_secrets(subscription)[:1]
        return current[0].public_key if current else None


class RotatedSubscriptionSerializer(NewSubscriptionSerializer):
    """A subscription with its new secret."""

    previous_secret_expires_at = serializers.SerializerMethodField(
        help_text="When the old secret stops signing; null if it has already stopped."
    )
    previous_secrets_expire_at = serializers.SerializerMethodField(
        help_text="When each of the earlier secrets that still sign stops, most recently replaced first; at most ten."
    )

    def get_previous_secret_expires_at(self, subscription: Subscription) -> datetime.datetime | None:
        return subscription.previous_secrets_expire_at[0] if self.context["overlap"] else None

    def get_previous_secrets_expire_at(self, subscription: Subscription) -> list[datetime.datetime]:
        return subscriptions.ends_of_previous_secrets(subscription)


class EndpointTestSerializer(serializers.Serializer[EndpointTest]):
    """What came of a test event."""

    event_id = serializers.UUIDField(help_text="The `webhook-id` that the endpoint received.")
    type = serializers.ChoiceField(
        choices=[endpoint_test.TYPE],
        default=endpoint_test.TYPE,
        read_only=True,
        help_text="The type of the event that was sent.",
    )
    sent_at = serializers.DateTimeField(help_text="When it was sent.")
    duration_ms = serializers.FloatField(help_text=descriptions.DURATION_MS)
    succeeded = serializers.BooleanField(source="outcome.succeeded", help_text="Whether the endpoint returned a 2xx.")
    status_code = serializers.IntegerField(
        source="outcome.status_code", allow_null=True, help_text=descriptions.STATUS_CODE
    )
    error = FailureField(source="outcome.failure", help_text=descriptions.ERROR)
    error_detail = serializers.CharField(source="outcome.detail", help_text=descriptions.ERROR_DETAIL)
    response_body = serializers.CharField(source="outcome.body", help_text=descriptions.RESPONSE_BODY)


class RecoverySerializer(serializers.Serializer[BulkRun]):
    """The progress of a recovery."""

    id = serializers.UUIDField(
        help_text="The run's id, for `/api/subscriptions/{subscription_id}/recoveries/{run_id}`."
    )
    kind = serializers.ChoiceField(choices=[BulkRun.Kind.RECOVER.value], help_text="Always this.")
    status = serializers.ChoiceField(choices=BulkRun.State.values, source="state", help_text=descriptions.RUN_STATUS)
    events_seen = serializers.IntegerField(source="visited", help_text="Events looked at so far.")
    queued = serializers.IntegerField(help_text="Deliveries queued so far.")
    held = serializers.IntegerField(help_text="Of those queued: held, because the subscription is disabled.")
    created_at = serializers.DateTimeField(help_text=descriptions.RUN_CREATED_AT)
    finished_at = serializers.DateTimeField(allow_null=True, help_text=descriptions.RUN_FINISHED_AT)


render_subscription = row_renderer(SubscriptionSerializer())
