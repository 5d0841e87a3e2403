"""The numbers on the admin's first page."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from console.formatting import cause_of, format_time, list_link, object_link, short, state_badge
from core.redis_health import check_redis
from events.backlog import oldest_waiting_seconds, waiting_events
from events.models import Event, EventStatus
from webhooks import stats
from webhooks.models import Delivery, DeliveryStatus, Subscription
from webhooks.states import SubscriptionState, in_state, with_state
from webhooks.stats import PauseReason

COUNT_TO = 10_000
SHOWN_SUBSCRIPTIONS = 10
# Waiting longer than this is an alarm.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One number on the dashboard.  alarm: it needs somebody's attention."""

    name: str
    value: str
    note: str = ""
    url: str = ""
    alarm: bool = False


def _list(model: str, **filters: str) -> str:
    return reverse(f"admin:{model}_changelist", query=filters)


def _bounded(count: int) -> str:
    return f"{COUNT_TO:,}+" if count >= COUNT_TO else f"{count:,}"


def _age(seconds: float) -> str:
    return f"oldest {datetime.timedelta(seconds=round(seconds))}" if seconds else ""


_REASONS = {
    PauseReason.CIRCUIT_BREAKER: "behind circuit breakers",
    PauseReason.RETRY_AFTER: "asked to wait by endpoints",
    PauseReason.RATE_LIMIT: "at their rate limit",
    PauseReason.CONCURRENCY_LIMIT: "for endpoints that are busy",
    PauseReason.HELD: "held",
    PauseReason.SENDING_DISABLED: "because DISABLE_WEBHOOK_DELIVERY is set",
}


def _by_reason(paused: dict[str, int]) -> str:
    return ", ".join(f"{_bounded(count)} {_REASONS[PauseReason(reason)]}" for reason, count in paused.items())


def read_figures() -> list[Figure]:
    """Return what waits, what failed and who works.  Each figure is one cheap look at an index."""
    waiting, due = waiting_events(COUNT_TO), stats.due_deliveries(COUNT_TO)
    event_age = oldest_waiting_seconds() if waiting else 0.0
    due_age = stats.oldest_due_seconds() if due else 0.0
    hour_ago = timezone.now() - datetime.timedelta(hours=1)
    failed_rows = Delivery.objects.filter(status=DeliveryStatus.FAILED, completed_at__gte=hour_ago)
    failed = len(failed_rows.values_list("pk")[:COUNT_TO])
    errors = len(Event.objects.filter(status=EventStatus.ERROR).values_list("pk")[:COUNT_TO])
    paused = {reason: count for reason, count in stats.paused_deliveries(COUNT_TO).items() if count}
    retrying = stats.retrying_deliveries(COUNT_TO)
    redis = check_redis()
    rq = reverse("django_rq:home")
    return [
        Figure("events waiting", _bounded(waiting), _age(event_age), _list("events_event", status="accepted"),
               event_age > LATE_SECONDS),
        Figure("events in fan-out", str(stats.events_in_fan_out())),
        Figure("deliveries due", _bounded(due), _age(due_age) or "could be sent now",
               _list("webhooks_delivery", status="pending"), due_age > LATE_SECONDS),
        Figure("deliveries paused", _bounded(sum(paused.values())), _by_reason(paused)),
        Figure("retrying", _bounded(retrying), "failed, and will be attempted again",
               _list("webhooks_delivery", status="retrying")),
        Figure("deliveries in flight", str(stats.deliveries_in_flight()), "",
               _list("webhooks_delivery", status="delivering")),
        Figure("failed in the last hour", _bounded(failed), "no attempts left",
               _list("webhooks_delivery", status="failed-1h"), failed > 0),
        Figure("events in error", _bounded(errors), "fan-out failed", _list("events_event", status="error"),
               errors > 0),
        Figure("live workers", "?" if redis.workers is None else str(redis.workers), redis.problem or "RQ's pages", rq,
               bool(redis.problem)),
    ]  # fmt: skip


_COUNT_WAITING = """
SELECT s.id, (
    SELECT count(*) FROM (
        SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = s.id AND d.status IN ('pending', 'held') LIMIT %s
    ) AS waiting
) FROM unnest(%s::uuid[]) AS s(id)
"""


def read_unhealthy() -> list[dict[str, Any]]:
    """Return the subscriptions that are failing, paused or disabled, those that have been so longest first."""
    subscriptions = (
        with_state(Subscription.objects.filter(deleted_at=None))
        .filter(Q(queue__failing_since__isnull=False) | Q(is_active=False) | in_state(SubscriptionState.PAUSED))
        .select_related("organization")
        .order_by("-is_active", "queue__failing_since", "disabled_at", "pk")[:SHOWN_SUBSCRIPTIONS]
    )
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_WAITING, [COUNT_TO, [row.pk for row in subscriptions]])
        waiting = dict(cursor.fetchall())
    rows: list[dict[str, Any]] = []
    for row in subscriptions:
        found: Any = row
        status = {"status": "held"} if found.state == SubscriptionState.DISABLED else {}
        rows.append(
            {
                "subscription": object_link(row, short(row.url, 60)),
                "organization": object_link(row.organization),
                "state": state_badge(found.state),
                "since": format_time(found.state_since),
                "cause": cause_of(found),
                "next_attempt": format_time(found.next_attempt_at),
                "waiting": list_link("webhooks_delivery", _bounded(waiting[row.pk]), subscription=row.pk, **status),
                "failed": list_link("webhooks_delivery", "failed", subscription=row.pk, status="failed"),
            }
        )
    return rows
