"""`/api/event-types`: the catalog of an organization's event types."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.db import transaction
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, PolymorphicProxySerializer, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.json_body import parse_json, read_body, read_object, require_media_type
from core.openapi import PAGE, conflict, location, query
from core.problems import Problem, invalid, no_such
from core.query import PAGE_PARAMETERS, boolean, one_of, page, parse_parameters, text
from core.url_prefix import full_path
from events import event_types
from events.api import event_type_serializers as shapes
from events.models import EventType
from events.openapi_import import ImportFailed, read_webhooks
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.models import Organization
from orgs.scopes import Scope

EXAMPLE = {
    "name": "order.created",
    "description": "A customer has placed an order.",
    "schema": {
        "type": "object",
        "required": ["order"],
        "properties": {"order": {"type": "integer"}, "total": {"type": "string", "pattern": "^[0-9]+\\.[0-9]{2}$"}},
    },
    "examples": [{"order": 4711, "total": "19.90"}],
}
OPENAPI_EXAMPLE = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "webhooks": {
        "order.created": {
            "post": {
                "summary": "A customer has placed an order.",
                "requestBody": {"content": {"application/json": {"schema": EXAMPLE["schema"]}}},
            }
        }
    },
}
MAX_TYPE_BYTES = 4 * 65536
MAX_DOCUMENT_BYTES = 1_048_576  # the front door passes no more on


def _too_many() -> Problem:
    return Problem(
        "too_many_event_types",
        f"The organization has {settings.MAX_EVENT_TYPES} event types, which is the limit (MAX_EVENT_TYPES). "
        "Delete one that isn't used.",
        extra={"limit_event_types": settings.MAX_EVENT_TYPES},
    )


def _own(request: Request, event_type_id: uuid.UUID) -> EventType:
    row = event_types.of_organization(caller_of(request).organization_id).filter(id=event_type_id).first()
    if row is None:
        raise no_such("event type")
    return row


class EventTypeListView(APIView):
    """The catalog."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "POST": Scope.EVENT_TYPES_MANAGE}

    @extend_schema(
        operation_id="listEventTypes",
        tags=["Event types"],
        summary="List event types",
        parameters=[
            query("name", "Only the type with this name."),
            query("archived", "Only those that are archived, or that aren't.", bool),
            query("format", "`choices`: a bare array of all names, for dropdowns, without archived types.",
                  enum=["page", "choices"]),
            *PAGE,
        ],
        responses=PolymorphicProxySerializer(
            component_name="EventTypes",
            serializers=[shapes.EventTypePage, shapes.EventTypeChoice(many=True)],
            resource_type_field_name=None,
            many=False,
        ),
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """List event types, newest first.

        With `format=choices`, all types that aren't archived, as `[{"id": …, "name": …}]`, by name.
        """
        parsers = {"name": text, "archived": boolean, "format": one_of("page", "choices"), **PAGE_PARAMETERS}
        parameters = parse_parameters(request, parsers)
        rows = event_types.of_organization(caller_of(request).organization_id)
        if "name" in parameters:
            rows = rows.filter(name=parameters["name"])
        if "archived" in parameters:
            rows = rows.filter(archived_at__isnull=not parameters["archived"])
        if parameters.get("format") == "choices":
            live = rows.filter(archived_at=None).only("name").order_by("name")
            return Response([shapes.EventTypeChoice().to_representation(row) for row in live])
        return Response(page(rows, parameters, shapes.EventTypeOut().to_representation))

    @extend_schema(
        operation_id="createEventType",
        tags=["Event types"],
        summary="Create an event type",
        parameters=[location(201)],
        request=shapes.EventTypeCreate,
        responses={201: shapes.EventTypeOut, **conflict("event_type_exists", "too_many_event_types")},
        examples=[OpenApiExample("event type", EXAMPLE, request_only=True)],
    )
    @idempotent(read=lambda request: read_body(request._request, MAX_TYPE_BYTES))
    def post(self, request: Request) -> Response:
        """Add a type to the catalog.

        What the catalog says counts for the next event, if the organization's `strictness` is `known` or `schema`.
        """
        serializer = shapes.EventTypeCreate(data=_read(request))
        serializer.is_valid(raise_exception=True)
        try:
            with transaction.atomic():
                row = event_types.create(caller_of(request).organization_id, **serializer.validated_data)
                audit.record_for_caller(request, "event_type.create", row.id, name=row.name)
        except event_types.NameTaken:
            raise Problem(
                "event_type_exists", "There is an event type with this name.", errors=[("/name", "is taken")]
            ) from None
        except event_types.TooManyEventTypes:
            raise _too_many() from None
        shown = shapes.EventTypeOut().to_representation(row)
        return Response(shown, 201, headers={"Location": full_path(f"/api/event-types/{row.id}")})


def _read(request: Request) -> dict[str, Any]:
    """Return the JSON object in a body that may hold a schema."""
    require_media_type(request.content_type, "application/json")
    value = parse_json(read_body(request._request, MAX_TYPE_BYTES))
    if not isinstance(value, dict):
        raise invalid([("", "must be a JSON object")])
    return value


class EventTypeView(APIView):
    """One event type."""

    scopes: ClassVar = {
        "GET": Scope.EVENTS_READ, "PATCH": Scope.EVENT_TYPES_MANAGE, "DELETE": Scope.EVENT_TYPES_MANAGE,
    }  # fmt: skip

    @extend_schema(
        operation_id="getEventType", tags=["Event types"], summary="Get an event type", responses=shapes.EventTypeOut
    )
    def get(self, request: Request, event_type_id: uuid.UUID) -> Response:
        """Return the event type."""
        return Response(shapes.EventTypeOut().to_representation(_own(request, event_type_id)))

    @extend_schema(
        operation_id="changeEventType",
        tags=["Event types"],
        summary="Change an event type",
        request=shapes.EventTypeChange,
        responses=shapes.EventTypeOut,
        examples=[OpenApiExample("archive it", {"archived": True}, request_only=True)],
    )
    def patch(self, request: Request, event_type_id: uuid.UUID) -> Response:
        """Change the given fields. The name stays; another schema gets the next version."""
        row = _own(request, event_type_id)
        serializer = shapes.EventTypeChange(data=_read(request), partial=True)
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            try:
                event_types.change(row, serializer.validated_data)
            except EventType.DoesNotExist:
                raise no_such("event type") from None
            audit.record_for_caller(
                request, "event_type.change", row.id, {"fields": sorted(serializer.validated_data)}, name=row.name
            )
        return Response(shapes.EventTypeOut().to_representation(row))

    @extend_schema(
        operation_id="deleteEventType",
        tags=["Event types"],
        summary="Delete an event type",
        responses={204: OpenApiResponse(None, "Deleted.")},
    )
    def delete(self, request: Request, event_type_id: uuid.UUID) -> Response:
        """Remove the type from the catalog. Events of the type stay as they are."""
        row = _own(request, event_type_id)
        with transaction.atomic():
            event_types.delete(row)
            audit.record_for_caller(request, "event_type.delete", event_type_id, name=row.name)
        return Response(status=204)


class EventTypeImportView(APIView):
    """Event types from an OpenAPI document."""

    scopes: ClassVar = {"POST": Scope.EVENT_TYPES_MANAGE}

    @extend_schema(
        operation_id="importEventTypes",
        tags=["Event types"],
        summary="Import event types",
        request={"application/json": {"type": "object", "description": "An OpenAPI 3.1 document with `webhooks`."}},
        responses={200: shapes.EventTypeImport, **conflict("too_many_event_types")},
        examples=[OpenApiExample("OpenAPI", OPENAPI_EXAMPLE, request_only=True)],
    )
    @idempotent(read=lambda request: read_body(request._request, MAX_DOCUMENT_BYTES))
    def post(self, request: Request) -> Response:
        """Create or change a type for each of the `webhooks` of an OpenAPI 3.1 document; none is removed.

        The name of a webhook is the type of the event. The schema of its JSON request body is that of the data, or if
        the body is an envelope with `type` and `data`, as in Standard Webhooks, that of `data`. All are imported, or
        none if one can't be.
        """
        require_media_type(request.content_type, "application/json")
        document = parse_json(read_body(request._request, MAX_DOCUMENT_BYTES))
        if not isinstance(document, dict):
            raise invalid([("", "must be a JSON object")])
        try:
            wanted = read_webhooks(document)
        except ImportFailed as error:
            raise invalid(error.errors, "The document can't be imported. Nothing was changed.") from None
        organization_id = caller_of(request).organization_id
        try:
            with transaction.atomic():
                done = event_types.import_types(organization_id, wanted)
                names = [one.row.name for one in done]
                audit.record_for_caller(request, "event_type.import", "", {"names": names[:100], "count": len(names)})
        except event_types.TooManyEventTypes:
            raise _too_many() from None
        return Response({"data": shapes.ImportedEventType(done, many=True).data})


class EventTypeSettingsView(APIView):
    """Which events the organization takes."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "PATCH": Scope.EVENT_TYPES_MANAGE}

    @extend_schema(
        operation_id="getEventTypeSettings",
        tags=["Event types"],
        summary="Get which events are accepted",
        responses=shapes.EventTypeSettings,
    )
    def get(self, request: Request) -> Response:
        """Return the strictness."""
        return Response(shapes.EventTypeSettings(caller_of(request)).data)

    @extend_schema(
        operation_id="changeEventTypeSettings",
        tags=["Event types"],
        summary="Set which events are accepted",
        request=shapes.EventTypeSettings,
        responses=shapes.EventTypeSettings,
        examples=[OpenApiExample("schemas are enforced", {"strictness": "schema"}, request_only=True)],
    )
    def patch(self, request: Request) -> Response:
        """Set the strictness. It counts for the next event."""
        serializer = shapes.EventTypeSettings(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        strictness = serializer.validated_data["strictness"]
        organization = Organization.objects.get(pk=caller_of(request).organization_id)
        with transaction.atomic():
            event_types.set_strictness(organization.id, strictness)
            audit.record_for_caller(
                request, "organization.change", organization.id, {"event_type_strictness": strictness},
                name=organization.name,
            )  # fmt: skip
        return Response(serializer.validated_data)
