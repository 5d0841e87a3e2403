"""`/api/subscriptions/{id}/secrets`: the secrets that sign a subscription's webhooks."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema, extend_schema_serializer
from rest_framework.request import Request
from rest_framework.response import Response

from core.json_body import read_object
from core.openapi import conflict
from core.problems import Problem, no_such
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.scopes import Scope
from webhooks import signing_secrets, subscriptions
from webhooks.api.credentials import (
    NewSecretSerializer,
    SecretAddSerializer,
    SecretChangeSerializer,
    SecretListSerializer,
    SecretSerializer,
    shown_once,
)
from webhooks.api.viewsets import OrganizationViewSet
from webhooks.inboxes import is_inbox
from webhooks.models import Subscription
from webhooks.signing_secrets import MAX_PREVIOUS_SECRETS, StoredSecret

# The list is an object; without this a viewset's `list` action would be shown as an array of them.
SecretList = extend_schema_serializer(many=False)(SecretListSerializer)


def _last_secret() -> Problem:
    return Problem("last_secret", "No other secret of the subscription is without an end. Add one first.")


class SecretViewSet(OrganizationViewSet[Subscription]):
    """The secrets of one subscription.  All of them sign each request."""

    what = "subscription"
    action_scopes: ClassVar = {
        "list": Scope.SUBSCRIPTIONS_MANAGE,
        "create": Scope.SUBSCRIPTIONS_MANAGE,
        "partial_update": Scope.SUBSCRIPTIONS_MANAGE,
        "destroy": Scope.SUBSCRIPTIONS_MANAGE,
    }

    def own_rows(self, request: Request) -> QuerySet[Subscription]:
        return subscriptions.of_organization(caller_of(request).organization_id)

    def _endpoint(self, request: Request, subscription_id: uuid.UUID) -> Subscription:
        """Return the subscription.  Raises Problem 404, and 409 for an inbox."""
        subscription = self.own_row(request, subscription_id)
        if is_inbox(subscription):
            raise Problem("not_for_inboxes", "The subscription is an inbox: it has no secrets.")
        return subscription

    @extend_schema(
        operation_id="listSecrets",
        tags=["Subscriptions"],
        summary="List a subscription's secrets",
        responses={200: SecretList, **conflict("not_for_inboxes")},
    )
    def list(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """List the secrets that sign, masked, the current one first. The public keys of ed25519 secrets are shown."""
        stored = signing_secrets.stored_secrets(self._endpoint(request, subscription_id))
        return Response({"data": [SecretSerializer(secret).data for secret in stored]})

    @extend_schema(
        operation_id="addSecret",
        tags=["Subscriptions"],
        summary="Add a secret",
        request=SecretAddSerializer,
        responses={201: NewSecretSerializer, **conflict("too_many_secrets", "secret_exists", "not_for_inboxes")},
        examples=[
            OpenApiExample("ed25519", {"secret_type": "ed25519"}, request_only=True),
            OpenApiExample(
                "your own", {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "expires_at": None}, request_only=True
            ),
        ],
    )
    @idempotent()
    def create(self, request: Request, subscription_id: uuid.UUID) -> Response:
        """Add another secret that signs, from the next attempt on: a new one, or your own.

        Up to ten can sign in addition to the current one. Each stops at its `expires_at`, if it has one.
        """
        subscription = self._endpoint(request, subscription_id)
        serializer = SecretAddSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        given = serializer.validated_data
        write = _auditor(request, "subscription.add_secret", subscription)
        try:
            added, secret = signing_secrets.add(subscription, **given, audit=write)
        except signing_secrets.TooManySecrets:
            text = f"{MAX_PREVIOUS_SECRETS} secrets sign in addition to the current one. Remove one of them first."
            raise Problem("too_many_secrets", text) from None
        except signing_secrets.SecretExists:
            raise Problem("secret_exists", "The subscription has this secret already.") from None
        except Subscription.DoesNotExist:
            raise no_such(self.what) from None
        context = {"secret": shown_once(secret, given)}
        return Response(dict(NewSecretSerializer(added, context=context).data), status=201)

    @extend_schema(
        operation_id="changeSecret",
        tags=["Subscriptions"],
        summary="Change when a secret ends",
        request=SecretChangeSerializer,
        responses={200: SecretSerializer, **conflict("last_secret", "not_for_inboxes")},
        examples=[OpenApiExample("an end", {"expires_at": "2027-01-31T12:00:00Z"}, request_only=True)],
    )
    def partial_update(self, request: Request, subscription_id: uuid.UUID, secret_id: uuid.UUID) -> Response:
        """Set when the secret stops signing. At least one secret must be without an end."""
        subscription = self._endpoint(request, subscription_id)
        serializer = SecretChangeSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        write = _auditor(request, "subscription.change_secret", subscription)
        try:
            changed = signing_secrets.change_end(
                subscription, secret_id, serializer.validated_data["expires_at"], audit=write
            )
        except signing_secrets.LastSecret:
            raise _last_secret() from None
        except Subscription.DoesNotExist:
            raise no_such(self.what) from None
        if changed is None:
            raise no_such("secret of this subscription")
        return Response(dict(SecretSerializer(changed).data))

    @extend_schema(
        operation_id="removeSecret",
        tags=["Subscriptions"],
        summary="Remove a secret",
        responses={204: OpenApiResponse(None, "Removed."), **conflict("last_secret", "not_for_inboxes")},
    )
    def destroy(self, request: Request, subscription_id: uuid.UUID, secret_id: uuid.UUID) -> Response:
        """Erase the secret, which stops signing at once. At least one without an end must be left."""
        subscription = self._endpoint(request, subscription_id)
        write = _auditor(request, "subscription.remove_secret", subscription)
        try:
            removed = signing_secrets.remove(subscription, secret_id, audit=write)
        except signing_secrets.LastSecret:
            raise _last_secret() from None
        except Subscription.DoesNotExist:
            raise no_such(self.what) from None
        if not removed:
            raise no_such("secret of this subscription")
        return Response(status=204)


def _auditor(request: Request, action: str, subscription: Subscription) -> Callable[[StoredSecret], None]:
    """Return a function that writes the audit entry for `action` on a secret."""
    write = partial(audit.record_for_caller, request, action, subscription.id, name=subscription.url)
    return lambda secret: write(secret.for_audit())
