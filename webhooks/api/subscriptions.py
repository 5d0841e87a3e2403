"""`/api/subscriptions`."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from core.json_body import read_object
from core.openapi import PAGE, conflict, location, path_id, query, refusals
from core.problems import Problem, invalid, no_such
from core.query import PAGE_PARAMETERS, one_of, page, parse_parameters, text
from core.serializers import StrictSerializer
from core.url_prefix import full_path
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent, running
from orgs.scopes import Scope
from webhooks import endpoint_test, inboxes, probes, signing_secrets, subscriptions
from webhooks.api import openapi, previews
from webhooks.api.credentials import shown_once
from webhooks.api.fields import url_parameter
from webhooks.api.handshakes import require_handshake
from webhooks.api.subscription_serializers import (
    NOT_OF_INBOXES,
    ONLY_OF_ENDPOINTS,
    EndpointTestSerializer,
    NewSubscriptionSerializer,
    ReasonSerializer,
    RecoverSerializer,
    RecoverySerializer,
    RotatedSubscriptionSerializer,
    SecretRotateSerializer,
    SubscriptionChangeSerializer,
    SubscriptionCreateSerializer,
    SubscriptionSerializer,
    render_subscription,
)
from webhooks.api.viewsets import OrganizationViewSet
from webhooks.inboxes import is_inbox
from webhooks.models import BulkRun, Subscription
from webhooks.states import SubscriptionState, in_state, with_state
from webhooks.upkeep import recovery


def _auditor(request: Request, action: str, subscription: Subscription, reason: str = "") -> Callable[[], None]:
    """Return a function that writes the audit entry for `action`, for the transaction that makes the change."""
    return partial(audit.record_for_caller, request, action, subscription.id, name=subscription.url, reason=reason)


def _too_many_secrets(ends_at: datetime.datetime | None) -> Problem:
    """Return the 409 for a rotation while too many other secrets sign.  ends_at: when the first one stops, if any."""
    if ends_at is None:
        return Problem(
            "too_many_previous_secrets",
            f"{signing_secrets.MAX_PREVIOUS_SECRETS} other secrets sign, all without an end. Remove one of them first.",
            extra={"next_rotation_at": None},
        )
    # Rounded up to a whole second, so that the rotation works at the time that is shown.
    at = (ends_at + datetime.timedelta(seconds=1)).astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Problem(
        "too_many_previous_secrets",
        f"{signing_secrets.MAX_PREVIOUS_SECRETS} earlier secrets still sign. Rotate again at {at}, or end them with "
        "`end_earlier_secrets`.",
        extra={"next_rotation_at": at},
    )


def _shook_hands(serializer: StrictSerializer) -> dict[str, Any]:
    """Take `handshake` out of the valid body, and return what the audit log keeps of it."""
    return {"handshake": True} if serializer.validated_data.pop("handshake", False) else {}


def _require_endpoint(subscription: Subscription, why: str) -> None:
    """Raise Problem 409 for an inbox."""
    if is_inbox(subscription):
        raise Problem("not_for_inboxes", f"The subscription is an inbox: {why}.")


def _taken(organization_id: uuid.UUID, wanted: Mapping[str, Any], error: IntegrityError) -> Problem:
    """Return the 409 for a name that another subscription has: that of an inbox, or the uid."""
    if "webhooks_sub_uid" not in str(error):
        return _inbox_exists(organization_id, wanted["inbox"])
    existing = subscriptions.of_organization(organization_id).filter(uid=wanted["uid"]).first()
    return Problem(
        "uid_taken",
        "Another subscription of the organization has this uid.",
        errors=[("/uid", "is taken")],
        extra={"subscription_id": str(existing.id)} if existing else {},
    )


def _inbox_exists(organization_id: uuid.UUID, name: str) -> Problem:
    """Return the 409 for a second inbox of the same name."""
    existing = inboxes.find(organization_id, name)
    return Problem(
        "inbox_exists",
        f"The organization has an inbox named {name} already.",
        extra={"subscription_id": str(existing.id)} if existing else {},
    )


class SubscriptionViewSet(OrganizationViewSet[Subscription]):
    """The organization's subscriptions.

    tested: the subscription and the outcome of the test event that a request has sent.
    """

    what = "subscription"
    tested: tuple[Subscription, endpoint_test.EndpointTest] | None = None

    action_scopes: ClassVar = {
        "list": Scope.SUBSCRIPTIONS_MANAGE,
        "create": Scope.SUBSCRIPTIONS_MANAGE,
        "retrieve": Scope.SUBSCRIPTIONS_MANAGE,
        "partial_update": Scope.SUBSCRIPTIONS_MANAGE,
        "destroy": Scope.SUBSCRIPTIONS_MANAGE,
        "enable": Scope.SUBSCRIPTIONS_MANAGE,
        "disable": Scope.SUBSCRIPTIONS_MANAGE,
        "rotate_secret": Scope.SUBSCRIPTIONS_MANAGE,
        "test": Scope.SUBSCRIPTIONS_MANAGE,
        "preview": Scope.SUBSCRIPTIONS_MANAGE,
        "recover": Scope.SUBSCRIPTIONS_MANAGE,
        "recovery": Scope.SUBSCRIPTIONS_MANAGE,
    }

    def own_rows(self, request: Request) -> QuerySet[Subscription]:
        return subscriptions.of_organization(caller_of(request).organization_id)

    def shown_rows(self, request: Request) -> QuerySet[Subscription]:
        return with_state(self.own_rows(request))

    @extend_schema(
        operation_id="listSubscriptions",
        tags=["Subscriptions"],
        summary="List subscriptions",
        parameters=[
            query("state", "Only subscriptions in this state.", enum=SubscriptionState.values),
            query("url", "Only subscriptions to this URL."),
            query("host", "Only subscriptions whose URL has this host."),
            query("uid", "Only the subscription with this `uid`."),
            *PAGE,
        ],
        responses=openapi.SubscriptionPage,
    )
    def list(self, request: Request) -> Response:
        """List subscriptions."""
        parsers = {
            "state": one_of(*SubscriptionState.values),
            "url": url_parameter,
            "host": lambda raw: text(raw).lower(),
            "uid": text,
            **PAGE_PARAMETERS,
        }
        parameters = parse_parameters(request, parsers)
        rows = self.shown_rows(request).filter(
            **{name: parameters[name] for name in ("url", "host", "uid") if name in parameters}
        )
        if "state" in parameters:
            rows = rows.filter(in_state(parameters["state"]))
        return Response(page(rows, parameters, render_subscription))

    @staticmethod
    def confirm_endpoint(request: Request) -> None:
        """Shake hands with a new subscription's endpoint, if the request asks for it.  Raises Problem."""
        body = read_object(request)
        if not body.get("handshake"):
            return
        serializer = SubscriptionCreateSerializer(data=body)
        serializer.is_valid(raise_exception=True)
        require_handshake(request, serializer.validated_data["url"], serializer.validated_data, "/url")

    @extend_schema(
        operation_id="createSubscription",
        tags=["Subscriptions"],
        summary="Create a subscription",
        parameters=[location(201)],
        request=SubscriptionCreateSerializer,
        responses={
            201: NewSubscriptionSerializer,
            **refusals("too_many_subscriptions", "inbox_exists", "uid_taken", "handshake_failed"),
        },
        examples=[
            OpenApiExample("subscription", openapi.SUBSCRIPTION_EXAMPLE, request_only=True),
            OpenApiExample("inbox", openapi.INBOX_EXAMPLE, request_only=True),
        ],
    )
    @idempotent(beforehand=lambda view, request: view.confirm_endpoint(request))
    def create(self, request: Request) -> Response:
        """Create a subscription. Its secret is in this response and can't be read again."""
        serializer = SubscriptionCreateSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        handshaken = _shook_hands(serializer)  # by `confirm_endpoint`
        try:
            with transaction.atomic():
                subscription, secret = subscriptions.create(
                    caller_of(request).organization_id, **serializer.validated_data
                )
                audit.record_for_caller(
                    request, "subscription.create", subscription.id, handshaken, name=subscription.url
                )
        except subscriptions.TooManySubscriptions:
            raise Problem(
                "too_many_subscriptions", "The organization has reached its limit of subscriptions."
            ) from None
        except IntegrityError as error:
            raise _taken(caller_of(request).organization_id, serializer.validated_data, error) from None
        subscription = self.shown_row(request, subscription.id)
        context = {"secret": shown_once(secret, serializer.validated_data)}
        return Response(
            dict(NewSubscriptionSerializer(subscription, context=context).data),
            status=201,
            headers={"Location": full_path(f"/api/subscriptions/{subscription.id}")},
        )

    @extend_schema(
        operation_id="getSubscription",
        tags=["Subscriptions"],
        summary="Get a subscription",
        responses=SubscriptionSerializer,
    )
    def retrieve(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Return the subscription."""
        return Response(render_subscription(self.shown_row(request, subscription_id)))

    @extend_schema(
        operation_id="changeSubscription",
        tags=["Subscriptions"],
        summary="Change a subscription",
        request=SubscriptionChangeSerializer,
        responses={200: SubscriptionSerializer, **refusals("uid_taken", "handshake_failed")},
        examples=[OpenApiExample("all events", {"event_types": ["*"]}, request_only=True)],
    )
    def partial_update(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Change the given fields. The next attempt uses the new values.

        With `handshake`, the endpoint is asked first, with the new URL and credentials where they are given.
        """
        subscription = self.own_row(request, subscription_id)
        body = read_object(request)
        if is_inbox(subscription) and (wrong := [name for name in ONLY_OF_ENDPOINTS if name in body]):
            raise invalid([(f"/{name}", NOT_OF_INBOXES) for name in wrong])
        serializer = SubscriptionChangeSerializer(data=body, partial=True, context={"subscription": subscription})
        serializer.is_valid(raise_exception=True)
        handshaken = _shook_hands(serializer)
        changes = serializer.validated_data
        if handshaken:
            url = changes.get("url", subscription.url)
            require_handshake(request, url, changes, "/url" if "url" in changes else "/handshake", subscription)
        try:
            with transaction.atomic():
                subscriptions.change(subscription, changes)
                audit.record_for_caller(
                    request, "subscription.change", subscription.id, {"fields": sorted(changes), **handshaken},
                    name=subscription.url,
                )  # fmt: skip
        except IntegrityError as error:
            raise _taken(caller_of(request).organization_id, changes, error) from None
        return Response(render_subscription(self.shown_row(request, subscription_id)))

    @extend_schema(
        operation_id="deleteSubscription",
        tags=["Subscriptions"],
        summary="Delete a subscription",
        responses={204: OpenApiResponse(None, "Deleted.")},
    )
    def destroy(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Delete the subscription and cancel its waiting deliveries."""
        subscription = self.own_row(request, subscription_id)
        subscriptions.delete(subscription, audit=_auditor(request, "subscription.delete", subscription))
        return Response(status=204)

    @extend_schema(
        operation_id="enableSubscription",
        tags=["Subscriptions"],
        summary="Enable a subscription",
        request=None,
        responses=SubscriptionSerializer,
    )
    def enable(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Enable the subscription and deliver what was held for it."""
        subscription = self.own_row(request, subscription_id)
        subscriptions.enable(subscription, audit=_auditor(request, "subscription.enable", subscription))
        return Response(render_subscription(self.shown_row(request, subscription_id)))

    @extend_schema(
        operation_id="disableSubscription",
        tags=["Subscriptions"],
        summary="Disable a subscription",
        request=ReasonSerializer,
        responses=SubscriptionSerializer,
        examples=[OpenApiExample("with a reason", {"reason": "the shop is moving"}, request_only=True)],
    )
    def disable(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Disable the subscription. Its waiting and new deliveries are held until it is enabled again.

        If the operator has set a limit (`HELD_RETENTION_DAYS`), deliveries that are held for longer are cancelled.
        """
        subscription = self.own_row(request, subscription_id)
        serializer = ReasonSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        reason = serializer.validated_data["reason"].strip()
        audit = _auditor(request, "subscription.disable", subscription, reason=reason)
        subscriptions.disable(subscription, reason, audit=audit)
        return Response(render_subscription(self.shown_row(request, subscription_id)))

    @extend_schema(
        operation_id="rotateSecret",
        tags=["Subscriptions"],
        summary="Rotate a subscription's secret",
        request=SecretRotateSerializer,
        responses={
            200: RotatedSubscriptionSerializer,
            **conflict("too_many_previous_secrets", "secret_exists", "not_for_inboxes"),
        },
        examples=[OpenApiExample("an hour of overlap", {"overlap_seconds": 3600}, request_only=True)],
    )
    @idempotent()
    def rotate_secret(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Replace the secret. Requests are signed with both the old and the new one for `overlap_seconds`.

        Secrets of earlier rotations keep signing until their own overlaps end. At most ten can do so at a time.
        """
        subscription = self.own_row(request, subscription_id)
        _require_endpoint(subscription, "it has no secret")
        serializer = SecretRotateSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        overlap = datetime.timedelta(seconds=serializer.validated_data["overlap_seconds"])
        end_earlier = serializer.validated_data["end_earlier_secrets"]
        chosen = {name: serializer.validated_data.pop(name, None) for name in ("secret", "secret_type")}
        with transaction.atomic():
            try:
                secret = subscriptions.rotate_secret(subscription, overlap, end_earlier=end_earlier, **chosen)
            except signing_secrets.TooManySecrets as error:
                raise _too_many_secrets(error.ends_at) from None
            except signing_secrets.SecretExists:
                raise Problem("secret_exists", "The subscription has this secret already.") from None
            except Subscription.DoesNotExist:
                raise no_such("subscription") from None
            audit.record_for_caller(
                request, "subscription.rotate_secret", subscription.id, dict(serializer.validated_data),
                name=subscription.url,
            )  # fmt: skip
        subscription = self.shown_row(request, subscription_id)
        given = {name: value for name, value in chosen.items() if value is not None}
        context = {"secret": shown_once(secret, given), "overlap": overlap}
        return Response(dict(RotatedSubscriptionSerializer(subscription, context=context).data))

    @extend_schema(
        operation_id="testSubscription",
        tags=["Subscriptions"],
        summary="Send a test event",
        request=None,
        responses={200: EndpointTestSerializer, **conflict("not_for_inboxes")},
    )
    @idempotent(beforehand=lambda view, request, subscription_id: view.send_test_event(request, subscription_id))
    def test(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Send an event of type `triggers.test` to the endpoint and return what came back.

        It is signed and sent like every webhook, in the subscription's `format`, also while the subscription is
        disabled, whatever its event types. It isn't stored and isn't sent again. The response is a 200 whether or not
        the endpoint accepted the event.
        """
        if self.tested is None:  # the response that was kept under the key has expired since it was looked up
            raise running()
        subscription, result = self.tested
        with transaction.atomic():
            audit.record_for_caller(
                request, "subscription.test", subscription.id, result.for_audit(), name=subscription.url
            )
        return Response(dict(EndpointTestSerializer(result).data))

    def send_test_event(self, request: Request, subscription_id: uuid.UUID) -> None:
        """Send the test event, outside of the transaction that keeps the response."""
        subscription = self.own_row(request, subscription_id)
        _require_endpoint(subscription, "nothing can be sent to it; send an event with `POST /api/events` instead")
        try:
            self.tested = subscription, endpoint_test.send_test_event(subscription)
        except probes.TooManyProbes as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise Problem("too_many_test_events", error.sentence, headers=headers) from None

    @extend_schema(
        operation_id="previewSubscription",
        tags=["Subscriptions"],
        summary="Preview an event",
        request=previews.PreviewRequestSerializer,
        responses=previews.PreviewSerializer,
        examples=[
            OpenApiExample("an event and an expression", previews.EXAMPLE, request_only=True),
            OpenApiExample("a stored event", {"event_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"}, request_only=True),
        ],
    )
    def preview(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Return whether an event would match the subscription, and what would be sent. Nothing is stored or sent.

        `format` and `transform` try another format or expression before it is saved. An expression that fails for the
        event is a 200 with an `error`; one that isn't JMESPath is a 400. The signature and the subscription's own
        headers are masked.
        """
        subscription = self.own_row(request, subscription_id)
        return Response(previews.make_preview(request, subscription).describe())

    @extend_schema(
        operation_id="recoverSubscription",
        tags=["Subscriptions"],
        summary="Recover missed events",
        parameters=[location(202)],
        request=RecoverSerializer,
        responses={202: OpenApiResponse(RecoverySerializer, "The recovery runs in the background.")},
        examples=[OpenApiExample("since", {"since": "2026-01-31T12:00:00Z"}, request_only=True)],
    )
    @idempotent()
    def recover(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Queue every event since `since` that matches the subscription and wasn't delivered to it.

        A subscription has at most one recovery at a time. If one is running, it is returned, and it starts from the
        earlier of the two times.
        """
        subscription = self.own_row(request, subscription_id)
        serializer = RecoverSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            run = recovery.start(subscription, serializer.validated_data["since"], caller_of(request).actor)
            audit.record_for_caller(
                request, "subscription.recover", subscription.id, {"since": run.filters["since"], "run": str(run.id)},
                name=subscription.url,
            )  # fmt: skip
        return Response(
            dict(RecoverySerializer(run).data),
            status=202,
            headers={"Location": full_path(f"/api/subscriptions/{subscription.id}/recoveries/{run.id}")},
        )

    @extend_schema(
        operation_id="getRecovery",
        tags=["Subscriptions"],
        summary="Get a recovery's progress",
        parameters=[path_id("run_id", "The id that `POST /api/subscriptions/{subscription_id}/recover` returned.")],
        responses=RecoverySerializer,
    )
    def recovery(self, request: Request, subscription_id: uuid.UUID, run_id: uuid.UUID) -> Response:
        """Return the recovery's progress."""
        subscription = self.own_row(request, subscription_id)
        run = BulkRun.objects.filter(id=run_id, subscription=subscription, kind=BulkRun.Kind.RECOVER).first()
        if run is None:
            raise no_such("recovery of this subscription")
        return Response(dict(RecoverySerializer(run).data))
