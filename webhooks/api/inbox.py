"""`/api/inbox`: fetching events instead of receiving webhooks.

The front door serves the routes that may wait (`inbox_door`).  These views describe all of them, and serve them where
Django runs under plain WSGI.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.json_body import read_object
from core.openapi import conflict, path_id, query, refusals
from orgs.authentication import caller_of
from orgs.scopes import Scope
from webhooks.api import inbox_requests as requests
from webhooks.api import inbox_serializers as shapes
from webhooks.api.inbox_requests import MAX_VISIBILITY, MAX_WAIT, Items
from webhooks.destinations.inbox import fetching
from webhooks.states import DeliveryState

# Here a request that waits holds a thread, so that at most a quarter of them may do so; others get what is there.
POLL_SECONDS = 0.25
_waiting_places = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 4))

_INBOX = query("inbox", "The inbox's name; without one, the `default` inbox, which is made at its first use.")
_TYPE = query("type", "Only events of this type, or of types with this prefix (`order.*`).")
_ITEM_ID = path_id("item_id", "The id of the event, or of its delivery.")
_EVENT_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
_LEASE_ID = "0198f2d1-0a00-7c10-8f00-5d3b2c1a0f9e"
_ACK = OpenApiExample("by event", {"lease_id": _LEASE_ID, "event_ids": [_EVENT_ID]}, request_only=True)
_SINGLE = OpenApiExample("under its lease", {"lease_id": _LEASE_ID}, request_only=True)
_NACK = OpenApiExample("in a minute", {"event_ids": [_EVENT_ID], "delay": 60}, request_only=True)
_EXTEND = OpenApiExample("five minutes", {"event_ids": [_EVENT_ID], "visibility": 300}, request_only=True)


def _number(name: str, least: float, most: float, default: float, description: str) -> OpenApiParameter:
    schema: dict[str, Any] = {"type": "number", "minimum": least, "maximum": most, "default": default}
    return OpenApiParameter(name, schema, OpenApiParameter.QUERY, description=description)


class InboxView(APIView):
    """Fetching events."""

    scopes: ClassVar = {"GET": Scope.INBOX_CONSUME}
    http_method_names = ["get", "options"]  # noqa: RUF012 - a HEAD must not lease anything

    @extend_schema(
        operation_id="fetchInbox",
        tags=["Inbox"],
        summary="Fetch events",
        parameters=[
            _INBOX,
            OpenApiParameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": fetching.MAX_EVENTS, "default": requests.DEFAULT_LIMIT},
                OpenApiParameter.QUERY,
                description="Maximum number of events. A response also ends after about 8 MiB of payloads.",
            ),
            _TYPE,
            _number("wait", 0, MAX_WAIT, 0, "If there is nothing, wait so many seconds for an event."),
            _number(
                "visibility",
                1,
                MAX_VISIBILITY,
                requests.DEFAULT_VISIBILITY,
                "How long, in seconds, the events are yours. What isn't acknowledged by then can be fetched again.",
            ),
            query(
                "cursor",
                "Read the inbox as a log, without leases: `next_cursor` of the previous page, empty for the oldest "
                "event, or `latest` for what comes next.",
            ),
            query("status", "With `cursor`: only events whose delivery has this status.", enum=DeliveryState.values),
            query("offset", "Only 0, for clients that send it.", OpenApiTypes.INT),
        ],
        responses={
            200: shapes.InboxPage,
            **refusals("inbox_not_found", "inbox_disabled", "too_many_subscriptions", "cursor_expired"),
        },
    )
    def get(self, request: Request) -> Response:
        """Lease events, the oldest first, and return them; acknowledge them before `lease_expires_at`.

        With `cursor`, the inbox is a log: nothing is leased, and `next_cursor` always says where to go on.
        """
        asked = requests.parse_query(request)
        caller = caller_of(request)
        inbox = requests.resolve(request._request, caller, asked.inbox)
        if asked.cursor is not None:
            place = requests.begin_log(inbox, asked.cursor)
            page = _wait(asked.wait, lambda: requests.read_log(inbox, asked, place), lambda page: bool(page.events))
            return Response(requests.show_log(inbox, page))
        lease_id, events = _wait(asked.wait, lambda: requests.fetch(inbox, asked), lambda got: bool(got[1]))
        return Response(requests.show_fetched(lease_id, events))


def _wait(seconds: float, look: Callable[[], Any], is_enough: Callable[[Any], bool]) -> Any:
    """Return what `look` finds, after `seconds` at the latest; at once where too many threads wait already."""
    found = look()
    if seconds and not is_enough(found) and _waiting_places.acquire(blocking=False):
        try:
            ends = time.monotonic() + seconds
            while not is_enough(found) and (left := ends - time.monotonic()) > 0:
                time.sleep(min(POLL_SECONDS, left))
                found = look()
        finally:
            _waiting_places.release()
    return found


class InboxStreamView(APIView):
    """The log as server-sent events.  The front door keeps the connection; here a response ends at once."""

    scopes: ClassVar = {"GET": Scope.INBOX_CONSUME}
    http_method_names = ["get", "options"]  # noqa: RUF012

    @extend_schema(
        operation_id="streamInbox",
        tags=["Inbox"],
        summary="Stream events",
        parameters=[
            _INBOX,
            _TYPE,
            query("cursor", "Where to begin, as for `GET /api/inbox`. Without one, with what comes next."),
            OpenApiParameter(
                "Last-Event-ID",
                str,
                OpenApiParameter.HEADER,
                description="The `id` of the last event that was received: the stream continues after it.",
            ),
        ],
        responses={
            (200, "text/event-stream"): OpenApiResponse(
                OpenApiTypes.STR, "Each event's `id` is a cursor, and its `data` an event as in the log."
            ),
            **refusals("inbox_not_found", "inbox_disabled", "too_many_subscriptions", "cursor_expired"),
        },
    )
    def get(self, request: Request) -> HttpResponse:
        """Send the inbox's log as server-sent events, and each further event as it comes. Nothing is leased.

        Without the front door, a response ends after the events that are there, and the client asks again.
        """
        asked = requests.parse_stream_query(request)
        inbox = requests.resolve(request._request, caller_of(request), asked.inbox)
        place = requests.begin_log(inbox, request.headers.get("Last-Event-ID") or asked.cursor or "")
        page = requests.read_log(inbox, asked, place)
        events = (requests.stream_event(inbox, event) for event in page.events)
        sent = [requests.stream_begin(inbox, place), *events, requests.stream_place(inbox, page.following)]
        return HttpResponse(b"".join(sent), content_type="text/event-stream")


class InboxAckView(APIView):
    """Acknowledging many events."""

    scopes: ClassVar = {"POST": Scope.INBOX_CONSUME}

    @extend_schema(
        operation_id="acknowledgeEvents",
        tags=["Inbox"],
        summary="Acknowledge events",
        request=shapes.ItemsIn,
        responses={
            200: shapes.Acknowledged,
            **refusals("inbox_not_found"),
        },
        examples=[_ACK],
    )
    def post(self, request: Request) -> Response:
        """Acknowledge up to 1,000 events, which are delivered then; each item has its own result.

        Doing it twice is harmless. With `lease_id`, an event that another consumer has fetched since is left to that
        one. An event may be acknowledged after its lease has ended, as long as no consumer has fetched it since.
        """
        items = requests.parse_items(read_object(request, requests.MAX_ITEMS_BYTES))
        return Response(requests.acknowledge(caller_of(request), items))


class InboxNackView(APIView):
    """Giving events back."""

    scopes: ClassVar = {"POST": Scope.INBOX_CONSUME}

    @extend_schema(
        operation_id="giveEventsBack",
        tags=["Inbox"],
        summary="Give events back",
        request=shapes.NackIn,
        responses={
            200: shapes.GivenBack,
            **refusals("inbox_not_found"),
        },
        examples=[_NACK],
    )
    def post(self, request: Request) -> Response:
        """End the leases of events, so that they can be fetched again, at once or after `delay`."""
        items = requests.parse_items(read_object(request, requests.MAX_ITEMS_BYTES), requests.DELAY)
        return Response(requests.give_back(caller_of(request), items))


class InboxExtendView(APIView):
    """Extending leases."""

    scopes: ClassVar = {"POST": Scope.INBOX_CONSUME}

    @extend_schema(
        operation_id="extendLeases",
        tags=["Inbox"],
        summary="Extend leases",
        request=shapes.ExtendIn,
        responses={
            200: shapes.Extended,
            **refusals("inbox_not_found"),
        },
        examples=[_EXTEND],
    )
    def post(self, request: Request) -> Response:
        """Let the leases of events end in `visibility` seconds from now."""
        items = requests.parse_items(read_object(request, requests.MAX_ITEMS_BYTES), requests.VISIBILITY)
        return Response(requests.extend(caller_of(request), items))


class InboxEventAckView(APIView):
    """Acknowledging one event."""

    scopes: ClassVar = {"POST": Scope.INBOX_CONSUME}

    @extend_schema(
        operation_id="acknowledgeEvent",
        tags=["Inbox"],
        summary="Acknowledge an event",
        parameters=[_ITEM_ID],
        request=shapes.SingleIn,
        responses={200: shapes.AcknowledgedOne, **conflict("not_acknowledged")},
        examples=[_SINGLE],
    )
    def post(self, request: Request, item_id: uuid.UUID) -> Response:
        """Acknowledge an event by its id, or by that of its delivery. Doing it twice is harmless."""
        items: Items = requests.parse_single(read_object(request))
        return Response(requests.acknowledge_one(caller_of(request), item_id, items))


class InboxAckEventView(InboxEventAckView):
    """The same at the URL of an earlier version."""

    @extend_schema(
        operation_id="acknowledgeEventAlias",
        tags=["Inbox"],
        summary="Acknowledge an event",
        parameters=[_ITEM_ID],
        request=shapes.SingleIn,
        responses={200: shapes.AcknowledgedOne, **conflict("not_acknowledged")},
        examples=[_SINGLE],
    )
    def post(self, request: Request, item_id: uuid.UUID) -> Response:
        """Acknowledge an event, as `POST /api/inbox/{item_id}/ack` does."""
        return super().post(request, item_id)
