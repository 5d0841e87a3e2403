"""The shapes of what the inbox's endpoints take and return, for the OpenAPI schema."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from core.serializers import OutputSerializer, StrictSerializer
from events.api import descriptions
from webhooks.api.inbox_requests import DEFAULT_VISIBILITY, MAX_IDS, MAX_VISIBILITY
from webhooks.destinations.inbox.fetching import ItemStatus
from webhooks.states import DeliveryState

_FAILED_HELP = "How many were not found, were cancelled, or are not under the lease."
_COUNTS_HELP = "what was acknowledged before counts, too"
_AT_HELP = "null for one that is `already_acknowledged`, and for a failure"
_ACKNOWLEDGED_AT_HELP = "When it was acknowledged"
_RESULTS_HELP = "What became of each item, in the order of the request: first `event_ids`, then `delivery_ids`."
_INBOX_HELP = "The inbox's name; without one, the `default` inbox."


class InboxEvent(OutputSerializer):
    """An event in an inbox."""

    id = serializers.UUIDField(help_text=descriptions.EVENT_ID)
    type = serializers.CharField(help_text=descriptions.EVENT_TYPE)
    payload = serializers.JSONField(help_text="The data as the producer sent it, byte for byte.")
    created_at = serializers.DateTimeField(help_text=descriptions.ACCEPTED_AT)
    delivery_status = serializers.ChoiceField(
        choices=DeliveryState.values,
        help_text="`delivering` while somebody has fetched it, `delivered` when it is acknowledged.",
    )
    delivery_id = serializers.UUIDField(help_text="The id of its delivery, by which it can be acknowledged, too.")
    attempt = serializers.IntegerField(required=False, help_text="How often it has been fetched. Not in the log.")


@extend_schema_serializer(many=False)
class InboxPage(OutputSerializer):
    """Events, and how to go on."""

    events = InboxEvent(many=True, help_text="The events, the oldest first; empty if there are none.")
    next_cursor = serializers.CharField(
        allow_null=True, help_text="Of the log: where to go on, also if nothing follows yet. Null without `cursor`."
    )
    has_more = serializers.BooleanField(required=False, help_text="Of the log: whether more follow at once.")
    lease_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Of this fetch: send it along when you acknowledge."
    )
    lease_expires_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Until then, no other consumer can fetch the events."
    )


class _IdsIn(StrictSerializer):
    event_ids = serializers.ListField(
        child=serializers.CharField(), required=False, max_length=MAX_IDS, help_text="The `id` of each event."
    )
    delivery_ids = serializers.ListField(
        child=serializers.CharField(), required=False, max_length=MAX_IDS, help_text="The `delivery_id` of each event."
    )
    lease_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Only events that are still under this lease."
    )
    inbox = serializers.CharField(required=False, help_text=_INBOX_HELP)


@extend_schema_serializer(component_name="InboxItems")
class ItemsIn(_IdsIn):
    """Events, by their ids or those of their deliveries; 1 to 1,000 in all."""


@extend_schema_serializer(component_name="InboxNack")
class NackIn(_IdsIn):
    """Events to give back."""

    delay = serializers.FloatField(
        required=False, min_value=0, max_value=MAX_VISIBILITY, default=0, help_text="In seconds: not before then."
    )


@extend_schema_serializer(component_name="InboxExtension")
class ExtendIn(_IdsIn):
    """Events whose leases to extend."""

    visibility = serializers.FloatField(
        required=False,
        min_value=1,
        max_value=MAX_VISIBILITY,
        default=DEFAULT_VISIBILITY,
        help_text="In how many seconds the leases end.",
    )


@extend_schema_serializer(component_name="InboxItem")
class SingleIn(StrictSerializer):
    """How a single event is acknowledged."""

    lease_id = serializers.UUIDField(required=False, allow_null=True, help_text="Only if it is still under this lease.")
    inbox = serializers.CharField(required=False, help_text=_INBOX_HELP)


class _Result(OutputSerializer):
    event_id = serializers.CharField(required=False, help_text="As it was given; or `delivery_id`.")
    delivery_id = serializers.CharField(required=False, help_text="As it was given; or `event_id`.")
    status = serializers.ChoiceField(
        choices=[status.value for status in ItemStatus],
        help_text="`lease_expired`: another consumer has fetched it since, or it was given back. `not_found`: it "
        "isn't in the inbox.",
    )


@extend_schema_serializer(component_name="AcknowledgedItem")
class AcknowledgedItem(_Result):
    """What became of one item."""

    acknowledged_at = serializers.DateTimeField(
        allow_null=True, help_text=f"{_ACKNOWLEDGED_AT_HELP}; null for a failure."
    )


@extend_schema_serializer(component_name="GivenBackItem")
class GivenBackItem(_Result):
    """What became of one item."""

    available_at = serializers.DateTimeField(allow_null=True, help_text=f"When it can be fetched again; {_AT_HELP}.")


@extend_schema_serializer(component_name="ExtendedItem")
class ExtendedItem(_Result):
    """What became of one item."""

    lease_expires_at = serializers.DateTimeField(allow_null=True, help_text=f"When its lease ends; {_AT_HELP}.")


@extend_schema_serializer(component_name="InboxAcknowledged")
class Acknowledged(OutputSerializer):
    """What became of each item, in the order of the request."""

    acknowledged = serializers.IntegerField(help_text=f"How many are acknowledged; {_COUNTS_HELP}.")
    failed = serializers.IntegerField(help_text=_FAILED_HELP)
    results = AcknowledgedItem(many=True, help_text=_RESULTS_HELP)


@extend_schema_serializer(component_name="InboxGivenBack")
class GivenBack(OutputSerializer):
    """What became of each item, in the order of the request."""

    given_back = serializers.IntegerField(help_text=f"How many were given back; {_COUNTS_HELP}.")
    failed = serializers.IntegerField(help_text=_FAILED_HELP)
    results = GivenBackItem(many=True, help_text=_RESULTS_HELP)


@extend_schema_serializer(component_name="InboxExtended")
class Extended(OutputSerializer):
    """What became of each item, in the order of the request."""

    extended = serializers.IntegerField(help_text=f"How many leases were extended; {_COUNTS_HELP}.")
    failed = serializers.IntegerField(help_text=_FAILED_HELP)
    results = ExtendedItem(many=True, help_text=_RESULTS_HELP)


@extend_schema_serializer(component_name="InboxAcknowledgedEvent")
class AcknowledgedOne(OutputSerializer):
    """An event that is acknowledged."""

    id = serializers.UUIDField(help_text="As it was given.")
    status = serializers.ChoiceField(choices=["acknowledged"], help_text="Always this: anything else is an error.")
    acknowledged_at = serializers.DateTimeField(help_text=f"{_ACKNOWLEDGED_AT_HELP}.")
    message = serializers.CharField(help_text="A sentence for people: whether it was acknowledged now or before.")
