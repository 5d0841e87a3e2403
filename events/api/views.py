"""`/api/events`: accept events and read them back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import ClassVar

from django.db import transaction
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiRequest, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.db import after_transaction
from core.drf import JSONBody, NDJSONBody
from core.json_body import read_body
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, query, rate_limit
from core.problems import Problem, no_such
from core.query import PAGE_PARAMETERS, boolean, moment, one_of, page, parse_parameters, text
from core.ratelimits import RateLimitDecision
from core.wakeups import EVENTS, wake_soon
from events import cloudevents, event_types, rate
from events.api import openapi
from events.api import serializers as shapes
from events.api.body_formats import Reading, reading_of_batch, reading_of_event
from events.api.receipts import (
    accepted_count,
    batch_receipt,
    receipt,
    validate_only,
    validated_batch_receipt,
    validated_receipt,
)
from events.api.serializers import FieldErrors
from events.backlog import require_room
from events.delivery_lookup import delivery_lookup
from events.erasure import erase
from events.ingest import Ingested, IngestStatus, ingest, ingest_batch
from events.ingest_log import count_conflicts, count_events, failure_logged, log_result
from events.models import Event, EventStatus
from events.origin import Origin, origin_of
from events.payload import NewEvent
from events.queries import find_events, type_pattern
from events.tracing import traced
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import HEADER, idempotent
from orgs.keys import Caller
from orgs.models import Strictness
from orgs.scopes import Scope

MOST_DELIVERIES = 1000  # of an event, in one response
_PARSED = "triggers.parsed"


def _reading(request: Request) -> Reading:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return reading_of_event(request.content_type, headers)


def _read(request: Request, reading: Reading) -> bytes:
    return read_body(request._request, reading.limit)


def _content(request: Request, reading: Reading) -> bytes:
    """Return what makes two requests with an `Idempotency-Key` the same."""
    return reading.content(_read(request, reading))


def _origin(request: Request) -> Origin:
    headers = request.headers
    return origin_of(request._request.request_id, headers.get("traceparent"), headers.get("tracestate"))  # type: ignore[attr-defined]


def _replaying(request: Request) -> Mapping[str, str]:
    return rate.headers(rate.count_replay(caller_of(request)), rate.REPLAYS)


def _count_conflicts(request: Request, reading: Reading, *, is_batch: bool = False) -> None:
    """Count the events of a request whose key is taken, as far as they can be read."""
    with suppress(Problem):
        body = _read(request, reading)
        items = reading.items(body) if reading.is_batch or is_batch else [reading.event(body)]
        count_conflicts(sum(isinstance(item, NewEvent) for item in items))


def _event(request: Request, reading: Reading) -> NewEvent:
    """Return the event of a request, which is read and checked once."""
    if _PARSED not in request.META:
        event = reading.event(_read(request, reading))
        caller = caller_of(request)
        if caller.strictness != Strictness.FREE and (errors := event_types.catalog.check(caller, [event])[0]):
            raise event_types.refused(errors)
        request.META[_PARSED] = event
    found: NewEvent = request.META[_PARSED]
    return found


def _items(request: Request, reading: Reading) -> list[NewEvent | FieldErrors]:
    """Return the items of a batch, which are read and checked once."""
    if _PARSED not in request.META:
        items = reading.items(_read(request, reading))
        caller = caller_of(request)
        if caller.strictness != Strictness.FREE and (valid := _valid(items)):
            items = event_types.replace_refused(items, event_types.catalog.check(caller, valid))
        request.META[_PARSED] = items
    found: list[NewEvent | FieldErrors] = request.META[_PARSED]
    return found


def _valid(items: Sequence[NewEvent | FieldErrors]) -> list[NewEvent]:
    return [item for item in items if isinstance(item, NewEvent)]


def _admit(request: Request, caller: Caller, events: int) -> RateLimitDecision | None:
    """Check the limits in the order of the front door: a request that finds no room uses up none of the rate."""
    rate.require_possible(caller, events)
    require_room(caller.organization_id, events)
    return rate.count(caller, events, request.META)


def _admit_beforehand(request: Request, reading: Reading, *, is_batch: bool = False) -> None:
    """Admit a request with a key before its transaction begins, because in one nothing may wait for Redis."""
    if HEADER not in request.headers or validate_only(request):
        return
    events = _valid(_items(request, reading)) if is_batch or reading.is_batch else [_event(request, reading)]
    if events:
        _admit(request, caller_of(request), len(events))


def _report(
    caller: Caller, events: Sequence[NewEvent], results: Sequence[Ingested], started: float, invalid: int = 0
) -> None:
    """Count and log what became of the events of a request, and wake the workers."""
    count_events(results, invalid)
    for event, result in zip(events, results, strict=True):
        log_result(caller.organization_id, event, result, started)
    if accepted_count(results):
        wake_soon(EVENTS)


def _accept_items(request: Request, route: str, reading: Reading, started: float) -> Response:
    """Accept the events of a batch, or only check them."""
    only_validate = validate_only(request)
    items = _items(request, reading)
    valid = _valid(items)
    caller = caller_of(request)
    if only_validate:
        return Response(validated_batch_receipt(items).document)
    decision = None
    results: list[Ingested] = []
    if valid:
        decision = _admit(request, caller, len(valid))
        with (
            failure_logged(caller.organization_id, valid, started),
            traced(_origin(request), route, caller.organization_id, valid, started) as origin,
        ):
            results = ingest_batch(caller.organization_id, valid, origin)
    after_transaction(lambda: _report(caller, valid, results, started, len(items) - len(valid)))
    made = batch_receipt(items, results)
    return Response(made.document, made.status, headers=rate.headers(decision))


class EventListView(APIView):
    """Accepting and listing events."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "POST": Scope.EVENTS_WRITE}

    @extend_schema(
        operation_id="createEvent",
        tags=["Events"],
        summary="Send an event",
        parameters=[
            openapi.VALIDATE_ONLY,
            *openapi.TRACE,
            *openapi.BINARY_MODE,
            location(200, 202),
            *rate_limit(200, 202),
        ],
        request={
            "application/json": OpenApiRequest(
                shapes.NewEvent,
                examples=[OpenApiExample("event", openapi.ORDER)],
            ),
            cloudevents.STRUCTURED: OpenApiRequest(
                openapi.CLOUDEVENT_SCHEMA, examples=[OpenApiExample("CloudEvent", openapi.CLOUDEVENT)]
            ),
            # A batch of CloudEvents has another response, which would make clients of this schema take a union of both:
            # they send one to /api/events/batch.
        },
        responses={
            202: OpenApiResponse(shapes.EventReceipt, "Accepted: the event is committed.", [openapi.ACCEPTED]),
            200: OpenApiResponse(
                shapes.EventNotStored,
                "A duplicate: an event with this `dedup_id` and content was accepted before. Or, with `validate_only`, "
                "an event that is valid.",
                [openapi.DUPLICATE, openapi.VALID],
            ),
            **conflict("dedup_conflict"),
        },
    )
    @idempotent(
        read=lambda request: _content(request, _reading(request)),
        unless=validate_only,
        is_secret=False,
        beforehand=lambda view, request: _admit_beforehand(request, _reading(request)),
        replaying=_replaying,
        conflicting=lambda request: _count_conflicts(request, _reading(request)),
    )
    def post(self, request: Request) -> Response:
        """Accept one event: 202 once it is committed, 200 for a duplicate, 409 for a dedup id of another event.

        The event may be a CloudEvent 1.0 in structured or binary mode. A batch of CloudEvents gets the same response as
        `POST /api/events/batch`. The body may be compressed with gzip (`Content-Encoding: gzip`).
        """
        started = time.perf_counter()
        only_validate = validate_only(request)
        reading = _reading(request)
        if reading.is_batch:
            return _accept_items(request, "/api/events", reading, started)
        event = _event(request, reading)
        caller = caller_of(request)
        if only_validate:
            return Response(validated_receipt(event).document)
        decision = _admit(request, caller, 1)
        with (
            failure_logged(caller.organization_id, [event], started),
            traced(_origin(request), "/api/events", caller.organization_id, [event], started) as origin,
        ):
            result = ingest(caller.organization_id, event, origin)
        # A conflict is refused, and counts all the same.
        is_conflict = result.status is IngestStatus.CONFLICT
        after_transaction(lambda: _report(caller, [event], [result], started), even_if_it_fails=is_conflict)
        made = receipt(result)
        return Response(made.document, made.status, headers={**made.headers, **rate.headers(decision)})

    @extend_schema(
        operation_id="listEvents",
        tags=["Events"],
        summary="List events",
        parameters=[
            query("type", "Only events of this type (`order.created`) or with this prefix (`order.*`)."),
            query("status", "Only events with this status.", enum=EventStatus.values),
            query("undelivered", "`true`: only events that some subscription hasn't received.", OpenApiTypes.BOOL),
            query("dedup_id", "Only events that were sent with this `dedup_id`."),
            SINCE,
            UNTIL,
            *PAGE,
        ],
        responses=shapes.EventPage,
    )
    def get(self, request: Request) -> Response:
        """List the organization's events."""
        parameters = parse_parameters(
            request,
            {
                "type": type_pattern,
                "status": one_of(*EventStatus.values),
                "since": moment,
                "until": moment,
                "dedup_id": text,
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
        parameters=[openapi.VALIDATE_ONLY, *openapi.TRACE, *rate_limit(200, 202)],
        request={
            "application/json": OpenApiRequest(
                openapi.NEW_EVENTS, examples=[OpenApiExample("array", [openapi.ORDER, openapi.PAYMENT])]
            ),
            "application/x-ndjson": OpenApiRequest(
                openapi.NDJSON, examples=[OpenApiExample("lines", openapi.NDJSON_EXAMPLE)]
            ),
            cloudevents.BATCH: OpenApiRequest(
                openapi.CLOUDEVENTS_SCHEMA, examples=[OpenApiExample("CloudEvents", [openapi.CLOUDEVENT])]
            ),
        },
        responses={
            202: OpenApiResponse(
                shapes.BatchReceipt,
                "At least one item was accepted and is committed.",
                [OpenApiExample("mixed", openapi.BATCH_RECEIPT)],
            ),
            200: OpenApiResponse(shapes.BatchReceipt, "No item was accepted. Each item says why."),
        },
    )
    @idempotent(
        read=lambda request: _content(request, reading_of_batch(request.content_type)),
        unless=validate_only,
        is_secret=False,
        beforehand=lambda view, request: _admit_beforehand(
            request, reading_of_batch(request.content_type), is_batch=True
        ),
        replaying=_replaying,
        conflicting=lambda request: _count_conflicts(request, reading_of_batch(request.content_type), is_batch=True),
    )
    def post(self, request: Request) -> Response:
        """Accept up to MAX_BATCH_EVENTS events in one transaction and return the result of each, in the same order.

        202 when at least one item was accepted, 200 when none was but all were read: every item's
        own `status` is what counts. An array that isn't JSON as a whole is refused as a whole; of
        NDJSON each line is judged alone. The body may be compressed with gzip (`Content-Encoding: gzip`).
        """
        started = time.perf_counter()
        return _accept_items(request, "/api/events/batch", reading_of_batch(request.content_type), started)


class EventView(APIView):
    """One event."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ}
    # For methods that it doesn't have.
    method_hints: ClassVar = {
        "DELETE": "Events stay until their retention ends; `DELETE /api/events/{id}/payload` erases what one says.",
        **dict.fromkeys(("PUT", "PATCH"), "Events can't be changed."),
    }

    @extend_schema(
        operation_id="getEvent", tags=["Events"], summary="Get an event", responses=shapes.EventWithDeliveries
    )
    def get(self, request: Request, event_id: uuid.UUID) -> Response:
        """Return the event with a summary of each of its deliveries."""
        event = Event.objects.filter(organization_id=caller_of(request).organization_id, id=event_id).first()
        if event is None:
            raise no_such("event")
        lines = delivery_lookup().of_event(event.id, MOST_DELIVERIES)
        return Response(shapes.EventWithDeliveries().to_representation((event, lines)))


class EventPayloadView(APIView):
    """What an event says."""

    scopes: ClassVar = {"DELETE": Scope.EVENTS_ERASE}

    @extend_schema(
        operation_id="eraseEventPayload",
        tags=["Events"],
        summary="Erase an event's payload",
        responses={204: OpenApiResponse(None, "Erased.")},
    )
    def delete(self, request: Request, event_id: uuid.UUID) -> Response:
        """Erase the event's `data`, what was sent of it, and what endpoints responded, for good.

        The event and its deliveries stay, without the exchanges of their attempts.

        Deliveries that are waiting are cancelled, and no later retry sends anything. A request that is on its way
        can't be called back; erase again once it has ended, to erase the response to it. Erasing again is a 204, too.
        """
        organization_id = caller_of(request).organization_id
        with transaction.atomic():
            event = erase(organization_id, event_id)
            if event is None:
                raise no_such("event")
            if not event.is_erased:  # as it was found
                audit.record_for_caller(request, "event.erase_payload", event_id, name=event.type)
        return Response(status=204)
