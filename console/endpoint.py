"""What a subscription's page shows of its endpoint: figures over time, causes, recent attempts, and its queue."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from console import panels
from console.causes import error_words
from console.formatting import cause_of, format_duration, format_time, list_link, object_link, short
from console.series import SPANS, read_series
from core.db import server_cursor
from core.query import newest
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus, Subscription, SubscriptionQueue

SHOWN_ATTEMPTS = 20
# Their deliveries are among so many of the newest, and of those that wait for their next attempt longest.
NEWEST_DELIVERIES = 500
COUNT_TO = 10_000
_LINKED_STATUSES = ("pending", "retrying", "failed", "held", "delivered")

_COUNT_WAITING = """
SELECT count(*), count(*) FILTER (WHERE next_attempt_at <= statement_timestamp()),
       count(*) FILTER (WHERE last_error <> ''),
       (SELECT count(*) FROM (SELECT 1 FROM webhooks_delivery WHERE subscription_id = %(id)s AND status = 'held'
                              LIMIT %(most)s) AS held)
FROM (
    SELECT next_attempt_at, last_error FROM webhooks_delivery WHERE subscription_id = %(id)s AND status = 'pending'
    ORDER BY next_attempt_at LIMIT %(most)s
) AS pending
"""


def endpoint_context(request: HttpRequest, subscription: Subscription) -> dict[str, Any]:
    """Return what the page shows above the subscription's settings."""
    span = SPANS.get(request.GET.get("span", ""), SPANS["24h"])
    series = read_series(span, subscription.organization_id, subscription.pk)
    page = reverse("admin:webhooks_subscription_change", args=[subscription.pk])
    as_table = "table" in request.GET
    deliveries = [
        list_link("webhooks_delivery", name, subscription=subscription.pk, **status)
        for name, status in [("all", {}), *((one, {"status": one}) for one in _LINKED_STATUSES)]
    ]
    return {
        "organization": object_link(subscription.organization),
        "deliveries": deliveries,
        "span": span,
        "spans": [(one.label, f"{page}?span={one.name}", one is span) for one in SPANS.values()],
        "table_url": f"{page}?span={span.name}&table=1",
        "charts_url": f"{page}?span={span.name}",
        "headline": panels.headline(series)[1:],
        "charts": None if as_table else panels.delivery_charts(series),
        "table": panels.table(series) if as_table else None,
        "causes": panels.failures_by_cause(series.total()),
        "queue": _queue_facts(subscription),
        "attempts": _recent_attempts(subscription.pk),
    }


def _queue_facts(subscription: Any) -> list[tuple[str, Any]]:
    """Return how a subscription that was read with its state stands, what waits, and behind what."""
    queue: SubscriptionQueue | None = getattr(subscription, "queue", None)
    if queue is None:
        return []
    with server_cursor() as cursor:
        parameters = {"id": subscription.pk, "most": COUNT_TO}
        ((pending, due, retrying, held),) = cursor.execute(_COUNT_WAITING, parameters).fetchall()
    now = timezone.now()
    # Counting stops at so many of both together.
    more = "+" if pending >= COUNT_TO else ""

    def waiting(number: int, status: str, more: str) -> Any:
        return list_link("webhooks_delivery", f"{number:,}{more}", subscription=subscription.pk, status=status)

    return [
        ("in this state since", _when(subscription.state_since, now)),
        ("cause", cause_of(subscription) or "-"),
        ("waiting for their first attempt", waiting(pending - retrying, "pending", more)),
        ("retrying", waiting(retrying, "retrying", more)),
        ("due: sent after the pause" if subscription.paused_until else "due: sent as soon as there is room",
         f"{due:,}{more}"),
        ("held", waiting(held, "held", "+" if held >= COUNT_TO else "")),
        ("next attempt", _when(subscription.next_attempt_at, now)),
        ("requests in flight, of how many at a time", f"{queue.in_flight} of {queue.concurrency_window}"),
        ("circuit breaker", str(subscription.breaker)),
        ("paused until", _when(subscription.paused_until, now)),
        ("last success", _when(subscription.last_success_at, now)),
        ("last failure", _when(subscription.last_failure_at, now)),
        ("last error", error_words(subscription.last_error, subscription.last_status_code) or "-"),
        ("failing since", _when(subscription.failing_since, now)),
        ("consecutive failures", f"{queue.consecutive_failures:,}"),
        ("has backlog: the last claim left some", "yes" if queue.has_backlog else "no"),
    ]  # fmt: skip


def _when(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return a time, and how far away it is."""
    if moment is None:
        return "-"
    seconds = (now - moment).total_seconds()
    distance = format_duration(abs(seconds) * 1000)
    return f"{format_time(moment)} ({f'{distance} ago' if seconds >= 0 else f'in {distance}'})"


def _recent_attempts(subscription_id: uuid.UUID) -> list[dict[str, Any]]:
    """Return the newest attempts.  There is no index of attempts by subscription: they are found by its deliveries."""
    rows = Delivery.objects.filter(subscription_id=subscription_id)
    recent = newest(rows.only("id", "created_at", "attempt_count"), NEWEST_DELIVERIES)
    ids = [row.pk for row in recent if row.attempt_count][: 2 * SHOWN_ATTEMPTS]
    waiting = rows.filter(status=DeliveryStatus.PENDING).order_by("-next_attempt_at")
    ids += [pk for pk, attempts in waiting.values_list("pk", "attempt_count")[:SHOWN_ATTEMPTS] if attempts]
    attempts = DeliveryAttempt.objects.filter(delivery_id__in=set(ids)).select_related("delivery__event")
    attempts = attempts.defer("sealed_exchange", "delivery__event__data").order_by("-started_at")[:SHOWN_ATTEMPTS]
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
