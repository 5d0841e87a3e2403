"""Deliveries that failed together don't come back together: the recorder spreads their next attempts."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from orgs.models import Organization
from tests.webhooks.helpers import accept, result, subscribe
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, SubscriptionQueue

pytestmark = pytest.mark.django_db

DELAY = 1000.0
MANY = 60


def database_time() -> float:
    """Return the database's clock, in seconds since the epoch."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(cursor.fetchone()[0])


def fail_together(organization: Organization) -> tuple[float, list[float], float]:
    """Let many deliveries fail in one batch.

    Returns the times of their next attempts, between the times before and after they were recorded.
    """
    subscribe(organization)
    accept(organization, MANY)
    SubscriptionQueue.objects.update(concurrency_window=MANY)
    taken = claim(MANY).deliveries
    assert len(taken) == MANY
    before = database_time()
    record_results([result(claimed, 500) for claimed in taken])
    after = database_time()
    times = Delivery.objects.filter(status="pending").values_list("next_attempt_at", flat=True)
    due = [at.timestamp() for at in times if at is not None]
    assert len(due) == MANY
    return before, due, after


def test_deliveries_that_failed_in_one_batch_are_spread_by_the_setting_s_jitter(
    organization: Organization, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, DELAY, DELAY)
    settings.DELIVERY_RETRY_JITTER = 0.5
    before, due, after = fail_together(organization)
    assert before + DELAY * 0.5 <= min(due)
    assert max(due) <= after + DELAY * 1.5
    # Of sixty even draws, that all lie within half of the range happens once in 10^16 runs.
    assert max(due) - min(due) > DELAY * 0.5
    assert len({round(at, 3) for at in due}) > MANY / 2, "each is drawn for itself"


def test_without_jitter_each_delivery_waits_for_exactly_the_schedule_s_delay(
    organization: Organization, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, DELAY, DELAY)
    settings.DELIVERY_RETRY_JITTER = 0.0
    before, due, after = fail_together(organization)
    assert before + DELAY - 0.001 <= min(due)
    assert max(due) <= after + DELAY + 0.001
