"""`/api/health` for load balancers and `/api/health/detailed` for operators."""

from __future__ import annotations

from typing import Any

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from psycopg import Error as PsycopgError
from psycopg_pool import PoolTimeout

from core.json_response import JSONRenderer
from core.problems import only_get
from core.redis_health import check_redis
from events.backlog import oldest_waiting_seconds, waiting_events
from webhooks import stats

log = structlog.get_logger()

SERVICE = "Zapier Triggers API"
# Counting stops here: the page must stay cheap however long the queues are.
COUNT_TO = 10_000


def _answer(body: dict[str, Any], status: int = 200) -> HttpResponse:
    return HttpResponse(JSONRenderer().render(body), status=status, content_type="application/json")


def health(request: HttpRequest) -> HttpResponse:
    """Say that this process responds.  It calls no other service: a load balancer must not drop every web
    process because a part behind them is away."""
    if (refusal := only_get(request)) is not None:
        return refusal
    return _answer({"status": "healthy", "service": SERVICE})


def _database_stats() -> dict[str, Any]:
    due, paused = stats.waiting_deliveries(COUNT_TO)
    waiting = waiting_events(COUNT_TO)
    return {
        "queues": {
            "event_queue_length": waiting,
            "webhook_queue_length": due,
            "event_pending_processing": stats.events_in_fan_out(),
            "webhook_pending_processing": stats.deliveries_in_flight(),
            "counted_up_to": COUNT_TO,
        },
        "oldest_waiting_seconds": {
            "event": round(oldest_waiting_seconds(), 3) if waiting else 0.0,
            "webhook": round(stats.oldest_due_seconds(), 3) if due else 0.0,
        },
        "paused_deliveries": paused,
    }


def health_detailed(request: HttpRequest) -> HttpResponse:
    """Return the state of the parts, true numbers of the queues, and the limits in force.

    503 when a part is down, with the reason.  Without Redis, or a Redis that takes writes, the system is `degraded`:
    events are accepted and kept, deliveries are slower.  Without workers, nothing is sent.
    """
    if (refusal := only_get(request)) is not None:
        return refusal
    body: dict[str, Any] = {"status": "healthy", "service": SERVICE, "redis": "up", "database": "up"}
    reasons = []
    try:
        body.update(_database_stats())
    except (DatabaseError, PsycopgError, PoolTimeout) as error:
        log.warning("health_database_down", error=type(error).__name__)
        body.update(status="unhealthy", database="down")
        reasons.append("The database is not responding.")
    redis = check_redis()
    body.update(redis=redis.state, workers=redis.workers)
    if redis.problem:
        if body["status"] == "healthy":
            body["status"] = "degraded"
        reasons.append(redis.problem)
    body["config"] = {
        "max_concurrent_events": settings.MAX_CONCURRENT_EVENTS,
        "max_concurrent_deliveries": settings.MAX_CONCURRENT_DELIVERIES,
        "max_queue_length": settings.MAX_QUEUE_LENGTH,
        "delivery_retry_schedule_seconds": list(settings.DELIVERY_RETRY_SCHEDULE),
        "webhook_delivery_disabled": settings.DISABLE_WEBHOOK_DELIVERY,
    }
    if reasons:
        body["reasons"] = reasons
    return _answer(body, 503 if reasons else 200)
