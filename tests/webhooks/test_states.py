"""How deliveries and subscriptions stand, from the first failure on: in the API, and as every other reader sees it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from orgs.models import Organization
from tests.webhooks.helpers import accept, queue_of, result, subscribe
from webhooks import subscriptions
from webhooks.destinations.outcome import Failure
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, Subscription, SubscriptionQueue
from webhooks.states import DELETED, DeliveryState, SubscriptionState, in_delivery_states, in_state, with_state

pytestmark = pytest.mark.django_db


def shown(api: Any, subscription: Subscription) -> dict[str, Any]:
    """Return the subscription as the API shows it, which must be the same in the list and under its state."""
    found: dict[str, Any] = api.get(f"/api/subscriptions/{subscription.pk}").json()
    assert found in api.get("/api/subscriptions").json()["data"]
    for state in SubscriptionState.values:
        listed = api.get(f"/api/subscriptions?state={state}").json()["data"]
        assert (found in listed) is (found["state"] == state)
    return found


def attempt(subscription: Subscription, status: int | None, failure: Failure | None = None, **answer: Any) -> None:
    """Claim what is due for the subscription, whatever the breaker says, and record one result for all of it."""
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(next_due_at=Now(), paused_until=None)
    Delivery.objects.filter(subscription=subscription, status="pending").update(next_attempt_at=Now())
    claimed = [one for one in claim(100).deliveries if one.subscription_id == subscription.pk]
    assert claimed
    record_results([result(one, status, failure, **answer) for one in claimed])


def test_a_subscription_is_failing_from_its_first_failure_to_its_next_success(
    api: Any, organization: Organization
) -> None:
    subscription = subscribe(organization)
    fresh = shown(api, subscription)
    assert (fresh["state"], fresh["breaker"], fresh["next_attempt_at"]) == ("active", "closed", None)
    accept(organization)
    attempt(subscription, 503)
    failing = shown(api, subscription)
    assert (failing["state"], failing["breaker"], failing["status"]) == ("failing", "closed", "active")
    assert (failing["last_error"], failing["last_status_code"]) == ("http_status", 503)
    assert fresh["state_since"] < failing["state_since"] <= failing["last_failure_at"]
    planned = Delivery.objects.get().next_attempt_at
    assert planned is not None
    assert datetime.datetime.fromisoformat(failing["next_attempt_at"]) == planned
    attempt(subscription, None, Failure.CONNECTION_REFUSED)
    again = shown(api, subscription)
    assert (again["last_error"], again["last_status_code"]) == ("connection_refused", None)
    assert again["state_since"] == failing["state_since"] < again["last_failure_at"]
    attempt(subscription, 204)
    well = shown(api, subscription)
    assert (well["state"], well["next_attempt_at"]) == ("active", None)
    assert again["last_failure_at"] < well["state_since"] <= well["last_success_at"]
    assert well["last_error"] == "connection_refused"


def test_a_success_between_two_failures_of_one_batch_begins_the_failure_anew(organization: Organization) -> None:
    subscription = subscribe(organization)
    long_ago = timezone.now() - datetime.timedelta(days=3)
    SubscriptionQueue.objects.update(failing_since=long_ago, concurrency_window=10)
    accept(organization, 2)
    first, second = claim(10).deliveries
    record_results([result(first, 200), result(second, 500)])
    failing_since = queue_of(subscription).failing_since
    assert failing_since is not None
    assert failing_since > long_ago + datetime.timedelta(days=2)


def test_an_open_breaker_or_retry_after_is_a_pause_with_its_end(
    api: Any, organization: Organization, settings: Any
) -> None:
    settings.BREAKER_THRESHOLD = 2
    subscription = subscribe(organization)
    accept(organization)
    attempt(subscription, 429, retry_after="100")
    asked = shown(api, subscription)
    assert (asked["state"], asked["breaker"], asked["last_status_code"]) == ("paused", "closed", 429)
    assert asked["next_attempt_at"] >= asked["paused_until"] > asked["last_failure_at"]
    attempt(subscription, 500)
    opened = shown(api, subscription)
    assert (opened["state"], opened["breaker"]) == ("paused", "open")
    assert opened["paused_until"] is not None
    SubscriptionQueue.objects.update(paused_until=timezone.now() - datetime.timedelta(seconds=1))
    probing = shown(api, subscription)
    assert (probing["state"], probing["breaker"], probing["paused_until"]) == ("failing", "half-open", None)
    attempt(subscription, 200)
    assert shown(api, subscription)["breaker"] == "closed"


def test_a_disabled_subscription_says_why_and_plans_nothing(api: Any, organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    attempt(subscription, 500)
    answer = api.post(f"/api/subscriptions/{subscription.pk}/disable", {"reason": "moving house"})
    assert answer.json() == shown(api, subscription)
    disabled = answer.json()
    assert (disabled["state"], disabled["disabled_reason"]) == ("disabled", "Disabled by request: moving house")
    assert disabled["disabled_cause"] == "by_request"
    assert disabled["state_since"] == disabled["disabled_at"]
    assert disabled["next_attempt_at"] is disabled["paused_until"] is None
    assert disabled["last_error"] == "http_status"
    (entry,) = api.get("/api/audit?action=subscription.disable").json()["data"]
    assert (entry["target_name"], entry["reason"]) == (subscription.url, "moving house")
    enabled = api.post(f"/api/subscriptions/{subscription.pk}/enable").json()
    assert (enabled["state"], enabled["last_error"]) == ("active", None)
    assert enabled["next_attempt_at"] is not None


def test_with_sending_switched_off_no_attempt_is_planned(api: Any, organization: Organization, settings: Any) -> None:
    subscription = subscribe(organization)
    accept(organization)
    assert shown(api, subscription)["next_attempt_at"] is not None
    settings.DISABLE_WEBHOOK_DELIVERY = True
    assert shown(api, subscription)["next_attempt_at"] is None


def test_every_subscription_is_in_exactly_one_state_whatever_its_columns(organization: Organization) -> None:
    past, future = (timezone.now() + datetime.timedelta(hours=hours) for hours in (-1, 1))
    for failing in (None, past):
        for paused in (None, past, future):
            for enabled in (True, False):
                one = subscribe(organization)
                if not enabled:
                    subscriptions.disable(one)
                SubscriptionQueue.objects.filter(pk=one.pk).update(failing_since=failing, paused_until=paused)
    subscriptions.delete(one)
    counts = {}
    for state in (*SubscriptionState.values, DELETED):
        found = set(Subscription.objects.filter(in_state(state)).values_list("pk", flat=True))
        assert found == {row.pk for row in with_state(Subscription.objects.all()) if row.state == state}  # type: ignore[attr-defined]
        counts[state] = len(found)
    assert counts == {"active": 2, "failing": 2, "paused": 2, "disabled": 5, "deleted": 1}


def test_a_delivery_is_retrying_from_its_first_failure_until_it_is_sent_or_failed(
    api: Any, organization: Organization, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0)
    subscription = subscribe(organization)
    (event_id,) = accept(organization)

    def state() -> str:
        (listed,) = api.get("/api/deliveries").json()["data"]
        for word in DeliveryState.values:
            rows = api.get(f"/api/deliveries?status={word}").json()["data"]
            assert rows == ([listed] if listed["status"] == word else [])
            assert Delivery.objects.filter(in_delivery_states([word])).count() == len(rows)
        one = api.get(f"/api/deliveries/{listed['id']}").json()
        of_event = api.get(f"/api/events/{event_id}").json()["deliveries"][0]
        assert one["status"] == of_event["status"] == listed["status"]
        assert one["next_attempt_at"] == of_event["next_attempt_at"]
        assert (one["next_attempt_at"] is not None) is (one["status"] in {"pending", "retrying"})
        return str(listed["status"])

    assert state() == "pending"
    attempt(subscription, 500)
    assert state() == "retrying"
    attempt(subscription, 500)
    assert state() == "failed"
    delivery = Delivery.objects.get()
    assert api.post(f"/api/deliveries/{delivery.pk}/retry").json()["status"] == "retrying"
    attempt(subscription, 200)
    assert state() == "delivered"
    assert api.post(f"/api/deliveries/{delivery.pk}/retry").json()["status"] == "pending"
    subscriptions.disable(subscription)
    assert state() == "held"
