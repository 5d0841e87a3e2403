"""`/api/events`: accept events and read them back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import structlog
from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiRequest, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.drf import JSONBody, NDJSONBody
from core.json_body import read_body, require_media_type
from core.json_response import json_response
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, query, rate_limit
from core.problems import Problem, not_found
from core.query import PAGE_PARAMETERS, boolean, moment, one_of, page, parse_parameters, text
from core.ratelimits import hit
from core.url_prefix import full_path
from core.wakeups import EVENTS, wake_soon
from events import backlog
from events.api import openapi
from events.api import serializers as shapes
from events.delivery_lookup import delivery_lookup
from events.fast_paths.key_recall import KeyRecallView
from events.ingest import Ingested, IngestStatus, ingest_batch
from events.models import Event, EventStatus
from events.payload import NewEvent, parse_batch, parse_event
from events.queries import find_events
from orgs.authentication import caller_of
from orgs.models import Scope

MOST_DELIVERIES = 1000  # of an event, in one response

log = structlog.get_logger()

POLICY = "events"
# The words of the log that operators' dashboards look for.
_LOGGED = {
    IngestStatus.ACCEPTED: "persisted",
    IngestStatus.DUPLICATE: "duplicate",
    IngestStatus.CONFLICT: "already_exists",
}


def _parse(request: Request) -> NewEvent:
    require_media_type(request, "application/json")
    return parse_event(read_body(request._request, settings.MAX_EVENT_BYTES))


def _parse_items(request: Request) -> list[NewEvent | shapes.FieldErrors]:
    media_type = require_media_type(request, "application/json", "application/x-ndjson")
    return parse_batch(
        read_body(request._request, settings.MAX_BATCH_BYTES),
        ndjson=media_type == "application/x-ndjson",
        max_events=settings.MAX_BATCH_EVENTS,
        max_event_bytes=settings.MAX_EVENT_BYTES,
    )


def _throttle(request: Request, events: int) -> dict[str, str]:
    """Count `events` against the organization's rate limit; return the headers that tell what is left.

    Raises Problem 429 over the limit, 413 for a batch that is larger than the limit.
    """
    per_minute = caller_of(request).events_per_minute
    if per_minute == 0:
        return {}
    if events > per_minute:
        raise Problem(
            "too_many_events",
            f"The batch holds {events} events; the organization may send {per_minute} a minute.",
            extra={"limit_events": per_minute},
        )
    decision = hit(POLICY, str(caller_of(request).organization_id), per_minute, events)
    headers = decision.headers(POLICY)
    if not decision.allowed:
        raise Problem("rate_limited", f"The organization may send {per_minute} events a minute.", headers=headers)
    return headers


def _require_room(events: int) -> None:
    """Raise Problem 503 while too many accepted events await their fan-out."""
    if not backlog.has_room(events):
        raise Problem(
            "backlog_full",
            "Too many accepted events are waiting. Nothing was stored; try again.",
            headers={"Retry-After": "5"},
        )


@contextmanager
def _failure_logged(request: Request, events: Sequence[NewEvent], started: float) -> Iterator[None]:
    """Log each of the events with the outcome `error` when storing them raises."""
    try:
        yield
    except Exception as error:
        for event in events:
            log.warning(
                "event_ingested",
                outcome="error",
                error=type(error).__name__,
                type=event.type,
                organization_id=str(caller_of(request).organization_id),
                duration_ms=round((time.perf_counter() - started) * 1000, 3),
            )
        raise


def _log_result(request: Request, result: Ingested, event_type: str, started: float) -> None:
    log.info(
        "event_ingested",
        outcome=_LOGGED[result.status],
        event_id=result.event_id,
        type=event_type,
        organization_id=caller_of(request).organization_id,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
    )


def _respond(result: Ingested, headers: dict[str, str]) -> HttpResponse:
    """Return the 202 or 200 for an event.  Raises Problem 409 for a conflict."""
    location = full_path(f"/api/events/{result.event_id}")
    if result.status is IngestStatus.CONFLICT:
        raise Problem(
            "dedup_conflict",
            "This dedup_id was used for an event with other content.",
            errors=[("/dedup_id", f"stands for the event {result.event_id}, whose content differs")],
            headers={"Location": location},
            extra={"event_id": str(result.event_id)},
        )
    status = 202 if result.status is IngestStatus.ACCEPTED else 200
    return json_response(_receipt.to_representation(result), status, {"Location": location, **headers})


_receipt = shapes.EventReceipt()


class EventListView(KeyRecallView):
    """Accepting and listing events."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "POST": Scope.EVENTS_WRITE}

    @extend_schema(
        operation_id="createEvent",
        tags=["Events"],
        summary="Send an event",
        parameters=[location(200, 202), *rate_limit(200, 202)],
        request=shapes.NewEvent,
        responses={
            202: OpenApiResponse(shapes.EventReceipt, "Accepted: the event is committed.", [openapi.ACCEPTED]),
            200: OpenApiResponse(
                shapes.EventReceipt,
                "A retry: an event with this `dedup_id` and content is there.",
                [openapi.DUPLICATE],
            ),
            **conflict("dedup_conflict"),
        },
        examples=[
            OpenApiExample("event", openapi.ORDER, request_only=True),
            OpenApiExample("payload for data", openapi.ORDER_AS_PAYLOAD, request_only=True),
        ],
    )
    def post(self, request: Request) -> HttpResponse:
        """Accept one event: 202 when it is committed, 200 for a retry, 409 for a reused dedup id."""
        started = time.perf_counter()
        event = _parse(request)
        headers = _throttle(request, 1)
        _require_room(1)
        with _failure_logged(request, [event], started):
            result = self.ingest(request, event)
        _log_result(request, result, event.type, started)
        if result.status is IngestStatus.ACCEPTED:
            wake_soon(EVENTS)
        return _respond(result, headers)

    @extend_schema(
        operation_id="listEvents",
        tags=["Events"],
        summary="List events",
        parameters=[
            query("type", "Only events of exactly this type."),
            query("status", "Only events in this state.", enum=EventStatus.values),
            query("undelivered", "`true`: only what some subscription hasn't received.", OpenApiTypes.BOOL),
            SINCE,
            UNTIL,
            *PAGE,
        ],
        responses=shapes.EventPage,
    )
    def get(self, request: Request) -> Response:
        """List the organization's events, newest first."""
        parameters = parse_parameters(
            request,
            {
                "type": text,
                "status": one_of(*EventStatus.values),
                "since": moment,
                "until": moment,
                "undelivered": boolean,
                **PAGE_PARAMETERS,
            },
        )
        rows = find_events(caller_of(request).organization_id, parameters)
        by_id = parameters.get("undelivered", False)
        return Response(page(rows, parameters, shapes.EventOut().to_representation, by_id=by_id))


