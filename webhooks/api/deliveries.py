"""`/api/deliveries`."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core.openapi import PAGE, SINCE, UNTIL, conflict, query
from core.problems import Problem, not_found
from core.query import PAGE_PARAMETERS, identifier, moment, one_of, page, parse_parameters
from core.wakeups import WEBHOOKS, wake
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.models import Scope
from webhooks import delivery_actions
from webhooks.api import openapi
from webhooks.api.serializers import (
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
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus
from webhooks.states import DeliveryState, delivery_state

MAX_ATTEMPTS_SHOWN = 1000
MAX_ATTEMPT_NUMBER = 2**31 - 1  # of the column
_WHY_NOT_RETRYABLE = {
    DeliveryStatus.DELIVERING: "The delivery is being sent right now.",
    DeliveryStatus.HELD: "The delivery is held; enable its subscription first.",
    DeliveryStatus.CANCELLED: "The delivery was cancelled with its subscription.",
}


class DeliveryViewSet(OrganizationViewSet[Delivery]):
    """The organization's deliveries."""

    action_scopes: ClassVar = {
        "list": Scope.DELIVERIES_READ,
        "retrieve": Scope.DELIVERIES_READ,
        "attempt": Scope.DELIVERIES_READ,
        "retry": Scope.DELIVERIES_RETRY,
    }

    def own_rows(self, request: Request) -> QuerySet[Delivery]:
        return matching_deliveries({"org": caller_of(request).organization_id})

    @extend_schema(
        operation_id="listDeliveries",
        tags=["Deliveries"],
        summary="List deliveries",
        parameters=[
            query("event", "Only deliveries of this event.", OpenApiTypes.UUID),
            query("subscription", "Only deliveries to this subscription.", OpenApiTypes.UUID),
            query(
                "status",
                "Only deliveries with this status. `pending` are those that wait for their first attempt; those that "
                "failed and wait for another one are `retrying`.",
                enum=DeliveryState.values,
            ),
            SINCE,
            UNTIL,
            *PAGE,
        ],
        responses=openapi.DeliveryPage,
    )
    def list(self, request: Request) -> Response:
        """List deliveries, newest first."""
        parameters = parse_parameters(
            request,
            {
                "event": identifier,
                "subscription": identifier,
                "status": one_of(*DeliveryState.values),
                "since": moment,
                "until": moment,
                **PAGE_PARAMETERS,
            },
        )
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
        return Response({**render_delivery(delivery), "attempts": [render_attempt(attempt) for attempt in attempts]})

    @extend_schema(
        operation_id="getDeliveryAttempt",
        tags=["Deliveries"],
        summary="Get an attempt with what was sent and received",
        parameters=[OpenApiParameter("number", int, OpenApiParameter.PATH, description="1 is the first.")],
        responses=AttemptWithExchangeSerializer,
    )
    def attempt(self, request: Request, delivery_id: uuid.UUID, number: int) -> Response:
        """Return an attempt with its exchange. The request's body is shown to keys with the scope `events:read`."""
        delivery = self.own_row(request, delivery_id)
        attempt = None
        if number <= MAX_ATTEMPT_NUMBER:
            attempt = DeliveryAttempt.objects.filter(delivery_id=delivery.id, number=number).first()
        if attempt is None:
            raise not_found()
        exchange = exchange_of(attempt)
        body = None
        if exchange is not None and Scope.EVENTS_READ in caller_of(request).scopes:
            body = request_body(delivery.event, exchange)
        return Response(
            {
                **render_attempt(attempt),
                "delivery_id": delivery.id,
                "event_id": delivery.event_id,
                "exchange": None if exchange is None else describe_exchange(exchange, body),
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
    @idempotent(afterwards=lambda: wake(WEBHOOKS))
    def retry(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Make one more attempt now. A delivery that can't be attempted is a 409 that says why."""
        delivery = self.own_row(request, delivery_id)
        with transaction.atomic():
            changed = delivery_actions.apply(DeliveryAction.RETRY, [delivery.id], announce=False)
            if changed:
                about = Delivery.objects.filter(pk=delivery.id).values_list("event__type", "subscription__url")
                name = " to ".join(about.get())
                audit.record_for_caller(request, "delivery.retry", delivery.id, name=name)
        delivery = self.own_row(request, delivery_id)  # as it is by now, with what its answer needs
        if not changed:
            reason = _WHY_NOT_RETRYABLE.get(DeliveryStatus(delivery.status), "Its subscription is disabled or deleted.")
            raise Problem(
                "not_retryable", reason, extra={"delivery_status": delivery_state(delivery.status, delivery.last_error)}
            )
        wake(WEBHOOKS)
        return Response(render_delivery(delivery), status=202)
