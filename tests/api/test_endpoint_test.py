"""A test event reaches the endpoint as a webhook does, its outcome is shown, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from devstack.http_receiver import Receiver, Response, verify
from events.models import Event
from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem
from webhooks import endpoint_test, probes
from webhooks.models import Delivery, DeliveryAttempt, SubscriptionQueue

PATH = "/api/subscriptions"


def make(api: Any, url: str) -> dict[str, Any]:
    answer = api.post(PATH, {"url": url, "event_types": ["order.*"], "headers": {"X-Warehouse": "north"}})
    assert answer.status_code == 201, answer.content
    made: dict[str, Any] = answer.json()
    return made


def test_it_is_signed_and_marked_and_what_came_back_is_shown(api: Any, receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(202, body=b"thanks \xff\x00<b>")
    made = make(api, receiver.url("/hook"))
    shown = api.post(f"{PATH}/{made['id']}/test").json()
    (request,) = receiver.requests
    assert verify(made["secret"], request)
    assert request.headers["x-warehouse"] == "north"
    assert request.headers["webhook-id"] == request.document["id"] == shown["event_id"]
    assert request.document["type"] == shown["type"] == "triggers.test"
    assert request.document["data"] == {"test": True, "subscription_id": made["id"]}
    assert (shown["succeeded"], shown["status_code"], shown["error"]) == (True, 202, None)
    assert shown["response_body"].startswith("thanks")
    assert shown["duration_ms"] > 0


def test_it_leaves_no_event_no_delivery_and_no_mark_on_the_queue(api: Any, receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(500, body=b"broken")
    made = make(api, receiver.url())
    before = SubscriptionQueue.objects.values().get()
    shown = api.post(f"{PATH}/{made['id']}/test").json()
    assert (shown["succeeded"], shown["status_code"], shown["error"]) == (False, 500, "http_status")
    assert SubscriptionQueue.objects.values().get() == before
    assert not Event.objects.exists()
    assert not Delivery.objects.exists()
    assert not DeliveryAttempt.objects.exists()
    entry = AuditEntry.objects.get(action="subscription.test")
    assert entry.detail == {"event": shown["event_id"], "status_code": 500, "error": "http_status"}


def test_with_an_idempotency_key_it_is_sent_once(api: Any, receiver: Receiver) -> None:
    path = f"{PATH}/{make(api, receiver.url())['id']}/test"
    first, again = (api.post(path, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert again["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert (len(receiver.requests), AuditEntry.objects.filter(action="subscription.test").count()) == (1, 1)


def test_a_disabled_endpoint_can_be_tested_before_it_is_enabled(api: Any, receiver: Receiver) -> None:
    made = make(api, receiver.url())
    api.post(f"{PATH}/{made['id']}/disable")
    assert api.post(f"{PATH}/{made['id']}/test").json()["succeeded"] is True


def test_the_rules_for_addresses_hold(api: Any, settings: Any, receiver: Receiver) -> None:
    made = make(api, receiver.url())
    settings.WEBHOOK_ALLOWED_SUBNETS = ()
    shown = api.post(f"{PATH}/{made['id']}/test").json()
    assert (shown["status_code"], shown["error"]) == (None, "address_not_allowed")
    assert not receiver.requests


def test_an_endpoint_that_does_not_respond_ends_in_time(
    api: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MAX_SECONDS", 0.3)
    receiver.hold()
    made = make(api, receiver.url())
    shown = api.post(f"{PATH}/{made['id']}/test").json()
    receiver.release()
    assert (shown["error"], shown["succeeded"]) == ("timeout", False)


def test_so_many_a_minute_and_one_at_a_time(
    api: Any, other_api: Any, organization: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(api, receiver.url())
    monkeypatch.setattr(endpoint_test, "PER_MINUTE", 2)
    assert [api.post(f"{PATH}/{made['id']}/test").status_code for _ in range(2)] == [200, 200]
    refused = api.post(f"{PATH}/{made['id']}/test")
    assert_problem(refused, 429)
    assert refused.json()["code"] == "too_many_test_events"
    assert int(refused["Retry-After"]) >= 1
    monkeypatch.setattr(endpoint_test, "PER_MINUTE", 100)
    others = make(other_api, receiver.url())
    with probes.places.place(organization.pk):
        assert_problem(api.post(f"{PATH}/{made['id']}/test"), 429)
        # It waits for itself alone.
        assert other_api.post(f"{PATH}/{others['id']}/test").status_code == 200
    assert api.post(f"{PATH}/{made['id']}/test").status_code == 200


def test_another_organization_s_endpoint_is_not_there(api: Any, other_api: Any, receiver: Receiver) -> None:
    made = make(api, receiver.url())
    assert_problem(other_api.post(f"{PATH}/{made['id']}/test"), 404)
    assert not receiver.requests
