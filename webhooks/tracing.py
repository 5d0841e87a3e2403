"""The spans of an event: its fan-out, the attempts to deliver it, and its fetches from inboxes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from core import tracing
from events.models import Event
from webhooks.destinations.inbox.fetching import FetchedEvent
from webhooks.destinations.outcome import Outcome
from webhooks.dispatch.delivery import ClaimedDelivery

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger()


def trace_fan_out(event_ids: Sequence[uuid.UUID], seconds: float) -> None:
    """Make the spans of events whose fan-out is committed.  No failure of it fails the fan-out."""
    if not tracing.is_on() or not event_ids:
        return
    try:
        traced = Event.objects.filter(pk__in=event_ids, trace__isnull=False)
        for event in traced.only("id", "organization_id", "type", "trace"):
            attributes = {
                "triggers.event_id": str(event.pk),
                "triggers.event_type": event.type,
                "triggers.organization_id": str(event.organization_id),
            }
            tracing.end_span(tracing.start_span("fan-out", event.trace, "INTERNAL", attributes, seconds))
    except Exception as error:
        log.warning("fan_out_not_traced", error=repr(error)[:300])


def trace_fetch(
    inbox_id: uuid.UUID, organization_id: uuid.UUID, events: Sequence[FetchedEvent], started: float
) -> None:
    """Make the spans of events that a consumer has fetched: what an attempt is to an endpoint.

    started: `time.perf_counter()` when the fetch began.
    """
    if not tracing.is_on():
        return
    seconds = time.perf_counter() - started
    for event in events:
        if event.event_trace is None:
            continue
        attributes = {
            "triggers.delivery_id": str(event.delivery_id),
            "triggers.event_id": str(event.event_id),
            "triggers.event_type": event.event_type,
            "triggers.subscription_id": str(inbox_id),
            "triggers.organization_id": str(organization_id),
            "triggers.attempts_before": event.attempt - 1,
        }
        tracing.end_span(tracing.start_span("fetch", event.event_trace, "INTERNAL", attributes, seconds))


def start_attempt(delivery: ClaimedDelivery) -> Span | None:
    """Start the span of an attempt, which this task's requests belong to, and return it; None if traces are off."""
    if not tracing.is_on() or delivery.event_trace is None:
        return None
    attributes = {
        "http.request.method": "POST",
        "server.address": urlsplit(delivery.endpoint.url).hostname or "",
        "triggers.delivery_id": str(delivery.delivery_id),
        "triggers.event_id": str(delivery.event_id),
        "triggers.event_type": delivery.event_type,
        "triggers.subscription_id": str(delivery.subscription_id),
        "triggers.organization_id": str(delivery.organization_id),
        "triggers.attempts_before": delivery.attempts_used,
    }
    span = tracing.start_span("attempt", delivery.event_trace, "CLIENT", attributes)
    tracing.current_span_id.set(tracing.span_id_of(span))
    return span


def end_attempt(span: Span, outcome: Outcome) -> None:
    """End the span of an attempt."""
    error = outcome.failure.value if outcome.failure is not None else ""
    status = {} if outcome.status_code is None else {"http.response.status_code": outcome.status_code}
    tracing.end_span(span, error, **status)
