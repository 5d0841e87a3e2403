"""Every list's first page is served by indexes, however big the tables are: shown by PostgreSQL's own plans."""

from __future__ import annotations

import datetime
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from console import failures, search
from console.lists import LIST_BOUND
from console.pages.attempts import OutcomeFilter
from devstack.sql import uuid7
from events.models import Event
from orgs.models import AuditEntry, Organization
from tests.console.conftest import Staff
from tests.console.rows import list_url
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue

ROWS = 40_000
BIG = ("events_event", "webhooks_delivery", "webhooks_deliveryattempt", "orgs_auditentry")
# A page may look at this many rows of a big table: what the list's bound allows, and what a filter passes over.
MAY_LOOK_AT = 5 * LIST_BOUND

FILL = f"""
INSERT INTO events_event (
    id, organization_id, type, data, dedup_id, status, failed_attempts, last_error, due_at, created_at
)
SELECT {uuid7("-i * interval '1 second'")}, o.ids[1 + i %% 3], 'type.' || i %% 50, '{{"n": 1}}',
       CASE WHEN i %% 10 = 0 THEN 'dedup-' || i END,
       CASE WHEN i %% 400 = 1 THEN 'error' WHEN i %% 400 = 2 THEN 'accepted' ELSE 'processed' END, 0, '',
       now(), now() - i * interval '1 second'
FROM generate_series(1, %(rows)s) AS i, (SELECT array_agg(id ORDER BY id) AS ids FROM orgs_organization) AS o;
INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause, attempts_used,
                               attempt_count, last_error, created_at, completed_at, next_attempt_at, lease_expires_at)
SELECT {uuid7("created_at - now()")}, organization_id, id, s.ids[1 + n %% 5],
       status, 'schedule', 1, 1, '', created_at, CASE WHEN status IN ('delivered', 'failed') THEN created_at END,
       CASE WHEN status = 'pending' THEN now() + interval '1 day' END,
       CASE WHEN status = 'delivering' THEN now() END
FROM (
    SELECT *, CASE WHEN n %% 100 < 90 THEN 'delivered' WHEN n %% 100 < 96 THEN 'pending'
                   WHEN n %% 100 < 97 THEN 'failed' WHEN n %% 100 < 98 THEN 'held'
                   WHEN n %% 1000 = 999 THEN 'delivering' ELSE 'cancelled' END AS status
    FROM (SELECT id, organization_id, created_at, row_number() OVER (ORDER BY created_at) AS n FROM events_event) AS e
) AS e, (SELECT array_agg(id ORDER BY id) AS ids FROM webhooks_subscription) AS s;
INSERT INTO webhooks_deliveryattempt (delivery_id, number, cause, started_at, duration_ms, status_code, error,
                                      error_detail, response_body)
SELECT id, 1, 'schedule', created_at, 5, 500, CASE WHEN status = 'delivered' THEN '' ELSE 'http_status' END, '', ''
FROM webhooks_delivery ORDER BY id;
INSERT INTO orgs_auditentry (id, organization_id, actor, action, target, detail, address, request_id, created_at)
SELECT {uuid7("-i * interval '1 second'")}, o.ids[1 + i %% 3], 'key:' || i %% 20, 'delivery.retry', '', '{{}}', '', '',
       now() - i * interval '1 second'
FROM generate_series(1, %(rows)s) AS i, (SELECT array_agg(id ORDER BY id) AS ids FROM orgs_organization) AS o;
"""


