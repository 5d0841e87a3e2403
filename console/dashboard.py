"""The numbers of this moment on the admin's first page."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from django.urls import reverse
from django.utils import timezone

from core.redis import RedisUnavailable, call_redis
from core.workers import count_live_workers
from events.backlog import oldest_waiting_seconds, waiting_events
from events.models import Event, EventStatus
from webhooks import stats
from webhooks.models import Delivery, DeliveryStatus

COUNT_TO = 10_000
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


def read_figures() -> list[Figure]:
    """Return what waits, what failed and who works.  Each figure is one cheap look at an index."""
    waiting, due = waiting_events(COUNT_TO), stats.due_deliveries(COUNT_TO)
    event_age = oldest_waiting_seconds() if waiting else 0.0
    due_age = stats.oldest_due_seconds() if due else 0.0
    hour_ago = timezone.now() - datetime.timedelta(hours=1)
    failed_rows = Delivery.objects.filter(status=DeliveryStatus.FAILED, completed_at__gte=hour_ago)
    failed = len(failed_rows.values_list("pk")[:COUNT_TO])
    errors = len(Event.objects.filter(status=EventStatus.ERROR).values_list("pk")[:COUNT_TO])
    try:
        workers: int | None = call_redis(count_live_workers)
    except RedisUnavailable:
        workers = None
    rq = reverse("django_rq:home")
    return [
        Figure("events waiting", _bounded(waiting), _age(event_age), _list("events_event", status="accepted"),
               event_age > LATE_SECONDS),
        Figure("events in fan-out", str(stats.events_in_fan_out())),
        Figure("deliveries due", _bounded(due), _age(due_age), _list("webhooks_delivery", status="pending"),
               due_age > LATE_SECONDS),
        Figure("deliveries in flight", str(stats.deliveries_in_flight()), "",
               _list("webhooks_delivery", status="delivering")),
        Figure("failed in the last hour", _bounded(failed), "no attempts left",
               _list("webhooks_delivery", status="failed-1h"), failed > 0),
        Figure("events in error", _bounded(errors), "fan-out failed", _list("events_event", status="error"),
               errors > 0),
        Figure("live workers", "?" if workers is None else str(workers),
               "Redis is not responding" if workers is None else "RQ's pages", rq, not workers),
    ]  # fmt: skip
