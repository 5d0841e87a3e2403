"""`/api/hooks`: subscriptions in the shape that automation platforms (Zapier, n8n, Make) send.

They act on the same subscriptions as `/api/subscriptions`, with the same limits.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from core.json_body import read_object
from core.json_response import Fragment
from core.openapi import PAGE, location, page_of, query, refusals
from core.openapi.descriptions import CREATED_AT
from core.problems import Problem, no_such
from core.query import PAGE_PARAMETERS, ParameterError, page, parse_parameters
from core.row_rendering import row_renderer
from core.serializers import StrictSerializer
from core.url_prefix import full_path
from events.payload import EVERYTHING
from events.queries import type_pattern
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.scopes import Scope
from webhooks import rest_hooks, subscriptions
from webhooks.api.descriptions import EVENT_TYPES
from webhooks.api.fields import ChannelsField, DescriptionField, EventTypesField, FilterField, UrlField, url_parameter
from webhooks.api.handshakes import handshake_field, require_handshake
from webhooks.api.subscription_serializers import URL_HELP
from webhooks.api.viewsets import OrganizationViewSet
from webhooks.models import Subscription
from webhooks.states import SubscriptionState, with_state

EXAMPLE = {"target_url": "https://hooks.zapier.com/hooks/standard/1/abc/", "event": "order.created"}
MAKE_EXAMPLE = {"url": "https://hook.eu1.make.com/abc"}
# What the platforms call each of the two.
URL_NAMES = ("target_url", "targetUrl", "hookUrl", "url")
TYPE_NAMES = ("event", "event_type", "event_types")
MAX_SAMPLES = 20
DEFAULT_SAMPLES = 3


def _other_name(of: str) -> str:
    return f"Another name for `{of}`."


class OneOrMoreTypesField(EventTypesField):
    """Event type patterns, of which a single one may come as text."""

    def to_internal_value(self, data: Any) -> list[str]:
        try:
            return super().to_internal_value([data] if isinstance(data, str) else data)
        except serializers.ValidationError as error:
            # The one type of a text isn't the first of a list: the error is the field's own.
            if isinstance(data, str) and isinstance(error.detail, Mapping):
                raise serializers.ValidationError(error.detail["0"]) from None
            raise


class HookUrlField(UrlField):
    """The URL of a hook, which has no `auth`."""

    def to_internal_value(self, data: Any) -> str:
        try:
            return super().to_internal_value(data)
        except serializers.ValidationError as error:
            texts = error.detail if isinstance(error.detail, list) else []
            said = [str(one).replace("`auth`", "`auth` of `POST /api/subscriptions`") for one in texts]
            raise serializers.ValidationError(said or error.detail) from None


def _other_url() -> HookUrlField:
    return HookUrlField(max_length=2048, trim_whitespace=False, required=False, help_text=_other_name("target_url"))


class HookCreateSerializer(StrictSerializer):
    """The body of `POST /api/hooks`."""

    target_url = HookUrlField(
        max_length=2048, trim_whitespace=False, required=False, help_text=f"Required, by any of its names. {URL_HELP}"
    )
    targetUrl = _other_url()
    hookUrl = _other_url()
    url = _other_url()
    event = OneOrMoreTypesField(required=False)
    event_type = OneOrMoreTypesField(required=False)
    event_types = OneOrMoreTypesField(required=False)
    # Zapier may repeat the URL under this name, for a protocol that is older than its REST hooks.
    subscription_url = serializers.JSONField(required=False, help_text="Ignored.")
    description = DescriptionField()
    filter = FilterField(required=False, allow_null=True, help_text="As of a subscription.")
    channels = ChannelsField(required=False, help_text="As of a subscription.")
    handshake = handshake_field()

    def to_internal_value(self, data: Any) -> Any:
        """Require the URL by any of its names: here, so that it is told together with what else is wrong."""
        if isinstance(data, Mapping) and not any(name in data for name in URL_NAMES):
            self.fields["target_url"].required = True
            others = "targetUrl, hookUrl, and url are other names for it"
            self.fields["target_url"].error_messages["required"] = f"is required; {others}"
        return super().to_internal_value(data)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return the members by the names that `rest_hooks.subscribe` has for them."""
        url = _the_one(attrs, URL_NAMES)
        types = _the_one(attrs, TYPE_NAMES)
        return {
            "url": url,
            "types": types or [EVERYTHING],
            "description": attrs.get("description", ""),
            "filter": attrs.get("filter"),
            "channels": attrs.get("channels", []),
            "handshake": attrs.get("handshake", False),
        }


