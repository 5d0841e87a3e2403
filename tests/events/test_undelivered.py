"""`GET /api/events?undelivered=true` lists what some subscription hasn't received, however long the history is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from core.ids import new_id
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from events.reprocessing import reprocess
from orgs.models import Organization
from tests.webhooks.helpers import accept, result, subscribe
from webhooks import subscriptions
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery

pytestmark = pytest.mark.django_db


def listed(api: Any, query: str = "undelivered=true") -> list[str]:
    """Return the ids of all pages."""
    ids: list[str] = []
    cursor = ""
    while True:
        answer = api.get(f"/api/events?{query}{cursor}")
        assert answer.status_code == 200, answer.content
        page = answer.json()
        ids += [event["id"] for event in page["data"]]
        if page["next_cursor"] is None:
            return ids
        cursor = f"&cursor={page['next_cursor']}"


def text(*ids: uuid.UUID) -> list[str]:
    return [str(one) for one in ids]


def test_every_state_in_which_somebody_misses_an_event_is_listed_and_no_other(
    organization: Organization, api: Any
) -> None:
    subscribe(organization)
    events = accept(organization, 6)
    states = ["pending", "delivering", "held", "failed", "delivered", "cancelled"]
    for event, state in zip(events, states, strict=True):
        Delivery.objects.filter(event_id=event).update(status=state)
    assert listed(api) == text(*reversed(events[:4]))
    assert listed(api, "undelivered=false") == text(events[5], events[4])


def test_one_subscription_of_several_that_misses_it_is_enough_and_lists_it_once(
    organization: Organization, api: Any
) -> None:
    subs = [subscribe(organization) for _ in range(3)]
    (event,) = accept(organization)
    assert listed(api) == text(event)
    Delivery.objects.exclude(subscription=subs[0]).update(status="delivered")
    assert listed(api) == text(event)
    Delivery.objects.update(status="delivered")
    assert listed(api) == []


def test_what_a_disabled_subscription_would_have_got_is_listed_until_it_has_it(
    organization: Organization, api: Any
) -> None:
    subscription = subscribe(organization)
    subscriptions.disable(subscription)
    (event,) = accept(organization)
    assert listed(api) == text(event)
    subscriptions.enable(subscription)
    assert listed(api) == text(event)
    record_results([result(c) for c in claim(10).deliveries])
    assert listed(api) == []


def test_what_only_a_deleted_subscription_wanted_is_not(organization: Organization, api: Any) -> None:
    subscription = subscribe(organization)
    accept(organization)
    subscriptions.delete(subscription)
    assert listed(api) == []


def test_events_before_their_fan_out_and_in_error_are_listed(organization: Organization, api: Any) -> None:
    waiting = ingest(organization.id, NewEvent("a.b", "1", None)).event_id
    broken = ingest(organization.id, NewEvent("a.b", "1", None)).event_id
    Event.objects.filter(id=broken).update(status="error")
    assert listed(api) == text(broken, waiting)
    assert listed(api, "undelivered=true&status=error") == text(broken)
    assert listed(api, "undelivered=true&status=processed") == []
    assert listed(api, "undelivered=false") == []


def test_pages_hold_each_event_once_together_with_every_filter(
    organization: Organization, other_organization: Organization, api: Any
) -> None:
    for one in (organization, other_organization):
        for _ in range(2):
            subscribe(one)
    accept(other_organization, 5)
    wanted = []
    for number in range(23):
        (event,) = accept(organization, 1, kind="order.a" if number % 2 else "order.b")
        if number % 3:
            wanted.append((event, number))
        else:
            Delivery.objects.filter(event_id=event).update(status="delivered")
    ids = [event for event, _ in wanted][::-1]
    for limit in (1, 4, 200):
        assert listed(api, f"undelivered=true&limit={limit}") == text(*ids)
    odd = [event for event, number in wanted if number % 2][::-1]
    assert listed(api, "undelivered=true&limit=3&type=order.a") == text(*odd)
    since = Event.objects.get(id=odd[3]).created_at.isoformat().replace("+00:00", "Z")
    assert listed(api, f"undelivered=true&limit=2&type=order.a&since={since}") == text(*odd[:4])
    assert listed(api, f"undelivered=true&limit=2&type=order.a&until={since}") == text(*odd[4:])


def _add_many(organization: Organization, subscription_id: uuid.UUID, status: str) -> None:
    """Add 20,000 processed events, newer than all others, each with a delivery in `status`."""
    _vacuum()
    with connection.cursor() as cursor:
        # Ids that sort after those of the events that are there, as later events' do.
        top = str(new_id())[:13]
        cursor.execute(
            "INSERT INTO events_event"
            " (id, organization_id, type, data, status, failed_attempts, last_error, processed_at)"
            " SELECT (%s || substr(gen_random_uuid()::text, 14))::uuid, %s, 'a.b', '{}', 'processed', 0, '', now()"
            " FROM generate_series(1, 20000)",
            [top, organization.id],
        )
        cursor.execute(
            "INSERT INTO webhooks_delivery"
            " (id, organization_id, event_id, subscription_id, status, cause, attempts_used,"
            " attempt_count, last_error) SELECT gen_random_uuid(), organization_id, id, %s, %s, 'schedule', 1, 1, ''"
            " FROM events_event WHERE type = 'a.b'",
            [subscription_id, status],
        )
        cursor.execute("ANALYZE events_event, webhooks_delivery")


_WITH_ROWS = """
SELECT string_agg(c.oid::regclass::text, ', ')
FROM unnest(ARRAY['events_event', 'webhooks_delivery']::regclass[]) AS parent, pg_partition_tree(parent) AS tree
JOIN pg_class c ON c.oid = tree.relid WHERE tree.isleaf AND pg_relation_size(c.oid) > 0
"""


def _vacuum() -> None:
    """Remove what earlier tests have rolled back: a bitmap scan of an index counts it."""
    with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}, autocommit=True) as other:
        (partitions,) = other.execute(_WITH_ROWS).fetchone() or (None,)
        if partitions:
            other.execute(f"VACUUM {partitions}")


def _rows_read(work: Callable[[], object]) -> int:
    """Return how many rows of events and deliveries the queries of `work` touch."""
    with CaptureQueriesContext(connection) as queries:
        work()
    seen = 0
    with connection.cursor() as cursor:
        for query in queries.captured_queries:
            of_ours = "events_event" in query["sql"] or "_delivery" in query["sql"]
            if query["sql"].startswith(("SELECT", "(")) and of_ours:
                cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query["sql"])
                plan = cursor.fetchone()[0]
                seen += _rows_touched((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    return seen


def test_one_undelivered_event_behind_a_long_history_is_found_without_walking_it(
    organization: Organization, api: Any
) -> None:
    subscription = subscribe(organization)
    lost = accept(organization, 2)
    _add_many(organization, subscription.pk, "delivered")
    found: list[str] = []
    assert 0 < _rows_read(lambda: found.extend(listed(api))) < 500  # of 40,000
    assert found == text(*reversed(lost))


@pytest.mark.parametrize("status", ["pending", "failed", "held"])
def test_a_page_of_a_long_backlog_costs_a_page(organization: Organization, api: Any, status: str) -> None:
    subscription = subscribe(organization)
    _add_many(organization, subscription.pk, status)
    first = api.get("/api/events?undelivered=true").json()
    assert len(first["data"]) == 50
    assert _rows_read(lambda: api.get("/api/events?undelivered=true")) < 1000
    assert _rows_read(lambda: api.get(f"/api/events?undelivered=true&cursor={first['next_cursor']}")) < 1000


def _rows_touched(plan: dict[str, Any]) -> int:
    """Return how many rows a plan's nodes gave or threw away."""
    own = int(plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)))
    return own + sum(_rows_touched(part) for part in plan.get("Plans", []))


def test_an_event_reprocessed_after_its_fix_leaves_the_list_when_it_is_delivered(
    organization: Organization, api: Any
) -> None:
    subscribe(organization)
    broken = ingest(organization.id, NewEvent("a.b", "1", None)).event_id
    Event.objects.filter(id=broken).update(status="error", due_at=Now())
    assert reprocess(Event.objects.all()) == 1
    accept(organization, 0)
    assert listed(api) == text(broken)
    record_results([result(c) for c in claim(10).deliveries])
    assert listed(api) == []
