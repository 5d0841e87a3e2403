"""What the events' endpoints return, and the shape of what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from drf_spectacular.utils import extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from core.openapi import page_of
from core.openapi.descriptions import ERROR_DETAIL
from core.serializers import OutputSerializer, RawJSONField
from events import cloudevents, payload
from events.api import descriptions
from events.delivery_lookup import DELIVERY_STATUSES
from events.ingest import Ingested, IngestStatus
from events.models import Event, EventStatus

# What an item of a batch that isn't valid is in its errors: (JSON pointer, reason).
FieldErrors = list[tuple[str, str]]


class NewEvent(serializers.Serializer[Any]):
    """An event as a producer sends it.

    `events.payload` parses it, to keep `data` byte for byte; `events.api.openapi` has the schema.
    """


# What an item is with `validate_only`.
VALID = "valid"
_MESSAGES = {
    IngestStatus.ACCEPTED: "Event queued for processing",
    IngestStatus.DUPLICATE: "Event was accepted before",
}
_ACCEPTED = "`accepted`: it is stored, and its deliveries follow."
_DUPLICATE = "`duplicate`: an event with the same `dedup_id` and content was accepted before, so this one isn't stored."
_VALID = "`valid`: nothing is wrong with it, and `validate_only` stores nothing."


class EventReceipt(OutputSerializer):
    """What became of an event that was offered."""

    id = serializers.UUIDField(help_text="The event's id; for a duplicate, the first event's.")
    status = serializers.ChoiceField(
        choices=[IngestStatus.ACCEPTED.value, IngestStatus.DUPLICATE.value], help_text=f"{_ACCEPTED} {_DUPLICATE}"
    )
    message = serializers.CharField(help_text="The status in words, for people.")

    def to_representation(self, instance: Ingested) -> dict[str, Any]:
        """Return what became of an event that is stored."""
        message = _MESSAGES[instance.status]
        return {"id": instance.event_id, "status": instance.status, "message": message}


class EventNotStored(EventReceipt):
    """What became of an event that wasn't stored, because it was before or because it was only to be validated."""

    id = serializers.UUIDField(allow_null=True, help_text="The first event's id for a duplicate; else null.")
    status = serializers.ChoiceField(choices=[IngestStatus.DUPLICATE.value, VALID], help_text=f"{_DUPLICATE} {_VALID}")

    def to_representation(self, instance: Ingested | payload.NewEvent) -> dict[str, Any]:
        """Return what became of an event: a result, or the event itself if it was only to be validated."""
        if isinstance(instance, Ingested):
            return super().to_representation(instance)
        return {"id": None, "status": VALID, "message": "Event is valid; nothing was stored"}


class FieldError(OutputSerializer):
    """One thing that is wrong."""

    pointer = serializers.CharField(help_text="JSON pointer into the item (RFC 6901; empty for the whole).")
    detail = serializers.CharField(help_text=ERROR_DETAIL)


