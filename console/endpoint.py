"""What a subscription's page shows of its endpoint: figures over time, causes, recent attempts, and its queue."""

from __future__ import annotations

import uuid
from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from console.formatting import list_link, object_link
from webhooks.display import panels
from webhooks.display.causes import error_words
from webhooks.display.formatting import cause_of, format_duration, format_time, short
from webhooks.display.series import SPANS, read_series
from webhooks.display.standing import count_waiting, recent_attempts, when
from webhooks.inboxes import is_inbox
from webhooks.models import Delivery, Subscription, SubscriptionQueue

SHOWN_ATTEMPTS = 20
_LINKED_STATUSES = ("pending", "retrying", "failed", "held", "delivered")
_LINKED_OF_INBOX = ("pending", "delivering", "retrying", "held", "delivered", "cancelled")


def endpoint_context(request: HttpRequest, subscription: Subscription) -> dict[str, Any]:
    """Return what the page shows above the subscription's settings."""
    if is_inbox(subscription):
        return {
            "is_inbox": True,
            "organization": object_link(subscription.organization),
            "deliveries": _links(subscription, _LINKED_OF_INBOX),
            "queue": _inbox_facts(subscription),
        }
    span = SPANS.get(request.GET.get("span", ""), SPANS["24h"])
    series = read_series(span, subscription.organization_id, subscription.pk)
    page = reverse("admin:webhooks_subscription_change", args=[subscription.pk])
    as_table = "table" in request.GET
    return {
        "organization": object_link(subscription.organization),
        "deliveries": _links(subscription, _LINKED_STATUSES),
        "span": span,
        "spans": [(one.label, f"{page}?span={one.name}", one is span) for one in SPANS.values()],
        "table_url": f"{page}?span={span.name}&table=1",
        "charts_url": f"{page}?span={span.name}",
        "headline": panels.headline(series)[1:],
        "charts": None if as_table else panels.delivery_charts(series),
        "table": panels.endpoint_table(series) if as_table else None,
        "causes": panels.failures_by_cause(series.total()),
        "queue": _queue_facts(subscription),
        "attempts": _recent_attempts(subscription.pk),
    }


def _links(subscription: Subscription, statuses: tuple[str, ...]) -> list[Any]:
    return [
        list_link("webhooks_delivery", name, subscription=subscription.pk, **status)
        for name, status in [("all", {}), *((one, {"status": one}) for one in statuses)]
    ]


def _inbox_facts(subscription: Any) -> list[tuple[str, Any]]:
    """Return how an inbox that was read with its state stands, and what is in it.  Nothing is sent or attempted."""
    counts = count_waiting(subscription.pk)

    def waiting(count: str, status: str) -> Any:
        return list_link("webhooks_delivery", count, subscription=subscription.pk, status=status)

    return [
        ("in this state since", when(subscription.state_since, timezone.now())),
        ("cause", cause_of(subscription) or "-"),
        ("waiting to be fetched", waiting(counts.pending, "pending")),
        ("fetched, and not acknowledged yet", waiting(counts.fetched, "delivering")),
        ("given back by a consumer", waiting(counts.retrying, "retrying")),
        ("held", waiting(counts.held, "held")),
    ]


def _queue_facts(subscription: Any) -> list[tuple[str, Any]]:
    """Return how a subscription that was read with its state stands, what waits, and behind what."""
    queue: SubscriptionQueue | None = getattr(subscription, "queue", None)
    if queue is None:
        return []
    counts = count_waiting(subscription.pk)
    now = timezone.now()

    def waiting(status: str) -> Any:
        return list_link("webhooks_delivery", getattr(counts, status), subscription=subscription.pk, status=status)

    return [
        ("in this state since", when(subscription.state_since, now)),
        ("cause", cause_of(subscription) or "-"),
        ("waiting for their first attempt", waiting("pending")),
        ("retrying", waiting("retrying")),
        ("due: sent after the pause" if subscription.paused_until else "due: sent as soon as there is room",
         counts.due),
        ("held", waiting("held")),
        ("next attempt", when(subscription.next_attempt_at, now)),
        ("requests in flight, of how many at a time", f"{queue.in_flight} of {queue.concurrency_window}"),
        ("circuit breaker", str(subscription.breaker)),
        ("paused until", when(subscription.paused_until, now)),
        ("last success", when(subscription.last_success_at, now)),
        ("last failure", when(subscription.last_failure_at, now)),
        ("last error", error_words(subscription.last_error, subscription.last_status_code) or "-"),
        ("failing since", when(subscription.failing_since, now)),
        ("consecutive failures", f"{queue.consecutive_failures:,}"),
        ("has backlog: the last claim left some", "yes" if queue.has_backlog else "no"),
    ]  # fmt: skip


def _recent_attempts(subscription_id: uuid.UUID) -> list[dict[str, Any]]:
    """Return the newest attempts, with links."""
    attempts = recent_attempts(Delivery.objects.filter(subscription_id=subscription_id), SHOWN_ATTEMPTS)
    return [
        {
            "started_at": format_time(attempt.started_at),
            "delivery": object_link(attempt.delivery, f"{short(attempt.delivery.event.type, 50)} #{attempt.number}"),
            "succeeded": not attempt.error,
            "outcome": error_words(attempt.error, attempt.status_code) or "delivered",
            "duration": format_duration(attempt.duration_ms),
            "detail": short(attempt.response_body or attempt.error_detail, 80),
        }
        for attempt in attempts
    ]
