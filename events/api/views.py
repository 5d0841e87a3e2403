"""`/api/events`: accept events and read them back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import structlog
from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiRequest, OpenApiResponse, extend_schema
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.drf import JSONBody, NDJSONBody
from core.json_body import read_body, require_media_type
from core.json_response import json_response
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, query, rate_limit
from core.problems import Problem, not_found
from core.query import PAGE_PARAMETERS, boolean, moment, one_of, page, parse_parameters, text
from core.ratelimits import RateLimitDecision, hit
from core.wakeups import EVENTS, wake_soon
from events import backlog, ingest, queries
from events.api import openapi
from events.ingest import Ingested, Outcome
from events.models import Event, EventStatus
from events.payload import NewEvent, parse_batch, parse_event
from orgs.authentication import ApiKeyAuthentication, ask_again, caller_of, recalled_caller_of
from orgs.models import Scope

log = structlog.get_logger()

# The words that operators' dashboards look for.
_LOGGED = {Outcome.ACCEPTED: "persisted", Outcome.DUPLICATE: "duplicate", Outcome.CONFLICT: "already_exists"}


def _throttle(request: Request, cost: int) -> RateLimitDecision | None:
    """Count the events against the organization's rate.

    Raises Problem 429 over it, 413 for a batch that could never pass.
    """
    per_minute = caller_of(request).events_per_minute
    if per_minute == 0:
        return None
    if cost > per_minute:
        raise Problem(
            413,
            "too_many_events",
            f"The batch holds {cost} events; the organization may send {per_minute} a minute.",
            extra={"limit_events": per_minute},
        )
    verdict = hit("events", str(caller_of(request).organization_id), per_minute, cost)
    if not verdict.allowed:
        raise Problem(
            429,
            "rate_limited",
            f"The organization may send {per_minute} events a minute.",
            headers=verdict.headers("events"),
        )
    return verdict


def _require_room(events: int) -> None:
    """Raise Problem 503 while too many accepted events wait for their fan-out."""
    if not backlog.has_room(events):
        raise Problem(
            503,
            "backlog_full",
            "Too many accepted events are waiting. Nothing was stored; try again.",
            headers={"Retry-After": "5"},
        )


def _log_outcome(request: Request, result: Ingested, event_type: str, started: float) -> None:
    log.info(
        "event_ingested",
        outcome=_LOGGED[result.outcome],
        event_id=result.event_id,
        type=event_type,
        organization_id=caller_of(request).organization_id,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
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


class EventListView(APIView):
    """Accepting and listing events."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "POST": Scope.EVENTS_WRITE}

    @extend_schema(
        operation_id="createEvent",
        tags=["Events"],
        summary="Send an event",
        parameters=[location(200, 202), *rate_limit(200, 202)],
        request=openapi.NewEvent,
        responses={
            202: OpenApiResponse(openapi.EventReceipt, "Accepted: the event is committed.", [openapi.ACCEPTED]),
            200: OpenApiResponse(
                openapi.EventReceipt,
                "A retry: an event with this `dedup_id` and content is there.",
                [openapi.DUPLICATE],
            ),
            **conflict(
                "The `dedup_id` stands for an event with other content; nothing was stored. `Location` and `event_id` "
                "name that event.",
                "dedup_conflict",
                "This dedup_id was used for an event with other content.",
                event_id=openapi.EVENT_ID,
                errors=[
                    {
                        "pointer": "/dedup_id",
                        "detail": f"stands for the event {openapi.EVENT_ID}, whose content differs",
                    }
                ],
            ),
        },
        examples=[
            OpenApiExample("event", openapi.ORDER, request_only=True),
            OpenApiExample("payload for data", openapi.ORDER_AS_PAYLOAD, request_only=True),
        ],
    )
    def post(self, request: Request) -> HttpResponse:
        """Accept one event: 202 when it is committed, 200 for a retry, 409 for a reused dedup id."""
        try:
            return self._accept(request)
        except Problem:
            # Was it refused for what its key was a moment ago?
            if not ask_again(request, self):
                raise
        return self._accept(request)

    def get_authenticators(self) -> list[BaseAuthentication]:
        """Let a POST recall its key: the statement that stores the event makes sure of it."""
        if self.request is not None and self.request.method == "POST":  # None: for the OpenAPI description
            return [ApiKeyAuthentication(recall_for=Scope.EVENTS_WRITE)]
        return super().get_authenticators()

    def _accept(self, request: Request) -> HttpResponse:
        started = time.perf_counter()
        require_media_type(request, "application/json")
        event = parse_event(read_body(request._request, settings.MAX_EVENT_BYTES))
        verdict = _throttle(request, 1)
        _require_room(1)
        with _failure_logged(request, [event], started):
            result = self._ingest(request, event)
        _log_outcome(request, result, event.type, started)
        location = f"/api/events/{result.event_id}"
        headers = {"Location": location, **(verdict.headers("events") if verdict else {})}
        if result.outcome is Outcome.CONFLICT:
            raise Problem(
                409,
                "dedup_conflict",
                "This dedup_id was used for an event with other content.",
                errors=[("/dedup_id", f"stands for the event {result.event_id}, whose content differs")],
                headers={"Location": location},
                extra={"event_id": str(result.event_id)},
            )
        if result.outcome is Outcome.DUPLICATE:
            body = {"id": str(result.event_id), "status": "duplicate", "message": "Event was accepted before"}
            return json_response(body, status=200, headers=headers)
        wake_soon(EVENTS)
        body = {"id": str(result.event_id), "status": "accepted", "message": "Event queued for processing"}
        return json_response(body, status=202, headers=headers)

    def _ingest(self, request: Request, event: NewEvent) -> Ingested:
        recalled = recalled_caller_of(request)
        result = ingest.ingest_for(recalled, event) if recalled else None
        if result is None:
            ask_again(request, self)
            result = ingest.ingest(caller_of(request).organization_id, event)
        return result

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
        responses=openapi.EventPage,
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
        rows = queries.find_events(caller_of(request).organization_id, parameters)
        by_id = parameters.get("undelivered", False)
        return Response(page(rows, parameters, queries.render_event, by_id=by_id))


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
                openapi.BatchReceipt,
                "At least one item was accepted and is committed.",
                [OpenApiExample("mixed", openapi.BATCH_RECEIPT)],
            ),
            200: OpenApiResponse(openapi.BatchReceipt, "No item was accepted; each says why."),
        },
    )
    def post(self, request: Request) -> Response:
        """Accept up to MAX_BATCH_EVENTS events in one transaction and answer for each in order.

        202 when at least one item was accepted, 200 when none was but all were read: every item's
        own `status` is what counts. An array that isn't JSON as a whole is refused as a whole; of
        NDJSON each line is judged alone.
        """
        started = time.perf_counter()
        media_type = require_media_type(request, "application/json", "application/x-ndjson")
        items = parse_batch(
            read_body(request._request, settings.MAX_BATCH_BYTES),
            ndjson=media_type == "application/x-ndjson",
            max_events=settings.MAX_BATCH_EVENTS,
            max_event_bytes=settings.MAX_EVENT_BYTES,
        )
        valid = [item for item in items if isinstance(item, NewEvent)]
        headers: dict[str, str] = {}
        results: list[Ingested] = []
        if valid:
            verdict = _throttle(request, len(valid))
            headers = verdict.headers("events") if verdict else {}
            _require_room(len(valid))
            with _failure_logged(request, valid, started):
                results = ingest.ingest_batch(caller_of(request).organization_id, valid)
        for event, result in zip(valid, results, strict=True):
            _log_outcome(request, result, event.type, started)
        accepted = sum(result.outcome is Outcome.ACCEPTED for result in results)
        if accepted:
            wake_soon(EVENTS)
        remaining = iter(results)
        data: list[dict[str, Any]] = []
        for item in items:
            if isinstance(item, NewEvent):
                result = next(remaining)
                data.append({"status": result.outcome.value, "id": str(result.event_id)})
            else:
                errors = [{"pointer": pointer, "detail": reason} for pointer, reason in item]
                data.append({"status": "invalid", "errors": errors})
        body = {"accepted": accepted, "data": data}
        return Response(body, status=202 if accepted else 200, headers=headers)


class EventView(APIView):
    """One event."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ}

    @extend_schema(
        operation_id="getEvent", tags=["Events"], summary="Read an event", responses=openapi.EventWithDeliveries
    )
    def get(self, request: Request, event_id: uuid.UUID) -> Response:
        """Return the event with a line for each of its deliveries."""
        event = Event.objects.filter(organization_id=caller_of(request).organization_id, id=event_id).first()
        if event is None:
            raise not_found()
        return Response({**queries.render_event(event), "deliveries": queries.render_deliveries(event)})