@pytest.fixture(scope="module")
def big_tables(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Fill the tables, with the statistics that autovacuum keeps in production."""
    with django_db_blocker.unblock():
        organizations = [Organization.objects.create(name=f"Org {number}") for number in range(3)]
        for number in range(5):
            made = Subscription.objects.create(
                organization=organizations[number % 3],
                url=f"http://h{number}/",
                event_types=["*"],
                encrypted_secret="x",
            )
            SubscriptionQueue.objects.create(
                subscription=made,
                organization_id=made.organization_id,
                concurrency_window=4,
                next_due_at=timezone.now(),
            )
        with connection.cursor() as cursor:
            cursor.execute(FILL, {"rows": ROWS})
            cursor.execute(f"VACUUM ANALYZE {', '.join(BIG)}, orgs_organization, webhooks_subscription")
        yield
        with connection.cursor() as cursor:
            cursor.execute(
                f"TRUNCATE {', '.join(BIG)}, webhooks_subscriptionqueue, webhooks_subscription, orgs_organization"
                " CASCADE"
            )


def plan_of(statement: str) -> dict[str, Any]:
    """Return what PostgreSQL did for a statement."""
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.replace("%", "%%"), [])
        found = cursor.fetchone()[0]
    document = json.loads(found) if isinstance(found, str) else found
    plan: dict[str, Any] = document[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return every step of a plan."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def looked_at(node: dict[str, Any]) -> float:
    """Return how many rows a step read."""
    passed_over = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + passed_over) * node["Actual Loops"])


@pytest.fixture
def tables_are_big_enough(big_tables: None, db: None) -> None:
    """Skip where the planner takes the tables for small.

    Before PostgreSQL 17, it expects a page from the index for each id of a list, which costs more than to read a few
    ten thousand rows.
    """
    if connection.pg_version < 170000:  # type: ignore[attr-defined]
        pytest.skip("before PostgreSQL 17, rows with many ids are read from an index only if a table is larger")


def faults_of(client: Client, url: str) -> list[str]:
    """Return what is wrong with the statements that a page runs."""
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(url, follow=True)
    assert answer.status_code == 200, url
    statements = [row["sql"] for row in captured if row["sql"].lstrip(" (\n").startswith("SELECT")]
    of_big = [sql for sql in statements if any(table in sql for table in BIG)]
    faults = []
    for sql in of_big:
        if re.search(r"count\(", sql, re.IGNORECASE) and "LIMIT" not in sql:
            faults.append(f"{url} counts: {sql[:300]}")
        for node in nodes(plan_of(sql)):
            if node.get("Relation Name") in BIG and node["Node Type"] == "Seq Scan":
                faults.append(f"{url} scans {node['Relation Name']}: {sql[:1500]}")
            elif "Scan" in node["Node Type"] and looked_at(node) > MAY_LOOK_AT:
                faults.append(f"{url} looks at {looked_at(node):.0f} rows ({node['Node Type']}): {sql[:1500]}")
    assert of_big, f"{url} ran no statement on a big table"
    return faults


def test_the_check_sees_a_scan_and_a_count(big_tables: None, db: None) -> None:
    kinds = [node["Node Type"] for node in nodes(plan_of("SELECT * FROM webhooks_delivery WHERE attempts_used = 7"))]
    assert "Seq Scan" in kinds


def test_no_list_counts_or_scans_a_big_table(tables_are_big_enough: None, staff: Staff) -> None:
    client = staff("operator")
    organization = Organization.objects.get(name="Org 1").pk
    subscription = Subscription.objects.get(url="http://h1/").pk
    lists: list[tuple[Any, dict[str, object]]] = [
        *((Delivery, {"status": word}) for word in (
            "pending", "delivering", "delivered", "failed", "held", "cancelled", "failed-1h", "failed-24h"
        )),
        *((Event, {"status": word}) for word in ("accepted", "processed", "error")),
    ]  # fmt: skip
    for model in (Event, Delivery, AuditEntry):
        lists += [(model, {}), (model, {"organization": organization}), (model, {"created": "15m"}),
                  (model, {"created": "24h"}), (model, {"p": 2})]  # fmt: skip
    for word in ("pending", "delivered", "failed", "held"):
        lists.append((Delivery, {"status": word, "subscription": subscription}))
        lists.append((Delivery, {"status": word, "organization": organization}))
    lists += [
        (Delivery, {"subscription": subscription}), (DeliveryAttempt, {}), (DeliveryAttempt, {"o": "1"}),
        (Event, {"status": "error", "organization": organization}), (Event, {"status": "accepted", "created": "1h"}),
    ]  # fmt: skip
    faults = [fault for model, query in lists for fault in faults_of(client, list_url(model, **query))]
    assert not faults, "\n".join(faults)


def test_the_failed_attempts_are_looked_for_among_the_newest_only(
    big_tables: None, staff: Staff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutcomeFilter, "newest", 1000)
    url = list_url(DeliveryAttempt, outcome="failed")
    with CaptureQueriesContext(connection) as captured:
        assert staff("operator").get(url).status_code == 200
    bounded = [row["sql"] for row in captured if '"webhooks_deliveryattempt"."error" = ' in row["sql"]]
    assert bounded
    assert all('"webhooks_deliveryattempt"."id" > ' in sql for sql in bounded)


def test_no_search_scans_a_big_table(tables_are_big_enough: None, staff: Staff) -> None:
    client = staff("operator")
    event, delivery = Event.objects.order_by("id")[100], Delivery.objects.order_by("id")[100]
    attempt = delivery.attempts.get()
    searches: list[tuple[Any, object]] = [
        (Event, event.pk), (Event, "dedup-100"), (Event, "type.7"), (Event, "nothing"), (Event, uuid.uuid4()),
        (Delivery, delivery.pk), (Delivery, event.pk), (Delivery, "dedup-100"), (Delivery, "http://h1/"),
        (Delivery, delivery.subscription_id), (Delivery, "nothing"), (Delivery, uuid.uuid4()),
        (DeliveryAttempt, attempt.pk), (DeliveryAttempt, delivery.pk), (DeliveryAttempt, uuid.uuid4()),
    ]  # fmt: skip
    faults = [fault for model, term in searches for fault in faults_of(client, list_url(model, q=term))]
    assert not faults, "\n".join(faults)


def test_no_page_of_one_row_and_not_the_first_page_scan_a_big_table(big_tables: None, staff: Staff) -> None:
    client = staff("operator")
    delivery = Delivery.objects.filter(status="failed").order_by("id")[20]
    pages = [
        reverse("admin:events_event_change", args=[delivery.event_id]),
        reverse("admin:webhooks_delivery_change", args=[delivery.pk]),
        reverse("admin:webhooks_deliveryattempt_change", args=[delivery.attempts.get().pk]),
        reverse("admin:index"),
    ]
    faults = [fault for url in pages for fault in faults_of(client, url)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("is_narrowed", [False, True])
def test_causes_of_failures_are_counted_in_indexes_and_of_no_other_organization(
    big_tables: None, db: None, is_narrowed: bool
) -> None:
    organization = Organization.objects.get(name="Org 1").pk
    statement = failures._COUNT_FAILED.format(narrowed="AND organization_id = %(organization)s" if is_narrowed else "")
    values = {
        "age": "'7 days'",
        "organization": f"'{organization}'" if is_narrowed else "NULL",
        "most": 10_000,
        "organizations": 8,
    }
    plan = plan_of(statement % values)
    read = [node for node in nodes(plan) if "webhooks_delivery" in node.get("Relation Name", "") and looked_at(node)]
    assert read
    for node in read:
        assert node["Node Type"] == "Index Only Scan", node
        assert node.get("Rows Removed by Filter", 0) == 0, node


def test_the_newest_events_of_a_type_are_found_without_reading_as_many_of_each_organization(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 60 organizations with 40 events each; the newest 40 of all, and one that is still accepted, are of one.
    owners = Organization.objects.bulk_create(Organization(name=f"Of many {number}") for number in range(60))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error,"
            f" created_at) SELECT {uuid7('-ago')}, o, 'of.many', '{{}}',"
            " CASE WHEN n = 1 AND o = %(one)s THEN 'accepted' ELSE 'processed' END, 0, '', now() - ago"
            " FROM unnest(%(owners)s::uuid[]) AS o, generate_series(1, 40) AS n, LATERAL ("
            " SELECT make_interval(secs => CASE WHEN o = %(one)s THEN n ELSE 60 + n * 7 + ascii(o::text) END) AS ago"
            ") AS t",
            {"owners": [owner.pk for owner in owners], "one": owners[7].pk},
        )
        cursor.execute("ANALYZE events_event")
    # Of the chosen one, all are as recent as that; of the others, few are.
    monkeypatch.setattr(search, "RECENT", datetime.timedelta(seconds=200))
    for most in (10, 40, 200, 1000):
        monkeypatch.setattr(search, "LIST_BOUND", most)
        times = Event.objects.filter(type="of.many").order_by("-created_at", "-id").values_list("pk", flat=True)
        assert search.events_of_type("of.many", search.Scope()) == list(times[:most])
        mine = times.filter(organization=owners[7])
        assert search.events_of_type("of.many", search.Scope(owners[7].pk)) == list(mine[:most])
    values = {"type": "'of.many'", "organization": "NULL", "since": "'-infinity'", "most": 40}
    with connection.cursor() as cursor:  # as in a table that isn't as small as this one
        cursor.execute("SET enable_bitmapscan = off; SET enable_seqscan = off")
        plan = plan_of(search._BY_TYPE % values)
        cursor.execute("RESET enable_bitmapscan; RESET enable_seqscan")
    read = [node for node in nodes(plan) if "events_event" in node.get("Relation Name", "")]
    assert 0 < sum(looked_at(node) for node in read) < 60 * 40 * 0.75