def _the_one(attrs: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value given under any of the names, or None.  Raises ValidationError if their values differ."""
    given = [name for name in names if name in attrs]
    for name in given[1:]:
        if attrs[name] != attrs[given[0]]:
            raise serializers.ValidationError({name: [f"is another name for {given[0]}, which has another value"]})
    return attrs[given[0]] if given else None


class HookSerializer(serializers.Serializer[Subscription]):
    """A subscription to an endpoint, as automation platforms see it."""

    id = serializers.UUIDField(help_text="The subscription's id, too.")
    target_url = serializers.CharField(source="url", help_text="Where webhooks are sent.")
    event_types = serializers.ListField(child=serializers.CharField(), help_text=EVENT_TYPES)
    filter = FilterField(allow_null=True, help_text="Null for all events of these types.")
    channels = serializers.ListField(child=serializers.CharField(), help_text="Empty for all events.")
    state = serializers.ChoiceField(choices=SubscriptionState.values, help_text="As of the subscription.")
    created_at = serializers.DateTimeField(help_text=CREATED_AT)


class SubscribedHookSerializer(HookSerializer):
    """A hook, with its secret if it is new."""

    secret = serializers.SerializerMethodField(
        help_text="`whsec_…`: the key that signs each request. Null unless the hook is new: it is shown once."
    )

    def get_secret(self, subscription: Subscription) -> str | None:
        return self.context["secret"] or None


HookPage = extend_schema_serializer(many=False)(page_of(HookSerializer, "HookPage"))
_render = row_renderer(HookSerializer())


def _count(raw: str) -> int:
    if not raw.isascii() or not raw.isdigit() or len(raw) > 3 or not 1 <= int(raw) <= MAX_SAMPLES:
        raise ParameterError(f"must be a whole number from 1 to {MAX_SAMPLES}")
    return int(raw)


class HookViewSet(OrganizationViewSet[Subscription]):
    """The organization's subscriptions to endpoints."""

    what = "hook"
    action_scopes: ClassVar = {
        "list": Scope.SUBSCRIPTIONS_MANAGE,
        "create": Scope.SUBSCRIPTIONS_MANAGE,
        "destroy": Scope.SUBSCRIPTIONS_MANAGE,
        "sample": Scope.EVENTS_READ,
    }

    def own_rows(self, request: Request) -> QuerySet[Subscription]:
        return rest_hooks.of_organization(caller_of(request).organization_id)

    def shown_rows(self, request: Request) -> QuerySet[Subscription]:
        return with_state(self.own_rows(request))

    @extend_schema(
        operation_id="listHooks",
        tags=["Hooks"],
        summary="List hooks",
        parameters=[query("target_url", "Only hooks with this URL."), *PAGE],
        responses=HookPage,
    )
    def list(self, request: Request) -> Response:
        """List the active hooks, newest first. Use `target_url` to find out whether a URL is subscribed."""
        parameters = parse_parameters(request, {"target_url": url_parameter, **PAGE_PARAMETERS})
        # One that is disabled is left out: a platform that finds a hook doesn't subscribe.
        rows = self.shown_rows(request).filter(is_active=True)
        if "target_url" in parameters:
            rows = rows.filter(url=parameters["target_url"])
        return Response(page(rows, parameters, _render))

    @extend_schema(
        operation_id="subscribeHook",
        tags=["Hooks"],
        summary="Subscribe a hook",
        parameters=[location(200, 201)],
        request=HookCreateSerializer,
        responses={
            201: OpenApiResponse(SubscribedHookSerializer, "Subscribed."),
            200: OpenApiResponse(SubscribedHookSerializer, "The URL was subscribed to these events before."),
            **refusals("too_many_subscriptions", "hook_exists", "handshake_failed"),
        },
        examples=[
            OpenApiExample("Zapier", EXAMPLE, request_only=True),
            OpenApiExample("Make", MAKE_EXAMPLE, request_only=True),
        ],
    )
    @idempotent(beforehand=lambda view, request: view.confirm_endpoint(request))
    def create(self, request: Request) -> Response:
        """Subscribe a URL to event types, or to all of them if none are given.

        If there is a hook with the same URL, event types, `filter`, and `channels`, it is returned, and enabled if it
        was disabled. A hook whose endpoint returns a 410 is deleted.
        """
        serializer = HookCreateSerializer(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        subscription, secret = self._subscribe(request, serializer.validated_data)
        if not subscription.is_active:
            subscriptions.enable(
                subscription,
                audit=lambda: audit.record_for_caller(
                    request, "subscription.enable", subscription.id, name=subscription.url
                ),
            )
        shown = SubscribedHookSerializer(self.shown_row(request, subscription.id), context={"secret": secret})
        location = full_path(f"/api/subscriptions/{subscription.id}")
        return Response(dict(shown.data), 201 if secret else 200, headers={"Location": location})

    @staticmethod
    def confirm_endpoint(request: Request) -> None:
        """Shake hands with the endpoint, if the request asks for it.  Raises Problem."""
        body = read_object(request)
        if not body.get("handshake"):
            return
        serializer = HookCreateSerializer(data=body)
        serializer.is_valid(raise_exception=True)
        name = next(name for name in URL_NAMES if name in body)
        require_handshake(request, serializer.validated_data["url"], {}, f"/{name}")

    @staticmethod
    def _subscribe(request: Request, wanted: dict[str, Any]) -> tuple[Subscription, str]:
        handshaken = {"handshake": True} if wanted.pop("handshake") else {}
        try:
            return rest_hooks.subscribe(
                caller_of(request).organization_id,
                **wanted,
                audit=lambda made: audit.record_for_caller(
                    request, "subscription.create", made.id, handshaken, name=made.url
                ),
            )
        except subscriptions.TooManySubscriptions:
            raise Problem(
                "too_many_subscriptions", "The organization has reached its limit of subscriptions."
            ) from None
        except rest_hooks.AlreadySubscribed as error:
            raise _hook_exists(error.subscription) from None

    @extend_schema(
        operation_id="unsubscribeHook",
        tags=["Hooks"],
        summary="Unsubscribe a hook",
        responses={204: OpenApiResponse(None, "There is no such hook any more.")},
    )
    def destroy(self, request: Request, hook_id: uuid.UUID) -> Response:
        """Delete the hook and cancel its waiting deliveries. Deleting it again is a 204, too."""
        subscription = self.own_rows(request).filter(pk=hook_id).first()
        if subscription is None:
            if rest_hooks.was_deleted(caller_of(request).organization_id, hook_id):
                return Response(status=204)
            raise no_such(self.what)
        subscriptions.delete(
            subscription,
            audit=lambda: audit.record_for_caller(
                request, "subscription.delete", subscription.id, name=subscription.url
            ),
        )
        return Response(status=204)

    @extend_schema(
        operation_id="sampleHook",
        tags=["Hooks"],
        summary="Get sample events",
        parameters=[
            query("event", "A type (`order.created`), a prefix (`order.*`), or `*`, which is the default."),
            query("limit", f"At most so many, 1 to {MAX_SAMPLES}; {DEFAULT_SAMPLES} by default.", int),
        ],
        responses=OpenApiResponse(
            {"type": "array", "items": {"$ref": "#/components/schemas/WebhookBody"}}, "What a hook would have received."
        ),
    )
    def sample(self, request: Request) -> Response:
        """Return the last events as a bare array, newest first, each exactly as it is delivered in the standard format.

        If there are none, the examples of the type in the catalog are returned, as if they had just been sent.
        """
        parsers: dict[str, Callable[[str], Any]] = {"event": type_pattern, "limit": _count}
        parameters = parse_parameters(request, parsers)
        pattern, most = parameters.get("event", EVERYTHING), parameters.get("limit", DEFAULT_SAMPLES)
        return Response(
            [Fragment(body) for body in rest_hooks.samples(caller_of(request).organization_id, pattern, most)]
        )


def _hook_exists(existing: Subscription) -> Problem:
    """Return the 409 for a URL that is subscribed to other events."""
    types = ", ".join(existing.event_types[:10])
    narrowed = ["a filter"] * bool(existing.filter) + ["channels"] * bool(existing.channels)
    which = f"{types} with {' and '.join(narrowed)}" if narrowed else types
    return Problem(
        "hook_exists",
        f"This URL is subscribed to {which}. Unsubscribe it with `DELETE /api/hooks/{existing.id}` first, or change "
        f"its events with `PATCH /api/subscriptions/{existing.id}`.",
        extra={
            "hook_id": str(existing.id),
            "event_types": existing.event_types,
            "filter": existing.filter or None,
            "channels": existing.channels,
        },
    )