class EventBatchView(APIView):
    """Accepting many events in one request."""

    scopes: ClassVar = {"POST": Scope.EVENTS_WRITE}
    parser_classes = (JSONBody, NDJSONBody)

    @extend_schema(
        operation_id="createEvents",
        tags=["Events"],
        summary="Send many events",
        parameters=rate_limit(200, 202),
        request={
            "application/json": OpenApiRequest(
                openapi.NEW_EVENTS, examples=[OpenApiExample("array", [openapi.ORDER, openapi.ORDER_AS_PAYLOAD])]
            ),
            "application/x-ndjson": OpenApiRequest(
                openapi.NDJSON, examples=[OpenApiExample("lines", openapi.NDJSON_EXAMPLE)]
            ),
        },
        responses={
            202: OpenApiResponse(
                shapes.BatchReceipt,
                "At least one item was accepted and is committed.",
                [OpenApiExample("mixed", openapi.BATCH_RECEIPT)],
            ),
            200: OpenApiResponse(shapes.BatchReceipt, "No item was accepted; each says why."),
        },
    )
    def post(self, request: Request) -> Response:
        """Accept up to MAX_BATCH_EVENTS events in one transaction and say in order what became of each.

        202 when at least one item was accepted, 200 when none was but all were read: every item's
        own `status` is what counts. An array that isn't JSON as a whole is refused as a whole; of
        NDJSON each line is judged alone.
        """
        started = time.perf_counter()
        items = _parse_items(request)
        valid = [item for item in items if isinstance(item, NewEvent)]
        headers: dict[str, str] = {}
        results: list[Ingested] = []
        if valid:
            headers = _throttle(request, len(valid))
            _require_room(len(valid))
            with _failure_logged(request, valid, started):
                results = ingest_batch(caller_of(request).organization_id, valid)
        for event, result in zip(valid, results, strict=True):
            _log_result(request, result, event.type, started)
        accepted = sum(result.status is IngestStatus.ACCEPTED for result in results)
        if accepted:
            wake_soon(EVENTS)
        remaining = iter(results)
        became = [next(remaining) if isinstance(item, NewEvent) else item for item in items]
        item_receipt = shapes.BatchItemReceipt()
        body = {"accepted": accepted, "data": [item_receipt.to_representation(one) for one in became]}
        return Response(body, status=202 if accepted else 200, headers=headers)


class EventView(APIView):
    """One event."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ}

    @extend_schema(
        operation_id="getEvent", tags=["Events"], summary="Read an event", responses=shapes.EventWithDeliveries
    )
    def get(self, request: Request, event_id: uuid.UUID) -> Response:
        """Return the event with a line for each of its deliveries."""
        event = Event.objects.filter(organization_id=caller_of(request).organization_id, id=event_id).first()
        if event is None:
            raise not_found()
        lines = delivery_lookup().of_event(event.id, MOST_DELIVERIES)
        return Response(shapes.EventWithDeliveries().to_representation((event, lines)))
