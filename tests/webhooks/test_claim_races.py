"""A queue that changes between a claim's look at it and its lock is judged by what it is then.

A cursor takes both apart: its statement looks at the rows as they were when it was opened, and locks them when they are
fetched.
"""

from __future__ import annotations

import datetime
from typing import Any

import psycopg
import pytest
from django.db.models.functions import Now

from orgs.models import Organization
from tests.webhooks.helpers import accept, subscribe
from tests.webhooks.transactions import another_transaction
from webhooks.dispatch.claim import _LOCK_DUE_QUEUES, QUEUES_AT_A_TIME, QueueFilter
from webhooks.models import SubscriptionQueue

CHANGES: dict[str, dict[str, Any]] = {
    "disabled": {"accepts_deliveries": False},
    "paused": {"paused_until": Now() + datetime.timedelta(hours=1)},
    "filled": {"in_flight": 4},
    "taken over by the backlog sender": {"has_backlog": True},
    "claimed from": {"in_flight": 3},
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_queue_that_was_changed_meanwhile_gives_only_what_it_still_has_room_for(
    organization: Organization, change: str
) -> None:
    subscribe(organization)
    accept(organization, 5)
    SubscriptionQueue.objects.update(concurrency_window=4)
    selection = {
        "max_in_flight": 100,
        "has_backlog": list(QueueFilter.WITHOUT_BACKLOG.value),
        "queues": QUEUES_AT_A_TIME,
    }
    with another_transaction() as other, psycopg.ClientCursor(other) as cursor:
        cursor.execute(f"DECLARE due CURSOR FOR {_LOCK_DUE_QUEUES}", selection)
        SubscriptionQueue.objects.update(**CHANGES[change])
        rows = cursor.execute("FETCH ALL FROM due").fetchall()
        assert cursor.description is not None
        room = [column.name for column in cursor.description].index("room")
    assert [row[room] for row in rows] == ([1] if change == "claimed from" else [])
