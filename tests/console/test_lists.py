"""Lists: what they find beyond exact values, the order that people may turn round, and exports."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import tracemalloc
import uuid
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertHTMLEqual

from console import export
from events.models import Event
from orgs.models import AuditEntry, Organization
from tests.console.conftest import Staff
from tests.console.rows import World, list_url, make_attempt, make_delivery, make_event, page_url
from tests.console.test_search import found
from webhooks import subscriptions
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus, Subscription, SubscriptionQueue


@pytest.fixture
def theirs(world: World, other_organization: Organization) -> Delivery:
    """Return a delivery of another organization, at another host, with another type and payload."""
    subscription, _ = subscriptions.create(
        other_organization.pk, url="https://hooks.globex.example/in", event_types=["*"]
    )
    event = make_event(other_organization, type="parcel.lost", data='{"parcel": "PX-777 100%"}')
    return make_delivery(event, subscription, "delivered")


def test_deliveries_are_found_by_type_host_part_organization_and_payload(
    world: World, operator: Client, theirs: Delivery
) -> None:
    for term in ("parcel.lost", "globex", "GLOBEX.example/in", "Other", "oth", str(theirs.organization_id)):
        assert found(operator, Delivery, term) == {theirs.pk}, term
    assert found(operator, Delivery, "PX-777") == set(), "no time was chosen"
    for text in ("PX-777", "100%"):
        assert found(operator, Delivery, text, created="1h") == {theirs.pk}
    assert found(operator, Delivery, "PX_777", created="1h") == set(), "no pattern, but text"
    assert found(operator, Delivery, "parcel.lost", organization=world.organization.pk) == set()
    assert found(operator, Delivery, "globex", status="failed") == set()


def test_events_attempts_and_subscriptions_are_found_by_parts_too(
    world: World, operator: Client, theirs: Delivery
) -> None:
    assert found(operator, Event, "Other") == {theirs.event_id}
    assert found(operator, Event, "PX-777", created="1h") == {theirs.event_id}
    assert found(operator, Event, "PX-777", created="1h", organization=world.organization.pk) == set()
    assert found(operator, Subscription, "globex") == found(operator, Subscription, "other") == {theirs.subscription_id}
    attempt = DeliveryAttempt.objects.create(
        delivery=theirs, number=1, cause="schedule", started_at=timezone.now(), duration_ms=1, status_code=200
    )
    assert found(operator, DeliveryAttempt, "globex") == {attempt.pk}


def test_a_search_says_whether_it_looked_into_payloads(world: World, operator: Client) -> None:
    page = operator.get(list_url(Delivery, q="no such thing")).content.decode()
    assert "Payloads were not searched: choose a creation time" in page
    page = operator.get(list_url(Delivery, q="no such thing", created="1h")).content.decode()
    assert "Payloads were searched in the newest 20,000 events of the last hour." in page
    page = operator.get(list_url(DeliveryAttempt, q="no such thing")).content.decode()
    assert "Payloads were not searched" in page


@pytest.mark.parametrize("term", ["parcel.lost", "order-1", "no such thing"])
def test_a_search_of_events_looks_once(world: World, operator: Client, theirs: Delivery, term: str) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert operator.get(list_url(Event, q=term, created="1h")).status_code == 200
    looks = [row["sql"] for row in captured if f"type = '{term}'" in row["sql"].replace('"', "")]
    assert sum("CROSS JOIN LATERAL" in sql for sql in looks) == 1
    assert sum("dedup_id" in row["sql"] and f"'{term}'" in row["sql"] for row in captured) == 1


def test_a_subscription_s_row_has_its_state_next_attempt_and_requests_in_flight(world: World, viewer: Client) -> None:
    SubscriptionQueue.objects.filter(pk=world.subscription.pk).update(in_flight=7)
    due = timezone.now() + datetime.timedelta(hours=1)
    Delivery.objects.filter(status="pending").update(next_attempt_at=due)
    page = viewer.get(list_url(Subscription)).content.decode()
    assert re.search(r'field-in_flight_display">7</td>', page)
    assert re.search(rf'field-next_attempt_display">{due:%Y-%m-%d %H:%M:%S}</td>', page)
    assert '<div class="quiet">The shop</div>' in page


def test_the_checkbox_of_a_row_is_djangos(world: World) -> None:
    row = world.subscription
    row.url = 'https://example.com/"><b>&'
    page = admin.site.get_model_admin(Subscription)
    assertHTMLEqual(page.action_checkbox(row), ModelAdmin.action_checkbox(page, row))


def test_a_page_reads_its_row_once(world: World, viewer: Client) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert viewer.get(page_url(world.subscription)).status_code == 200
    whole = [row["sql"] for row in captured if '"webhooks_subscription"."url"' in row["sql"]]
    assert len(whole) == 1


@pytest.mark.parametrize("model", [Delivery, Event, DeliveryAttempt, Subscription])
def test_the_order_can_be_turned_round(
    world: World, operator: Client, viewer: Client, theirs: Delivery, model: Any
) -> None:
    for number in range(2):
        make_attempt(theirs, number + 1)
    assert model.objects.count() > 1, "one row is in any order"
    for client in (operator, viewer):
        for column in ("1", "2"):
            newest = [row.pk for row in client.get(list_url(model)).context["cl"].result_list]
            assert [r.pk for r in client.get(list_url(model, o=f"-{column}")).context["cl"].result_list] == newest
            answer = client.get(list_url(model, o=column))
            assert [row.pk for row in answer.context["cl"].result_list] == newest[::-1]
    assert "sorted ascending" in answer.content.decode()


def test_attempts_are_listed_by_their_own_time_not_by_that_of_their_delivery(
    world: World, viewer: Client, theirs: Delivery
) -> None:
    older = world.deliveries["failed"]
    assert older.pk < theirs.pk
    of_newer = make_attempt(theirs, started_at=timezone.now() - datetime.timedelta(minutes=9))
    again = make_attempt(older, 2)
    for query in ({}, {"outcome": "failed"}):
        first, second, *_ = viewer.get(list_url(DeliveryAttempt, **query)).context["cl"].result_list
        assert first.pk == again.pk, "it was made last"
        assert second.pk != of_newer.pk
    assert viewer.get(list_url(DeliveryAttempt, o="1")).context["cl"].result_list[0].pk == of_newer.pk


def test_a_list_names_the_endpoint_by_host_and_offers_the_whole_id(world: World, viewer: Client) -> None:
    page = viewer.get(list_url(Delivery)).content.decode()
    failed = world.deliveries["failed"]
    assert f'data-copy="{failed.pk}"' in page
    assert f"…{str(failed.pk)[-8:]}" in page
    assert ">127.0.0.1:9</a>" in page
    assert "HTTP 500" in page


# --- exports ----------------------------------------------------------------------------------------------------------


def rows_of(client: Client, model: Any, form: str = "ndjson", **query: object) -> list[dict[str, Any]]:
    answer = client.get(list_url(model, export=form, **query))
    assert answer.status_code == 200, answer
    text = b"".join(answer.streaming_content).decode()
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_holds_what_the_filters_let_through(
    world: World, viewer: Client, theirs: Delivery, form: str
) -> None:
    assert {row["id"] for row in rows_of(viewer, Delivery, form)} == {
        str(pk) for (pk,) in Delivery.objects.values_list("pk")
    }
    for status in DeliveryStatus.values:
        of_status = {str(pk) for (pk,) in Delivery.objects.filter(status=status).values_list("pk")}
        assert {row["id"] for row in rows_of(viewer, Delivery, form, status=status)} == of_status, status
    assert [row["url"] for row in rows_of(viewer, Delivery, form, q="parcel.lost")] == [
        "https://hooks.globex.example/in"
    ]
    assert len(rows_of(viewer, Event, form, organization=world.organization.pk)) == 7
    assert len(rows_of(viewer, Subscription, form)) == 2
    assert len(rows_of(viewer, DeliveryAttempt, form)) == 1
    entry = AuditEntry.objects.filter(action="delivery.export").order_by("created_at").last()
    assert entry is not None
    assert entry.detail == {"format": form, "filters": {"q": "parcel.lost"}}
    assert set(AuditEntry.objects.values_list("action", flat=True)) >= {
        "delivery.export", "event.export", "subscription.export", "attempt.export",
    }  # fmt: skip


@pytest.mark.parametrize("model", [Delivery, Event])
def test_a_search_tells_nothing_to_those_who_may_not_see_the_list(world: World, staff: Staff, model: Any) -> None:
    somebody = staff("nobody")
    for term in (world.organization.name, world.organization.name[:4], str(world.organization.pk)):
        assert somebody.get(list_url(model, q=term)).status_code == 403, term


def test_an_export_has_every_row_once_beyond_a_page_and_among_equal_times(
    world: World, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS_AT_A_TIME", 7)
    now = timezone.now()
    for number in range(40):
        event = make_event(world.organization)
        Event.objects.filter(pk=event.pk).update(created_at=now - datetime.timedelta(seconds=number // 10))
    for query in ({}, {"o": "1"}, {"organization": world.organization.pk}):
        ids = [row["id"] for row in rows_of(viewer, Event, **query)]
        assert len(ids) == len(set(ids)) == Event.objects.count(), query


def test_no_cell_of_a_csv_is_a_formula(world: World, viewer: Client) -> None:
    hostile = ["=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1+1", "\tx", '=HYPERLINK("http://x","y")\n,"']
    for text in hostile:
        make_event(world.organization, dedup_id=text)
    shown = {row["dedup_id"] for row in rows_of(viewer, Event, "csv")}
    assert {f"'{text}" for text in hostile} <= shown
    assert {row["dedup_id"] for row in rows_of(viewer, Event)} >= set(hostile), "NDJSON is no spreadsheet"


def test_how_many_rows_an_export_has_so_far(world: World, staff: Staff, viewer: Client) -> None:
    token = uuid.uuid4()
    progress = reverse("admin:export_progress", args=[token])
    assert viewer.get(progress).json() == {"rows": None, "is_complete": False}
    answer = viewer.get(list_url(Delivery, export="csv", token=str(token)))
    assert viewer.get(progress).json()["rows"] is None, "nobody has read any of it yet"
    assert b"".join(answer.streaming_content)
    assert viewer.get(progress).json() == {"rows": 6, "is_complete": True}
    assert staff("operator").get(progress).json()["rows"] is None, "another user's"


def test_only_who_may_see_a_list_may_export_it(world: World, staff: Staff) -> None:
    answer = staff("nobody").get(list_url(Delivery, export="csv"))
    assert answer.status_code == 403
    assert not AuditEntry.objects.filter(action="delivery.export").exists()


def test_a_wrong_format_or_filter_is_refused(world: World, viewer: Client) -> None:
    assert viewer.get(list_url(Delivery, export="xml")).status_code == 400
    assert viewer.get(list_url(Delivery, export="csv", nonsense="1")).status_code == 400
    assert len(rows_of(viewer, Delivery, organization="x")) == 0


def test_an_export_takes_no_more_memory_for_more_rows(world: World, viewer: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error) "
            "SELECT gen_random_uuid(), %s, 'bulk', '{}', 'processed', 0, '' FROM generate_series(1, 12000)",
            [world.organization.pk],
        )

    def peak(**query: object) -> tuple[int, int]:
        answer = viewer.get(list_url(Event, export="ndjson", **query))
        tracemalloc.start()
        count = sum(piece.count(b"\n") for piece in answer.streaming_content)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, highest

    few, many = peak(status="error"), peak()
    assert (few[0], many[0]) == (1, 12007)
    assert many[1] < 8_000_000
