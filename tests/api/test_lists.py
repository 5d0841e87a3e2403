"""Lists: every row once, newest first, whatever is added meanwhile; filters; other organizations' rows."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.utils import timezone

from core.ids import new_id
from events.models import Event
from orgs.keys import create_api_key
from orgs.models import Organization
from webhooks.models import Delivery, Subscription

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)


def add_event(organization: Organization, at: datetime.datetime = NOW, **fields: Any) -> Event:
    given = {"type": "order.created", "data": "1", **fields}
    return Event.objects.create(organization=organization, created_at=at, **given)


def walk(api: Any, path: str, limit: int) -> list[dict[str, Any]]:
    """Return every row of a list, page by page."""
    rows: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(200):
        joint = "&" if "?" in path else "?"
        response = api.get(f"{path}{joint}limit={limit}{cursor}")
        assert response.status_code == 200, response.content
        page = response.json()
        assert set(page) == {"data", "next_cursor"}
        assert len(page["data"]) <= limit
        rows += page["data"]
        if page["next_cursor"] is None:
            return rows
        assert len(page["data"]) == limit
        cursor = f"&cursor={page['next_cursor']}"
    raise AssertionError("the list doesn't end")


@pytest.mark.parametrize("limit", [1, 2, 5, 10, 11, 200])
def test_pages_hold_every_row_once_newest_first_also_with_equal_times(
    api: Any, organization: Organization, limit: int
) -> None:
    events = [add_event(organization, NOW + datetime.timedelta(microseconds=i // 4)) for i in range(10)]
    expected = [str(e.id) for e in sorted(events, key=lambda e: (e.created_at, e.id), reverse=True)]
    assert [row["id"] for row in walk(api, "/api/events", limit)] == expected


def test_rows_added_while_paging_neither_repeat_nor_hide_others(api: Any, organization: Organization) -> None:
    old = {str(add_event(organization, NOW - datetime.timedelta(seconds=i)).id) for i in range(6)}
    first = api.get("/api/events?limit=3").json()
    add_event(organization, NOW + datetime.timedelta(seconds=1))
    second = api.get(f"/api/events?limit=3&cursor={first['next_cursor']}").json()
    assert [*(row["id"] for row in first["data"]), *(row["id"] for row in second["data"])] == sorted(
        old, key=lambda i: Event.objects.get(id=i).created_at, reverse=True
    )
    assert second["next_cursor"] is None


def test_every_list_can_be_walked(api: Any, organization: Organization, subscription: Subscription) -> None:
    for number in range(4):
        create_api_key(organization, name=str(number))
        api.post("/api/subscriptions", {"url": f"https://example.com/{number}", "event_types": ["*"]})
        event = add_event(organization)
        Delivery.objects.create(organization=organization, event=event, subscription=subscription)
    for path, count in [("/api/keys", 5), ("/api/subscriptions", 5), ("/api/deliveries", 4), ("/api/audit", 4)]:
        rows = walk(api, path, 2)
        assert len(rows) == count
        assert len({row["id"] for row in rows}) == count
        times = [row["created_at"] for row in rows]
        assert times == sorted(times, reverse=True)


def test_the_default_page_is_50_and_the_largest_200(api: Any, organization: Organization) -> None:
    Event.objects.bulk_create(
        Event(organization=organization, type="a", data="1", created_at=NOW, due_at=NOW) for _ in range(201)
    )
    assert len(api.get("/api/events").json()["data"]) == 50
    assert len(api.get("/api/events?limit=200").json()["data"]) == 200


def ids(response: Any) -> set[str]:
    assert response.status_code == 200, response.content
    return {row["id"] for row in response.json()["data"]}


def test_events_are_filtered_by_type_status_and_time(api: Any, organization: Organization) -> None:
    hour = datetime.timedelta(hours=1)
    a = str(add_event(organization, NOW - hour, type="order.paid").id)
    b = str(add_event(organization, NOW, status="processed").id)
    c = str(add_event(organization, NOW + hour, status="error", last_error="broken", failed_attempts=5).id)
    assert ids(api.get("/api/events?type=order.paid")) == {a}
    assert ids(api.get("/api/events?type=order")) == set()
    assert ids(api.get("/api/events?status=processed")) == {b}
    assert ids(api.get("/api/events?status=error")) == {c}
    assert ids(api.get("/api/events?since=2026-01-31T12:00:00Z")) == {b, c}
    assert ids(api.get("/api/events?until=2026-01-31T12:00:00Z")) == {a}
    for spelling in ("2026-01-31T13:00:00%2B01:00", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00"):
        assert ids(api.get(f"/api/events?since={spelling}&until=2026-01-31T12:30:00Z")) == {b}
    assert ids(api.get("/api/events?status=error&type=order.paid")) == set()
    shown = api.get(f"/api/events/{c}").json()
    assert (shown["error"], shown["failed_attempts"]) == ("broken", 5)


def test_undelivered_lists_what_some_subscription_has_not_received(
    api: Any, organization: Organization, subscription: Subscription
) -> None:
    def event(status: str, *deliveries: str) -> str:
        row = add_event(organization, status=status)
        for state in deliveries[:1]:
            Delivery.objects.create(organization=organization, event=row, subscription=subscription, status=state)
        return str(row.id)

    waiting = {event("accepted"), event("error")}
    for state in ("pending", "delivering", "failed", "held"):
        waiting.add(event("processed", state))
    settled = {event("processed"), event("processed", "delivered"), event("processed", "cancelled")}
    assert ids(api.get("/api/events?undelivered=true")) == waiting
    assert ids(api.get("/api/events?undelivered=false")) == settled
    assert {row["id"] for row in walk(api, "/api/events?undelivered=true", 2)} == waiting


def test_deliveries_are_filtered_by_event_subscription_status_and_time(
    api: Any, organization: Organization, subscription: Subscription
) -> None:
    event = add_event(organization)
    other = add_event(organization)
    one = Delivery.objects.create(organization=organization, event=event, subscription=subscription, status="failed")
    two = Delivery.objects.create(organization=organization, event=other, subscription=subscription)
    one_id, two_id = str(one.id), str(two.id)
    assert ids(api.get(f"/api/deliveries?event={event.id}")) == {one_id}
    assert ids(api.get(f"/api/deliveries?subscription={subscription.id}")) == {one_id, two_id}
    assert ids(api.get(f"/api/deliveries?subscription={uuid.uuid4()}")) == set()
    assert ids(api.get("/api/deliveries?status=failed")) == {one_id}
    assert ids(api.get(f"/api/deliveries?status=failed&event={other.id}")) == set()
    hour_ago = (timezone.now() - datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert ids(api.get(f"/api/deliveries?since={hour_ago}")) == {one_id, two_id}
    assert ids(api.get(f"/api/deliveries?until={hour_ago}")) == set()


def test_another_organizations_rows_are_in_no_list_and_no_filter(
    api: Any, other_api: Any, organization: Organization, subscription: Subscription
) -> None:
    event = add_event(organization)
    Delivery.objects.create(organization=organization, event=event, subscription=subscription)
    api.post("/api/subscriptions", {"url": "https://example.com", "event_types": ["*"]})
    for path in ("/api/events", "/api/deliveries", "/api/subscriptions", "/api/audit"):
        assert api.get(path).json()["data"], path
        assert other_api.get(path).json()["data"] == [], path
    for query in (f"event={event.id}", f"subscription={subscription.id}"):
        assert other_api.get(f"/api/deliveries?{query}").json()["data"] == []
    assert len(other_api.get("/api/keys").json()["data"]) == 1


def test_another_organizations_cursor_opens_nothing(api: Any, other_api: Any, organization: Organization) -> None:
    for _ in range(3):
        add_event(organization)
    cursor = api.get("/api/events?limit=1").json()["next_cursor"]
    assert other_api.get(f"/api/events?cursor={cursor}").json() == {"data": [], "next_cursor": None}


def test_a_cursor_stays_good_when_its_row_is_gone(api: Any, organization: Organization) -> None:
    events = [add_event(organization, NOW + datetime.timedelta(seconds=i), id=new_id()) for i in range(4)]
    cursor = api.get("/api/events?limit=2").json()["next_cursor"]
    Event.objects.filter(id=events[2].id).delete()
    assert ids(api.get(f"/api/events?cursor={cursor}")) == {str(events[0].id), str(events[1].id)}
