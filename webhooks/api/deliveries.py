"""`/api/deliveries`."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core.db import after_transaction
from core.json_body import read_object
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, path_id, query
from core.problems import Problem, invalid, no_such, not_found
from core.query import PAGE_PARAMETERS, identifier, moment, one_of, page, parse_parameters
from core.url_prefix import full_path
from core.wakeups import WEBHOOKS, wake
from events.models import ERASED, Event
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.scopes import Scope
from webhooks import delivery_actions
from webhooks.api import bulk_retries, openapi
from webhooks.api.delivery_serializers import (
    AttemptWithExchangeSerializer,
    DeliverySerializer,
    DeliveryWithAttemptsSerializer,
    render_attempt,
    render_delivery,
)
from webhooks.api.viewsets import OrganizationViewSet
from webhooks.attempts import describe_exchange, exchange_of, request_body
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import matching_deliveries
from webhooks.models import Delivery, DeliveryAttempt
from webhooks.ordering_keys import waits_for
from webhooks.states import DeliveryState, state_of

MAX_ATTEMPTS_SHOWN = 1000
MAX_ATTEMPT_NUMBER = 2**31 - 1  # of the column


# Two names for one parameter: that of the response's member, and the one that `matching_deliveries` has.
_OTHER_NAMES = {"event_id": "event", "subscription_id": "subscription", "state": "status"}


def _use_one_name(parameters: dict[str, Any]) -> None:
    """Give each parameter the name that `matching_deliveries` has for it.  Raises Problem 400 for two values."""
    for name, other in _OTHER_NAMES.items():
        if name in parameters and parameters.setdefault(other, parameters[name]) != parameters[name]:
            raise invalid([(f"?{name}", f"is another name for {other}, which has another value")])


class DeliveryViewSet(OrganizationViewSet[Delivery]):
    """The organization's deliveries."""

    what = "delivery"
    action_scopes: ClassVar = {
        "list": Scope.DELIVERIES_READ,
        "retrieve": Scope.DELIVERIES_READ,
        "attempt": Scope.DELIVERIES_READ,
        "retry": Scope.DELIVERIES_RETRY,
        "skip": Scope.DELIVERIES_RETRY,
        "retry_many": Scope.DELIVERIES_RETRY,
        "retry_run": Scope.DELIVERIES_RETRY,
    }

    def own_rows(self, request: Request) -> QuerySet[Delivery]:
        return matching_deliveries({"org": caller_of(request).organization_id})

    @extend_schema(
        operation_id="listDeliveries",
        tags=["Deliveries"],
        summary="List deliveries",
        parameters=[
            query("event_id", "Only deliveries of this event.", OpenApiTypes.UUID),
            query("subscription_id", "Only deliveries to this subscription.", OpenApiTypes.UUID),
            query("event", "Another name for `event_id`.", OpenApiTypes.UUID),
            query("subscription", "Another name for `subscription_id`.", OpenApiTypes.UUID),
            query("state", "Another name for `status`.", enum=DeliveryState.values),
            query(
                "status",
                "Only deliveries with this status. `pending` are those that wait for their first attempt; those that "
                "failed and wait for another one are `retrying`. What a consumer has fetched from an inbox is "
                "`delivering` until it is acknowledged or its lease ends.",
                enum=DeliveryState.values,
            ),
            SINCE,
            UNTIL,
            *PAGE,
        ],
        responses=openapi.DeliveryPage,
    )
    def list(self, request: Request) -> Response:
        """List deliveries."""
        parameters = parse_parameters(
            request,
            {
                "event_id": identifier,
                "subscription_id": identifier,
                "state": one_of(*DeliveryState.values),
                "event": identifier,
                "subscription": identifier,
                "status": one_of(*DeliveryState.values),
                "since": moment,
                "until": moment,
                **PAGE_PARAMETERS,
            },
        )
        _use_one_name(parameters)
        names = ("event", "subscription", "status", "since", "until")
        filters = {name: parameters[name] for name in names if name in parameters}
        rows = matching_deliveries({**filters, "org": caller_of(request).organization_id})
        return Response(page(rows, parameters, render_delivery))

    @extend_schema(
        operation_id="getDelivery",
        tags=["Deliveries"],
        summary="Get a delivery",
        responses=DeliveryWithAttemptsSerializer,
    )
    def retrieve(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Return the delivery with its attempts, the oldest first."""
        delivery = self.own_row(request, delivery_id)
        # Without their exchanges, which `attempt` shows, and without those made since the delivery was read, which its
        # status doesn't reflect.
        attempts = DeliveryAttempt.objects.filter(delivery_id=delivery.id, number__lte=delivery.attempt_count)
        attempts = attempts.defer("sealed_exchange").order_by("number")[:MAX_ATTEMPTS_SHOWN]
        shown = {**render_delivery(delivery), "waits_for": waits_for(delivery)}
        return Response({**shown, "attempts": [render_attempt(attempt) for attempt in attempts]})

    @extend_schema(
        operation_id="getDeliveryAttempt",
        tags=["Deliveries"],
        summary="Get an attempt with what was sent and received",
        parameters=[OpenApiParameter("number", int, OpenApiParameter.PATH, description="1 is the first.")],
        responses=AttemptWithExchangeSerializer,
    )
    def attempt(self, request: Request, delivery_id: uuid.UUID, number: int) -> Response:
        """Return an attempt with its exchange.

        What the request says of the event, its body and the `ce-` headers of CloudEvents, is shown to keys with the
        scope `events:read`.
        """
        delivery = self.own_row(request, delivery_id)
        attempt = None
        if number <= MAX_ATTEMPT_NUMBER:
            attempt = DeliveryAttempt.objects.filter(delivery_id=delivery.id, number=number).first()
        if attempt is None:
            raise not_found("The delivery has no attempt with this number.")
        exchange = exchange_of(attempt)
        body = None
        shows_event = Scope.EVENTS_READ in caller_of(request).scopes
        if exchange is not None and shows_event:
            body = request_body(delivery.event, exchange)
        return Response(
            {
                **render_attempt(attempt),
                "delivery_id": delivery.id,
                "event_id": delivery.event_id,
                "exchange": None if exchange is None else describe_exchange(exchange, body, shows_event=shows_event),
            }
        )

    @extend_schema(
        operation_id="retryDelivery",
        tags=["Deliveries"],
        summary="Retry a delivery now",
        request=None,
        responses={
            202: OpenApiResponse(DeliverySerializer, "The delivery is due now."),
            **conflict("not_retryable"),
        },
    )
    @idempotent()
    def retry(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Make one more attempt now. A delivery that can't be attempted is a 409 that says why."""
        delivery = self.own_row(request, delivery_id)
        if Event.objects.filter(pk=delivery.event_id, data=ERASED).exists():  # without reading the payload
            raise Problem(
                "not_retryable", delivery_actions.why_not_retryable(delivery),
                extra={"delivery_status": state_of(delivery)},
            )  # fmt: skip
        with transaction.atomic():
            changed = delivery_actions.apply(DeliveryAction.RETRY, [delivery.id], announce=False)
            if changed:
                about = Delivery.objects.filter(pk=delivery.id).values_list("event__type", "subscription__url")
                name = " to ".join(about.get())
                audit.record_for_caller(request, "delivery.retry", delivery.id, name=name)
        delivery = self.own_row(request, delivery_id)  # as it is by now, with what the response needs
        if not changed:
            reason = delivery_actions.why_not_retryable(delivery)
            raise Problem("not_retryable", reason, extra={"delivery_status": state_of(delivery)})
        after_transaction(lambda: wake(WEBHOOKS))
        return Response(render_delivery(delivery), status=202)

    @extend_schema(
        operation_id="skipDelivery",
        tags=["Deliveries"],
        summary="Give up a delivery of an ordering key",
        request=None,
        responses={
            200: OpenApiResponse(DeliverySerializer, "The delivery is cancelled, and its key goes on."),
            **conflict("not_skippable"),
        },
    )
    @idempotent()
    def skip(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Cancel a delivery that later ones of its ordering key wait for, be it `failed` or still to be sent.

        The next one of the key is sent, whatever the subscription's `ordered_on_failure`. One that can't be skipped is
        a 409 that says why.
        """
        delivery = self.own_row(request, delivery_id)
        with transaction.atomic():
            changed = delivery_actions.apply(DeliveryAction.SKIP, [delivery.id], announce=False)
            if changed:
                about = Delivery.objects.filter(pk=delivery.id).values_list("event__type", "subscription__url")
                audit.record_for_caller(request, "delivery.skip", delivery.id, name=" to ".join(about.get()))
        delivery = self.own_row(request, delivery_id)
        if not changed:
            reason = delivery_actions.why_not_skippable(delivery)
            raise Problem("not_skippable", reason, extra={"delivery_status": state_of(delivery)})
        after_transaction(lambda: wake(WEBHOOKS))
        return Response(render_delivery(delivery))

    @extend_schema(
        operation_id="retryDeliveries",
        tags=["Deliveries"],
        summary="Retry many deliveries",
        parameters=[location(202)],
        request=bulk_retries.BulkRetrySerializer,
        responses={202: OpenApiResponse(bulk_retries.RetryRunSerializer, "The retries run in the background.")},
        examples=[OpenApiExample("what failed since", bulk_retries.EXAMPLE, request_only=True)],
    )
    @idempotent()
    def retry_many(self, request: Request) -> Response:
        """Make one more attempt of each delivery that matches all of what is given.

        By default, those are the deliveries that failed or are retrying; with the `status` `delivered`, those that were
        delivered are sent again. A request for the same while a run is under way returns that run.
        """
        run = bulk_retries.start(request, read_object(request))
        return Response(
            dict(bulk_retries.RetryRunSerializer(run).data),
            status=202,
            headers={"Location": full_path(f"/api/retries/{run.id}")},
        )

    @extend_schema(
        operation_id="getRetryRun",
        tags=["Deliveries"],
        summary="Get the progress of a retry of many",
        parameters=[path_id("retry_id", "The id that `POST /api/deliveries/retry` returned.")],
        responses=bulk_retries.RetryRunSerializer,
    )
    def retry_run(self, request: Request, retry_id: uuid.UUID) -> Response:
        """Return the run's progress."""
        run = bulk_retries.own_run(caller_of(request).organization_id, retry_id)
        if run is None:
            raise no_such("retry of many deliveries")
        return Response(dict(bulk_retries.RetryRunSerializer(run).data))
