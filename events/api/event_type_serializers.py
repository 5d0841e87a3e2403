"""What the event types' endpoints take and return."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from core.openapi import page_of
from core.openapi.descriptions import CREATED_AT
from core.serializers import (
    OutputSerializer,
    StrictBooleanField,
    StrictCharField,
    StrictChoiceField,
    StrictSerializer,
)
from events.api.descriptions import TYPE_ARCHIVED, TYPE_DESCRIPTION, TYPE_NAME
from events.payload import MAX_TYPE_CHARACTERS, event_type_error
from events.schemas import SchemaError, check_schema
from orgs.models import Strictness

MAX_EXAMPLES = 20
_ID = "The event type's id, for `/api/event-types/{event_type_id}`."
_SCHEMA_HELP = (
    "JSON Schema (2020-12) of an event's data; null for none. A `$ref` may only lead to a place in the same schema, "
    "and `pattern` takes regular expressions without look-around and back references. `format` isn't checked."
)


class EventTypeNameField(StrictCharField):
    """The name of an event type."""

    def to_internal_value(self, data: Any) -> str:
        if reason := event_type_error(data):
            raise serializers.ValidationError(reason)
        return str(data)


@extend_schema_field({"type": ["object", "boolean"], "description": _SCHEMA_HELP})
class SchemaField(serializers.Field[Any, Any, Any, Any]):
    """A JSON Schema that `events.schemas` takes."""

    def to_internal_value(self, data: Any) -> Any:
        try:
            check_schema(data)
        except SchemaError as error:
            nested: Any = [error.reason]
            for step in reversed(error.pointer.split("/")[1:]):
                nested = {step.replace("~1", "/").replace("~0", "~"): nested}
            raise serializers.ValidationError(nested) from None
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field({"type": "array", "maxItems": MAX_EXAMPLES, "items": {}, "description": "Examples of the data."})
class ExamplesField(serializers.Field[Any, Any, Any, Any]):
    """Examples of an event's data."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, list) or len(data) > MAX_EXAMPLES:
            raise serializers.ValidationError(f"must be an array of at most {MAX_EXAMPLES} examples")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class EventTypeChange(StrictSerializer):
    """The body of `PATCH /api/event-types/{event_type_id}`."""

    description = StrictCharField(max_length=2000, required=False, allow_blank=True, help_text=TYPE_DESCRIPTION)
    examples = ExamplesField(required=False)
    schema = SchemaField(required=False, allow_null=True)
    archived = StrictBooleanField(required=False, help_text=TYPE_ARCHIVED)


class EventTypeCreate(EventTypeChange):
    """The body of `POST /api/event-types`."""

    name = EventTypeNameField(max_length=MAX_TYPE_CHARACTERS, help_text=TYPE_NAME)


class EventTypeSettings(StrictSerializer):
    """Which events the organization takes."""

    strictness = StrictChoiceField(
        choices=Strictness.values,
        help_text="`free`: events of any type. `known`: those of a type in the catalog that isn't archived. `schema`: "
        "those whose data also fits the type's schema, if it has one. Others get a 400.",
    )


@extend_schema_serializer(component_name="EventType")
class EventTypeOut(OutputSerializer):
    """A type of events."""

    id = serializers.UUIDField(help_text=_ID)
    name = serializers.CharField(help_text=TYPE_NAME)
    description = serializers.CharField(help_text=TYPE_DESCRIPTION)
    examples = ExamplesField()
    schema = SchemaField(allow_null=True)
    version = serializers.IntegerField(help_text="Counts the changes of the schema.")
    archived = serializers.BooleanField(help_text=TYPE_ARCHIVED)
    created_at = serializers.DateTimeField(help_text=CREATED_AT)
    updated_at = serializers.DateTimeField(help_text="When it was last changed.")


class EventTypeChoice(OutputSerializer):
    """An entry of a dropdown."""

    id = serializers.CharField(source="name", help_text=TYPE_NAME)
    name = serializers.CharField(help_text="What the dropdown shows: the same as `id`.")


class ImportedEventType(OutputSerializer):
    """What the import did with one webhook of the document."""

    id = serializers.UUIDField(source="row.id", help_text=_ID)
    name = serializers.CharField(source="row.name", help_text=TYPE_NAME)
    status = serializers.ChoiceField(
        choices=["created", "changed", "unchanged"],
        help_text="What became of the type: `unchanged` if the catalog already had it like this.",
    )


class EventTypeImport(OutputSerializer):
    """What the import did, in the order of the document."""

    data = ImportedEventType(  # type: ignore[assignment]
        many=True, help_text="An entry for each webhook of the document."
    )


EventTypePage = page_of(EventTypeOut, "EventTypePage")
