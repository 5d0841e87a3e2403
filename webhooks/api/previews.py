"""What `POST /api/subscriptions/{id}/preview` takes and returns."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request

from core.ids import new_id, parse_id
from core.json_body import MAX_OBJECT_BYTES, read_body, require_media_type
from core.problems import Problem, invalid
from core.serializers import StrictCharField, StrictChoiceField, StrictSerializer
from events.models import Event
from events.payload import parse_with_options
from orgs.authentication import caller_of
from orgs.scopes import Scope
from webhooks.api import descriptions
from webhooks.api.delivery_serializers import HeaderSerializer
from webhooks.api.fields import ChannelsField, ExpressionField, FailureField, FilterField
from webhooks.event_preview import MISMATCHES, Preview, PreviewedEvent, TooManyPreviews, preview
from webhooks.models import FORMATS, Subscription

EXAMPLE = {"type": "order.created", "data": {"order": 4711}, "transform": "{text: join(' ', ['New:', type])}"}


class PreviewRequestSerializer(StrictSerializer):
    """An event, or the id of one, and what to try with it."""

    type = StrictCharField(max_length=255, required=False, help_text="The event's type; with `data`.")
    data = serializers.JSONField(  # type: ignore[assignment]
        required=False, help_text="The event's data, any JSON value."
    )
    channels = ChannelsField(required=False, allow_null=True, help_text="The event's channels.")
    event_id = StrictCharField(
        max_length=36,
        required=False,
        help_text="An event of the organization, in place of `type` and `data`. The key needs the scope `events:read`.",
    )
    format = StrictChoiceField(
        choices=list(FORMATS),
        required=False,
        help_text="Try this format; without it, the subscription's, or `transform` if an expression is given.",
    )
    filter = FilterField(
        required=False, allow_null=True, help_text="Try these conditions in place of the subscription's."
    )
    transform = ExpressionField(
        max_length=4096, required=False, help_text="Try this JMESPath expression in place of the subscription's."
    )


class PreviewedRequestSerializer(serializers.Serializer[Any]):
    """The request that would be made, but for `Host` and `Content-Length`."""

    method = serializers.CharField(help_text=descriptions.METHOD)
    url = serializers.CharField(help_text="The subscription's URL.")
    headers = HeaderSerializer(many=True, help_text=descriptions.REQUEST_HEADERS)
    body = serializers.CharField(help_text="The body as it would be sent.")
    body_bytes = serializers.IntegerField(help_text=descriptions.BODY_BYTES)


class PreviewSerializer(serializers.Serializer[Any]):
    """What would become of an event."""

    would_match = serializers.BooleanField(help_text="Whether the subscription wants the event.")
    mismatch = serializers.ChoiceField(
        choices=MISMATCHES, allow_null=True, help_text="Which of them doesn't want it, the first one; null for a match."
    )
    mismatch_detail = serializers.CharField(help_text="Why it doesn't, in a sentence; empty for a match.")
    format = serializers.ChoiceField(choices=list(FORMATS), help_text="The format that was tried.")
    request = PreviewedRequestSerializer(allow_null=True, help_text="Null if `error` would keep it from being made.")
    error = FailureField(help_text="`transform_failed` if the expression fails for this event; null for a success.")
    error_detail = serializers.CharField(help_text="The error in a sentence; empty for a success.")


def make_preview(request: Request, subscription: Subscription) -> Preview:
    """Return the preview that a request asks for.  Raises Problem."""
    require_media_type(request.content_type, "application/json")
    # The event's bytes, and as many for the expression as any other object may have.
    body = read_body(request._request, settings.MAX_EVENT_BYTES + MAX_OBJECT_BYTES)
    new, options = parse_with_options(body, ("event_id", "format", "transform", "filter"), instead="event_id")
    serializer = PreviewRequestSerializer(data=options)
    serializer.is_valid(raise_exception=True)
    tried = serializer.validated_data
    form = tried.get("format") or ("transform" if "transform" in tried else subscription.format)
    expression = tried.get("transform", subscription.transform)
    if form == "transform" and not expression:
        raise invalid([("/transform", "is required for the format transform")])
    if new is not None:
        event = PreviewedEvent(new_id(), new.type, timezone.now(), new.data, channels=new.channels)
    else:
        event = _stored(request, tried["event_id"])
    try:
        return preview(subscription, event, form, expression, tried.get("filter", subscription.filter))
    except TooManyPreviews as error:
        raise Problem("too_many_previews", str(error), headers={"Retry-After": str(error.retry_after)}) from None


def _stored(request: Request, text: str) -> PreviewedEvent:
    """Return an event of the caller's organization.  Raises Problem."""
    caller = caller_of(request)
    if Scope.EVENTS_READ not in caller.scopes:
        scope = Scope.EVENTS_READ.value
        raise Problem("missing_scope", f"This key lacks the scope {scope}, for event_id.", extra={"scope": scope})
    event_id = parse_id(text)
    row = event_id and Event.objects.filter(organization_id=caller.organization_id, pk=event_id).first()
    if not row:
        raise invalid([("/event_id", "is not an event of your organization")])
    if row.is_erased:
        raise invalid([("/event_id", "is an event whose payload was erased")])
    return PreviewedEvent(
        row.pk, row.type, row.created_at, row.data, row.trace, row.cloudevent, tuple(row.channels or ())
    )
