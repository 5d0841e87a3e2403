"""The current numbers on the admin's first page."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from django.urls import reverse
from django.utils import timezone

from core.redis_health import RedisHealth
from events.backlog import oldest_waiting_seconds, waiting_events
from events.models import Event, EventStatus
from webhooks import stats
from webhooks.display.formatting import format_duration
from webhooks.models import Delivery, DeliveryStatus
from webhooks.stats import PauseReason

# Counting stops here; `bounded` shows that there may be more.
COUNT_TO = 10_000
# What waits longer than this, in seconds, needs attention.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Stat:
    """One number on the dashboard.  alarm: it needs attention."""

    name: str
    value: str
    note: str = ""
    url: str = ""
    alarm: bool = False


def _list(model: str, **filters: str) -> str:
    return reverse(f"admin:{model}_changelist", query=filters)


def bounded(count: int) -> str:
    """Return a number that was counted up to COUNT_TO."""
    return f"{COUNT_TO:,}+" if count >= COUNT_TO else f"{count:,}"


def _age(seconds: float) -> str:
    return f"oldest {format_duration(1000 * seconds)}" if seconds else ""


_REASONS = {
    PauseReason.CIRCUIT_BREAKER: "behind circuit breakers",
    PauseReason.RETRY_AFTER: "asked to wait by endpoints",
    PauseReason.RATE_LIMIT: "at their rate limit",
    PauseReason.CONCURRENCY_LIMIT: "for endpoints that are busy",
    PauseReason.SENDING_DISABLED: "because DISABLE_WEBHOOK_DELIVERY is set",
}

_PAUSES_OF_ENDPOINTS = {PauseReason.CIRCUIT_BREAKER.value, PauseReason.RETRY_AFTER.value}


def _by_reason(paused: dict[str, int]) -> str:
    return ", ".join(f"{bounded(count)} {_REASONS[PauseReason(reason)]}" for reason, count in paused.items())


def read_stats(redis: RedisHealth) -> list[Stat]:
    """Return what is waiting, what failed, and which workers run.  Each number comes from one cheap index scan."""
    waiting = waiting_events(COUNT_TO)
    due, all_paused = stats.waiting_deliveries(COUNT_TO)
    event_age = oldest_waiting_seconds() if waiting else 0.0
    due_age = stats.oldest_due_seconds() if due else 0.0
    hour_ago = timezone.now() - datetime.timedelta(hours=1)
    # Of columns that the index has: so PostgreSQL reads no rows, and no rows come here.
    failed_rows = Delivery.objects.filter(status=DeliveryStatus.FAILED, completed_at__gte=hour_ago)
    failed = failed_rows.order_by().values("completed_at")[:COUNT_TO].count()
    errors = Event.objects.filter(status=EventStatus.ERROR).order_by().values("created_at")[:COUNT_TO].count()
    paused = {reason: count for reason, count in all_paused.items() if count}
    # Apart, as in the chart: what is held waits for a person.
    held = paused.pop(PauseReason.HELD.value, 0)
    retrying = stats.retrying_deliveries(COUNT_TO)
    rq = reverse("django_rq:home")
    return [
        Stat("events waiting", bounded(waiting), _age(event_age), _list("events_event", status="accepted"),
               event_age > LATE_SECONDS),
        Stat("events in fan-out", str(stats.events_in_fan_out())),
        Stat("deliveries due", bounded(due), _age(due_age) or "could be sent now",
               _list("webhooks_delivery", status="pending"), due_age > LATE_SECONDS),
        # To the endpoints, which say why and until when.  What waits for a limit isn't behind a paused endpoint.
        Stat("deliveries paused", bounded(sum(paused.values())), _by_reason(paused),
               _list("webhooks_subscription", state="paused") if paused.keys() & _PAUSES_OF_ENDPOINTS else ""),
        Stat("deliveries held", bounded(held), "for disabled subscriptions, or by somebody",
               _list("webhooks_delivery", status="held")),
        Stat("retrying", bounded(retrying), "failed or given back, and will be attempted again",
               _list("webhooks_delivery", status="retrying")),
        Stat("deliveries in flight", str(stats.deliveries_in_flight()), "",
               _list("webhooks_delivery", status="delivering")),
        Stat("failed in the last hour", bounded(failed), "no attempts left",
               _list("webhooks_delivery", status="failed-1h"), failed > 0),
        Stat("events in error", bounded(errors), "fan-out failed", _list("events_event", status="error"),
               errors > 0),
        Stat("live workers", "?" if redis.workers is None else str(redis.workers), redis.problem or "RQ's pages", rq,
               bool(redis.problem)),
    ]  # fmt: skip
