"""Redis holds wake-ups and nothing else: it doesn't grow with what waits or with what was."""

from __future__ import annotations

from typing import Any

import pytest
from django_redis import get_redis_connection

from events import backlog
from events.models import Event
from orgs.models import Organization
from tests.webhooks.helpers import fan_out, result, subscribe
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, SubscriptionQueue


def _post(api: Any, count: int) -> None:
    for _ in range(0, count, 100 if count == 100 else 1000):
        size = min(count, 1000)
        batch = [{"type": "order.created", "data": {"n": n}, "dedup_id": None} for n in range(size)]
        assert api.post("/api/events/batch", batch).status_code == 202
    backlog.estimate.reset()


def _measure() -> tuple[int, int]:
    """Return how many keys Redis has and how many bytes they take."""
    redis = get_redis_connection("default")
    keys = list(redis.scan_iter())
    return len(keys), sum(int(redis.memory_usage(key) or 0) for key in keys)


@pytest.mark.django_db
def test_redis_does_not_grow_with_the_backlog_or_the_history(organization: Organization, api: Any) -> None:
    Organization.objects.filter(id=organization.id).update(events_per_minute=1_000_000)
    subscribe(organization)
    _post(api, 100)
    few = _measure()
    _post(api, 10_000)
    many = _measure()
    assert Event.objects.filter(status="accepted").count() == 10_100
    assert many[0] <= few[0] + 2  # a window of the rate limit may have ended in between
    assert many[1] <= few[1] + 4096

    fan_out()
    SubscriptionQueue.objects.update(concurrency_window=100_000)
    while taken := claim(2000).deliveries:
        record_results([result(c) for c in taken])
    assert Delivery.objects.filter(status="delivered").count() == 10_100
    history = _measure()
    assert history[0] <= few[0] + 2
    assert history[1] <= few[1] + 4096
