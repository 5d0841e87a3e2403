"""`/api/subscriptions` and `/api/deliveries`."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, ClassVar

from django.db import transaction
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.json_body import read_object
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, query
from core.problems import Problem, not_found
from core.query import PAGE_PARAMETERS, identifier, moment, one_of, page, parse_parameters
from orgs import audit
from orgs.authentication import caller_of
from orgs.models import Scope
from webhooks import delivery_actions, subscriptions
from webhooks.api import openapi
from webhooks.api.serializers import (
    BulkRunOut,
    Recover,
    SecretRotate,
    SubscriptionChange,
    SubscriptionCreate,
    SubscriptionOut,
)
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import matching_deliveries
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, DeliveryStatus, Subscription
from webhooks.upkeep import recovery


def render_subscription(subscription: Subscription) -> dict[str, Any]:
    """Return the subscription as the API shows it."""
    return dict(SubscriptionOut(subscription).data)


def render_delivery(delivery: Delivery) -> dict[str, Any]:
    """Return the delivery as the API shows it, without its attempts."""
    return {
        "id": str(delivery.id),
        "event_id": str(delivery.event_id),
        "subscription_id": str(delivery.subscription_id),
        "status": delivery.status,
        "attempt_count": delivery.attempt_count,
        "next_attempt_at": delivery.next_attempt_at,
        "last_status_code": delivery.last_status_code,
        "last_error": delivery.last_error or None,
        "completed_at": delivery.completed_at,
        "created_at": delivery.created_at,
    }


def render_attempt(attempt: DeliveryAttempt) -> dict[str, Any]:
    """Return the attempt as the API shows it."""
    return {
        "number": attempt.number,
        "cause": attempt.cause,
        "started_at": attempt.started_at,
        "duration_ms": round(attempt.duration_ms, 2),
        "status_code": attempt.status_code,
        "error": attempt.error or None,
        "error_detail": attempt.error_detail,
        "response_body": attempt.response_body,
    }


def _own_subscription(request: Request, subscription_id: uuid.UUID) -> Subscription:
    found: Subscription | None = (
        subscriptions.live(caller_of(request).organization_id).filter(id=subscription_id).first()
    )
    if found is None:
        raise not_found()
    return found


def _own_delivery(request: Request, delivery_id: uuid.UUID) -> Delivery:
    found = Delivery.objects.filter(organization_id=caller_of(request).organization_id, id=delivery_id).first()
    if found is None:
        raise not_found()
    return found


class SubscriptionListView(APIView):
    """The organization's subscriptions."""

    scopes: ClassVar = {"GET": Scope.SUBSCRIPTIONS_MANAGE, "POST": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="listSubscriptions",
        tags=["Subscriptions"],
        summary="List subscriptions",
        parameters=PAGE,
        responses=openapi.SubscriptionPage,
    )
    def get(self, request: Request) -> Response:
        """List subscriptions, newest first."""
        parameters = parse_parameters(request, PAGE_PARAMETERS)
        return Response(page(subscriptions.live(caller_of(request).organization_id), parameters, render_subscription))

    @extend_schema(
        operation_id="createSubscription",
        tags=["Subscriptions"],
        summary="Make a subscription",
        parameters=[location(201)],
        request=SubscriptionCreate,
        responses={
            201: openapi.NewSubscription,
            **conflict("too_many_subscriptions"),
        },
        examples=[OpenApiExample("subscription", openapi.SUBSCRIPTION_EXAMPLE, request_only=True)],
    )
    def post(self, request: Request) -> Response:
        """Make a subscription; its secret is in this answer and nowhere else."""
        serializer = SubscriptionCreate(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        try:
            with transaction.atomic():
                subscription, secret = subscriptions.create(
                    caller_of(request).organization_id, **serializer.validated_data
                )
                audit.record_for_caller(request, "subscription.create", subscription.id)
        except subscriptions.TooManySubscriptions:
            raise Problem("too_many_subscriptions", "The organization has as many subscriptions as it may.") from None
        return Response(
            {**render_subscription(subscription), "secret": secret},
            status=201,
            headers={"Location": f"/api/subscriptions/{subscription.id}"},
        )


class SubscriptionView(APIView):
    """One subscription."""

    scopes: ClassVar = dict.fromkeys(("GET", "PATCH", "DELETE"), Scope.SUBSCRIPTIONS_MANAGE)

    @extend_schema(
        operation_id="getSubscription",
        tags=["Subscriptions"],
        summary="Read a subscription",
        responses=openapi.Subscription,
    )
    def get(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Return the subscription."""
        return Response(render_subscription(_own_subscription(request, subscription_id)))

    @extend_schema(
        operation_id="changeSubscription",
        tags=["Subscriptions"],
        summary="Change a subscription",
        request=SubscriptionChange,
        responses=openapi.Subscription,
        examples=[OpenApiExample("all events", {"event_types": ["*"]}, request_only=True)],
    )
    def patch(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Change the given fields; the next attempt uses the new ones."""
        subscription = _own_subscription(request, subscription_id)
        serializer = SubscriptionChange(data=read_object(request), partial=True)
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            subscriptions.change(subscription, serializer.validated_data)
            audit.record_for_caller(
                request, "subscription.change", subscription.id, {"fields": sorted(serializer.validated_data)}
            )
        return Response(render_subscription(subscription))

    @extend_schema(
        operation_id="deleteSubscription",
        tags=["Subscriptions"],
        summary="Delete a subscription",
        responses={204: OpenApiResponse(None, "Deleted.")},
    )
    def delete(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Delete the subscription; what waits for it is cancelled."""
        subscription = _own_subscription(request, subscription_id)
        audit.record_for_caller(request, "subscription.delete", subscription.id)
        subscriptions.delete(subscription)
        return Response(status=204)


class SubscriptionEnableView(APIView):
    """Sending to a subscription again."""

    scopes: ClassVar = {"POST": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="enableSubscription",
        tags=["Subscriptions"],
        summary="Enable a subscription",
        request=None,
        responses=openapi.Subscription,
    )
    def post(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Enable the subscription; what was held for it is delivered."""
        subscription = _own_subscription(request, subscription_id)
        audit.record_for_caller(request, "subscription.enable", subscription.id)
        subscriptions.enable(subscription)
        return Response(render_subscription(subscription))


class SubscriptionDisableView(APIView):
    """Sending nothing to a subscription for a while."""

    scopes: ClassVar = {"POST": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="disableSubscription",
        tags=["Subscriptions"],
        summary="Disable a subscription",
        request=None,
        responses=openapi.Subscription,
    )
    def post(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Disable the subscription; what waits for it, and what comes, is held."""
        subscription = _own_subscription(request, subscription_id)
        audit.record_for_caller(request, "subscription.disable", subscription.id)
        subscriptions.disable(subscription)
        return Response(render_subscription(subscription))


class SubscriptionRotateSecretView(APIView):
    """Replacing a subscription's secret."""

    scopes: ClassVar = {"POST": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="rotateSecret",
        tags=["Subscriptions"],
        summary="Replace a subscription's secret",
        request=SecretRotate,
        responses=openapi.RotatedSubscription,
        examples=[OpenApiExample("an hour of overlap", {"overlap_seconds": 3600}, request_only=True)],
    )
    def post(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Make a new secret; old and new both sign for `overlap_seconds`."""
        subscription = _own_subscription(request, subscription_id)
        serializer = SecretRotate(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        overlap = datetime.timedelta(seconds=serializer.validated_data["overlap_seconds"])
        with transaction.atomic():
            secret = subscriptions.rotate_secret(subscription, overlap)
            audit.record_for_caller(request, "subscription.rotate_secret", subscription.id)
        return Response(
            {
                **render_subscription(subscription),
                "secret": secret,
                "previous_secret_expires_at": subscription.previous_secret_expires_at,
            }
        )


class SubscriptionRecoverView(APIView):
    """Queueing what a subscription missed."""

    scopes: ClassVar = {"POST": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="recoverSubscription",
        tags=["Subscriptions"],
        summary="Queue what a subscription missed",
        parameters=[location(202)],
        request=Recover,
        responses={202: OpenApiResponse(openapi.Recovery, "The recovery runs in the background.")},
        examples=[OpenApiExample("since", {"since": "2026-01-31T12:00:00Z"}, request_only=True)],
    )
    def post(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Queue every event since `since` that the subscription wants and hasn't received.

        A subscription has one recovery under way at the most: asking again returns that one, which then
        reaches back to the earlier of the two times.
        """
        subscription = _own_subscription(request, subscription_id)
        serializer = Recover(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            run = recovery.start(subscription, serializer.validated_data["since"])
            audit.record_for_caller(
                request, "subscription.recover", subscription.id, {"since": run.filters["since"], "run": str(run.id)}
            )
        return Response(
            dict(BulkRunOut(run).data),
            status=202,
            headers={"Location": f"/api/subscriptions/{subscription.id}/recoveries/{run.id}"},
        )


class SubscriptionRecoveryView(APIView):
    """How far a recovery is."""

    scopes: ClassVar = {"GET": Scope.SUBSCRIPTIONS_MANAGE}

    @extend_schema(
        operation_id="getRecovery", tags=["Subscriptions"], summary="How far a recovery is", responses=openapi.Recovery
    )
    def get(self, request: Request, subscription_id: uuid.UUID, run_id: uuid.UUID) -> Response:
        """Return the recovery's progress."""
        subscription = _own_subscription(request, subscription_id)
        run = BulkRun.objects.filter(id=run_id, subscription=subscription, kind=BulkRun.Kind.RECOVER).first()
        if run is None:
            raise not_found()
        return Response(dict(BulkRunOut(run).data))


class DeliveryListView(APIView):
    """The organization's deliveries."""

    scopes: ClassVar = {"GET": Scope.DELIVERIES_READ}

    @extend_schema(
        operation_id="listDeliveries",
        tags=["Deliveries"],
        summary="List deliveries",
        parameters=[
            query("event", "Only deliveries of this event.", OpenApiTypes.UUID),
            query("subscription", "Only deliveries to this subscription.", OpenApiTypes.UUID),
            query("status", "Only deliveries in this state.", enum=DeliveryStatus.values),
            SINCE,
            UNTIL,
            *PAGE,
        ],
        responses=openapi.DeliveryPage,
    )
    def get(self, request: Request) -> Response:
        """List deliveries, newest first."""
        parameters = parse_parameters(
            request,
            {
                "event": identifier,
                "subscription": identifier,
                "status": one_of(*DeliveryStatus.values),
                "since": moment,
                "until": moment,
                **PAGE_PARAMETERS,
            },
        )
        names = ("event", "subscription", "status", "since", "until")
        filters = {name: parameters[name] for name in names if name in parameters}
        rows = matching_deliveries({**filters, "org": caller_of(request).organization_id})
        return Response(page(rows, parameters, render_delivery))


class DeliveryView(APIView):
    """One delivery."""

    scopes: ClassVar = {"GET": Scope.DELIVERIES_READ}

    @extend_schema(
        operation_id="getDelivery",
        tags=["Deliveries"],
        summary="Read a delivery",
        responses=openapi.DeliveryWithAttempts,
    )
    def get(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Return the delivery with every attempt, the oldest first."""
        delivery = _own_delivery(request, delivery_id)
        # None that came since the delivery was read: its status doesn't know of them.
        attempts = DeliveryAttempt.objects.filter(delivery_id=delivery.id, number__lte=delivery.attempt_count)
        attempts = attempts.order_by("number", "id")[:1000]
        return Response({**render_delivery(delivery), "attempts": [render_attempt(attempt) for attempt in attempts]})


_WHY_NOT = {
    DeliveryStatus.DELIVERING: "The delivery is being sent right now.",
    DeliveryStatus.HELD: "The delivery is held; enable its subscription first.",
    DeliveryStatus.CANCELLED: "The delivery was cancelled with its subscription.",
}


class DeliveryRetryView(APIView):
    """Trying a delivery again at once."""

    scopes: ClassVar = {"POST": Scope.DELIVERIES_RETRY}

    @extend_schema(
        operation_id="retryDelivery",
        tags=["Deliveries"],
        summary="Try a delivery again now",
        request=None,
        responses={
            202: OpenApiResponse(openapi.Delivery, "The delivery is due now."),
            **conflict("not_retryable"),
        },
    )
    def post(self, request: Request, delivery_id: uuid.UUID) -> Response:
        """Make one more try now: 202, or 409 when the delivery can't be tried."""
        delivery = _own_delivery(request, delivery_id)
        if not delivery_actions.apply(DeliveryAction.RETRY, [delivery.id]):
            delivery.refresh_from_db()
            reason = _WHY_NOT.get(DeliveryStatus(delivery.status), "Its subscription takes no deliveries.")
            raise Problem("not_retryable", reason, extra={"delivery_status": delivery.status})
        audit.record_for_caller(request, "delivery.retry", delivery.id)
        delivery.refresh_from_db()
        return Response(render_delivery(delivery), status=202)
