"""A preview: whether an event would match a subscription, and what would be sent.  Nothing is stored or sent."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass, replace
from typing import Any

from django.utils import timezone

from core import ratelimits
from webhooks.attempts import MASK
from webhooks.destinations.exchange import Exchange
from webhooks.destinations.formats import render
from webhooks.destinations.http.destination import build_headers, mask_headers
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.outcome import Failure
from webhooks.destinations.transform import TransformError
from webhooks.models import Subscription
from webhooks.outgoing import SingleOutgoing, endpoint_of
from webhooks.routing.filters import Filter, FilterError, parse_data
from webhooks.routing.matching import Matcher, SubscribedTypes

# The reasons why an event doesn't match a subscription, in the order in which they are checked.
MISMATCHES = ("event_types", "channels", "filter")

# An expression may take some 50 ms of the web process.
PER_MINUTE = 60


class TooManyPreviews(Exception):
    """The organization has made PER_MINUTE.  retry_after: in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The organization may make {PER_MINUTE} previews a minute.")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class PreviewedEvent:
    """The event that a preview is for, stored or not."""

    event_id: uuid.UUID
    type: str
    created_at: datetime.datetime
    data: str
    trace: str | None = None
    cloudevent: str | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """What would happen to the event.

    mismatch: which of MISMATCHES keeps it from matching, None if it matches; mismatch_detail says why.
    exchange, body: the request; None if `failure` would keep it from being made, which `detail` explains.
    """

    mismatch: str | None
    mismatch_detail: str
    format: str
    exchange: Exchange | None = None
    body: str | None = None
    failure: Failure | None = None
    detail: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the preview as the API shows it."""
        request = None
        if self.exchange is not None:
            headers = [(name, MASK if value is None else value) for name, value in self.exchange.request_headers]
            request = {
                "method": "POST",
                "url": self.exchange.url,
                "headers": [{"name": name, "value": value} for name, value in headers],
                "body": self.body,
                "body_bytes": self.exchange.body_bytes,
            }
        return {
            "would_match": self.mismatch is None,
            "mismatch": self.mismatch,
            "mismatch_detail": self.mismatch_detail,
            "format": self.format,
            "request": request,
            "error": self.failure,
            "error_detail": self.detail,
        }


def preview(subscription: Subscription, event: PreviewedEvent, form: str, expression: str, conditions: Any) -> Preview:
    """Return what would happen to the event, in the format `form`, with `conditions` as the filter.

    Raises TooManyPreviews.

    Whether the subscription is disabled or the organization would take the event doesn't matter.
    """
    decision = ratelimits.hit("previews", str(subscription.organization_id), PER_MINUTE)
    if not decision.allowed:
        raise TooManyPreviews(max(1, decision.reset_seconds))
    result = Preview(*_mismatch(subscription, event, conditions), form)
    now = timezone.now()
    endpoint = endpoint_of(subscription, now)
    if endpoint.fault:
        return replace(result, failure=Failure.INTERNAL_ERROR, detail=endpoint.fault)
    outgoing = _outgoing(subscription, event, endpoint)
    try:
        body = render(outgoing, subscription.organization_id, form, expression)
    except TransformError as error:
        return replace(result, failure=Failure.TRANSFORM_FAILED, detail=str(error))
    headers = mask_headers(build_headers(outgoing, int(now.timestamp()), body.content, body), endpoint)
    if endpoint.token is not None:
        headers.append(("authorization", None))
    exchange = Exchange(endpoint.url, headers, len(body.content))
    return replace(result, exchange=exchange, body=body.content.decode(errors="replace"))


def _mismatch(subscription: Subscription, event: PreviewedEvent, conditions: Any) -> tuple[str | None, str]:
    """Return what keeps the event from matching, and why."""
    wanted = SubscribedTypes(
        subscription.pk, tuple(subscription.event_types), True, channels=frozenset(subscription.channels)
    )
    if not Matcher([wanted]).match(event.type):
        return "event_types", "The subscription's event types don't want this type."
    if not wanted.wants_channels(event.channels):
        return "channels", "The event has none of the subscription's channels."
    if conditions is not None:
        try:
            why_not = Filter(conditions).why_not(parse_data(event.data))
        except FilterError as error:  # a stored one that can't be used: it wants nothing
            why_not = f"The filter can't be used: /{'/'.join(error.path)} {error.reason}."
        if why_not is not None:
            return "filter", why_not
    return None, ""


def _outgoing(subscription: Subscription, event: PreviewedEvent, endpoint: Endpoint) -> SingleOutgoing:
    return SingleOutgoing(
        event.event_id,
        event.type,
        event.created_at,
        event.data,
        endpoint,
        subscription.organization_id,
        event.trace,
        event.cloudevent,
    )
