"""Deliveries: filtered, read with every attempt, and retried."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem, refuse_audit_entries
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.models import Delivery, DeliveryAttempt, Subscription


@pytest.fixture
def delivery(api: Any, subscription: Subscription) -> Delivery:
    """Return a delivery that is due."""
    api.post("/api/events", {"type": "a", "data": 1})
    assert fan_out_batch(10) == 1
    return Delivery.objects.get()


def test_a_delivery_is_shown_with_every_attempt_the_oldest_first(api: Any, delivery: Delivery) -> None:
    at = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    for number, (cause, status, error) in enumerate(
        [("schedule", None, "timeout"), ("schedule", 500, "http_status"), ("manual", 204, "")], start=1
    ):
        DeliveryAttempt.objects.create(
            delivery=delivery, number=number, cause=cause, started_at=at, duration_ms=1.23456, status_code=status,
            error=error, error_detail="<b>why</b>" if error else "", response_body="</script>\x1b",
        )  # fmt: skip
    Delivery.objects.update(status="delivered", attempt_count=3, last_status_code=204, completed_at=at)
    shown = api.get(f"/api/deliveries/{delivery.id}").json()
    assert set(shown) == {
        "id", "event_id", "subscription_id", "status", "attempt_count", "next_attempt_at", "last_status_code",
        "last_error", "completed_at", "created_at", "ordering_key", "waits_for", "attempts",
    }  # fmt: skip
    assert (shown["event_id"], shown["subscription_id"]) == (str(delivery.event_id), str(delivery.subscription_id))
    assert (shown["status"], shown["attempt_count"], shown["last_status_code"]) == ("delivered", 3, 204)
    assert (shown["last_error"], shown["completed_at"]) == (None, "2026-01-31T12:00:00Z")
    assert shown["attempts"][0] == {
        "number": 1, "cause": "schedule", "started_at": "2026-01-31T12:00:00Z", "duration_ms": 1.23,
        "status_code": None, "error": "timeout", "error_detail": "<b>why</b>", "response_body": "</script>\x1b",
    }  # fmt: skip
    assert [attempt["number"] for attempt in shown["attempts"]] == [1, 2, 3]
    assert [attempt["error"] for attempt in shown["attempts"]] == ["timeout", "http_status", None]
    assert [attempt["cause"] for attempt in shown["attempts"]] == ["schedule", "schedule", "manual"]
    listed = api.get("/api/deliveries").json()["data"]
    assert listed == [{name: value for name, value in shown.items() if name not in {"waits_for", "attempts"}}]


def test_filters_are_joined_and_each_narrows(api: Any, delivery: Delivery) -> None:
    event, subscription = delivery.event_id, delivery.subscription_id
    future = (timezone.now() + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fitting = f"event={event}&subscription={subscription}&status=pending&until={future}"
    assert len(api.get(f"/api/deliveries?{fitting}").json()["data"]) == 1
    for wrong in (
        fitting.replace(str(event), str(subscription)),
        fitting.replace(str(subscription), str(event)),
        fitting.replace("pending", "delivered"),
        fitting.replace("until", "since"),
    ):
        assert api.get(f"/api/deliveries?{wrong}").json()["data"] == []


@pytest.mark.parametrize("status", ["pending", "failed", "delivered"])
def test_a_retry_makes_the_delivery_due_now(api: Any, delivery: Delivery, status: str) -> None:
    hour = timezone.now() + datetime.timedelta(hours=1)
    Delivery.objects.update(status=status, next_attempt_at=hour, attempts_used=3, completed_at=timezone.now())
    answer = api.post(f"/api/deliveries/{delivery.id}/retry")
    assert answer.status_code == 202
    shown = answer.json()
    assert (shown["status"], shown["completed_at"]) == ("pending", None)
    assert "attempts" not in shown
    delivery.refresh_from_db()
    assert delivery.cause == "manual"
    assert delivery.next_attempt_at is not None
    assert delivery.next_attempt_at <= timezone.now()
    entry = AuditEntry.objects.get(action="delivery.retry")
    assert entry.target == str(delivery.id)


def test_a_retry_whose_audit_entry_can_t_be_written_does_not_happen(api: Any, delivery: Delivery) -> None:
    Delivery.objects.update(status="failed")
    before = Delivery.objects.values().get()
    refuse_audit_entries("delivery.retry")
    assert_problem(api.post(f"/api/deliveries/{delivery.id}/retry"), 500)
    assert Delivery.objects.values().get() == before


@pytest.mark.parametrize(
    ("status", "word"), [("delivering", "right now"), ("held", "enable its subscription"), ("cancelled", "cancelled")]
)
def test_what_can_t_be_tried_is_a_409_that_says_why(api: Any, delivery: Delivery, status: str, word: str) -> None:
    Delivery.objects.update(status=status)
    problem = assert_problem(api.post(f"/api/deliveries/{delivery.id}/retry"), 409)
    assert (problem["code"], problem["delivery_status"]) == ("not_retryable", status)
    assert word in problem["detail"]
    assert Delivery.objects.get().status == status
    assert not AuditEntry.objects.filter(action="delivery.retry").exists()


def test_a_retry_to_a_disabled_or_deleted_subscription_is_a_409(
    api: Any, delivery: Delivery, subscription: Subscription
) -> None:
    Delivery.objects.update(status="failed")
    for change in (subscriptions.disable, subscriptions.delete):
        change(subscription)
        problem = assert_problem(api.post(f"/api/deliveries/{delivery.id}/retry"), 409)
        assert problem["delivery_status"] == "failed"
        assert problem["detail"]


def test_another_organization_s_delivery_does_not_exist(api: Any, other_api: Any, delivery: Delivery) -> None:
    assert_problem(other_api.get(f"/api/deliveries/{delivery.id}"), 404)
    assert_problem(other_api.post(f"/api/deliveries/{delivery.id}/retry"), 404)
    assert Delivery.objects.get().cause == "schedule"


@pytest.mark.parametrize("scope", ["deliveries:read", "deliveries:retry"])
def test_reading_and_retrying_need_scopes_of_their_own(
    api: Any, organization: Organization, delivery: Delivery, scope: str
) -> None:
    key = api.post("/api/keys", {"scopes": [scope]}).json()["key"]
    may_read = scope == "deliveries:read"
    assert (api.get("/api/deliveries", **{"X-API-Key": key}).status_code == 200) is may_read
    retry = api.post(f"/api/deliveries/{delivery.id}/retry", **{"X-API-Key": key})
    assert (retry.status_code == 202) is not may_read
    if may_read:
        assert assert_problem(retry, 403)["scope"] == "deliveries:retry"


def test_a_retry_reads_neither_the_payload_nor_the_secrets(api: Any, delivery: Delivery) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert api.post(f"/api/deliveries/{delivery.id}/retry").status_code == 202
    read = [row["sql"].partition(" FROM ")[0] for row in captured]
    assert not [columns for columns in read if re.search(r'"(data|encrypted_secret)"', columns)]