ItemResult = Ingested | payload.NewEvent | FieldErrors


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch, for BatchReceipt.  data: of each item, in the order of the request."""

    accepted: int
    data: Sequence[ItemResult]


class BatchItemReceipt(OutputSerializer):
    """What became of one item."""

    status = serializers.ChoiceField(
        choices=[*(status.value for status in IngestStatus), VALID, "invalid"],
        help_text=f"{_ACCEPTED} {_DUPLICATE} `conflict`: one with the same `dedup_id` and different content was "
        f"accepted before. {_VALID} `invalid`: see `errors`.",
    )
    id = serializers.UUIDField(
        required=False,
        help_text="The event's id; for a duplicate or a conflict, the first event's. Not for `invalid` and `valid`.",
    )
    errors = FieldError(many=True, required=False, help_text="Only for `invalid`.")  # type: ignore[assignment]

    def to_representation(self, instance: ItemResult) -> dict[str, Any]:
        """Return what became of an item: its result, its errors, or itself if it was valid and only to be validated."""
        if isinstance(instance, Ingested):
            return {"status": instance.status, "id": instance.event_id}
        if isinstance(instance, payload.NewEvent):
            return {"status": VALID}
        errors = [{"pointer": pointer, "detail": reason} for pointer, reason in instance]
        return {"status": "invalid", "errors": errors}


class BatchReceipt(OutputSerializer):
    """What became of each item, in the order of the request."""

    accepted = serializers.IntegerField(help_text="How many items were accepted.")
    data = BatchItemReceipt(  # type: ignore[assignment]
        many=True, help_text="What became of each item, in the order of the request."
    )


@extend_schema_field({"type": "object", "additionalProperties": {"type": ["string", "boolean", "integer"]}})
class CloudEventField(serializers.Field[Any, Any, Any, Any]):
    """What is kept of a CloudEvent, as the API shows it."""

    def to_representation(self, value: str) -> Any:
        kept = orjson.loads(value)
        kept.pop(cloudevents.DATA, None)
        return kept


@extend_schema_serializer(component_name="Event")
class EventOut(OutputSerializer):
    """An event."""

    id = serializers.UUIDField(help_text="The event's id, which receivers get as `webhook-id`.")
    type = serializers.CharField(help_text=descriptions.EVENT_TYPE)
    status = serializers.ChoiceField(
        choices=EventStatus.values,
        help_text="`accepted`: it is stored and waits for its fan-out. `processed`: its deliveries exist. `error`: the "
        "fan-out failed repeatedly, and an operator can have it done again.",
    )
    created_at = serializers.DateTimeField(help_text=descriptions.ACCEPTED_AT)
    processed_at = serializers.DateTimeField(allow_null=True, help_text="When it became `processed`; null before that.")
    dedup_id = serializers.CharField(
        allow_null=True,
        help_text="The producer's id for it, which makes a retry safe; null for none. A CloudEvent's is made of its "
        "`source` and `id`.",
    )
    ordering_key = serializers.CharField(
        allow_null=True,
        help_text="Subscriptions that are `ordered` get the events of a key one at a time; null for none.",
    )
    channels = serializers.ListField(child=serializers.CharField(), help_text="Empty for none.")
    request_id = serializers.CharField(allow_null=True, help_text="The `X-Request-Id` of the request that sent it.")
    traceparent = serializers.CharField(
        allow_null=True, help_text="The `traceparent` of that request. Each attempt gets its own span id."
    )
    tracestate = serializers.CharField(allow_null=True, help_text="The `tracestate` of that request.")
    cloudevent = CloudEventField(
        allow_null=True, help_text="The attributes of a CloudEvent as they came, without `specversion` and `type`."
    )
    data = RawJSONField(help_text="The data as the producer sent it, byte for byte.")  # type: ignore[assignment]
    payload_erased = serializers.BooleanField(
        source="is_erased", help_text="Whether `data` was erased, and is null for that."
    )
    error = serializers.CharField(
        required=False, help_text="Why the last fan-out failed, if one did.", source="last_error"
    )
    failed_attempts = serializers.IntegerField(required=False, help_text="Fan-outs that failed, if one did.")

    def to_representation(self, instance: Event) -> dict[str, Any]:
        """Return the event's members; those about a failure only if there was one."""
        shown = super().to_representation(instance)
        shown["channels"] = shown["channels"] or []
        if not instance.last_error:
            del shown["error"], shown["failed_attempts"]
        return shown


class EventDelivery(OutputSerializer):
    """A line about one of the event's deliveries."""

    id = serializers.UUIDField(help_text=descriptions.DELIVERY_ID)
    subscription_id = serializers.UUIDField(help_text=descriptions.SUBSCRIPTION_ID)
    status = serializers.ChoiceField(choices=DELIVERY_STATUSES, help_text=descriptions.DELIVERY_STATUS)
    attempt_count = serializers.IntegerField(help_text=descriptions.ATTEMPT_COUNT)
    next_attempt_at = serializers.DateTimeField(allow_null=True, help_text=descriptions.NEXT_ATTEMPT_AT)
    completed_at = serializers.DateTimeField(allow_null=True, help_text=descriptions.COMPLETED_AT)


@extend_schema_serializer(component_name="EventWithDeliveries")
class EventWithDeliveries(EventOut):
    """An event with its deliveries, the oldest first, at most 1,000 of them."""

    deliveries = EventDelivery(many=True, help_text="Its deliveries, the oldest first; at most 1,000.")

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """Return the members of an event and its deliveries, given as a pair."""
        event, lines = instance
        line = EventDelivery()
        return {**EventOut().to_representation(event), "deliveries": [line.to_representation(one) for one in lines]}


EventPage = page_of(EventOut, "EventPage")
