"""`/api/hooks`: what Zapier, n8n, and Make send, and what they expect to come back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection
from pytest_django import Settings

from devstack.http_receiver import Receiver
from orgs.models import AuditEntry
from tests.api.helpers import assert_problem
from tests.webhooks.helpers import fan_out_batch, result, sending
from webhooks import subscriptions
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, Subscription

PATH = "/api/hooks"
URL = "https://hooks.example.com/1/abc/"


def subscribe(api: Any, body: Any = None) -> dict[str, Any]:
    answer = api.post(PATH, body or {"target_url": URL, "event": "order.created"})
    assert answer.status_code == 201, answer.content
    shown: dict[str, Any] = answer.json()
    return shown


@pytest.mark.parametrize(
    ("body", "types"),
    [
        ({"target_url": URL, "event": "order.created", "subscription_url": URL}, ["order.created"]),
        ({"targetUrl": URL, "event_type": "order.*"}, ["order.*"]),
        ({"hookUrl": URL, "event_types": ["order.created", "order.paid"]}, ["order.created", "order.paid"]),
        ({"target_url": URL, "url": URL, "event": ["order.created"], "event_types": "order.created"},
         ["order.created"]),
        ({"url": URL}, ["*"]),
    ],
    ids=["Zapier", "camel case", "n8n", "twice the same", "Make"],
)  # fmt: skip
def test_every_platform_s_shape_makes_a_subscription(api: Any, body: dict[str, Any], types: list[str]) -> None:
    shown = subscribe(api, body)
    assert (shown["target_url"], shown["event_types"], shown["state"]) == (URL, types, "active")
    assert shown["secret"].startswith("whsec_")
    same = api.get(f"/api/subscriptions/{shown['id']}").json()
    assert (same["url"], same["event_types"], same["format"]) == (URL, types, "standard")
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target, entry.target_name) == ("subscription.create", shown["id"], URL)


def test_the_same_again_is_the_one_that_there_is(api: Any) -> None:
    first = subscribe(api, {"url": f" {URL}", "event_types": ["a", "b"]})
    again = api.post(PATH, {"target_url": URL, "event": ["b", "a"]})
    assert again.status_code == 200
    assert again.json() == {**first, "secret": None}
    assert again["Location"] == f"/api/subscriptions/{first['id']}"
    assert Subscription.objects.count() == 1
    assert AuditEntry.objects.count() == 1


def test_the_same_again_enables_what_was_disabled(api: Any) -> None:
    first = subscribe(api)
    api.post(f"/api/subscriptions/{first['id']}/disable")
    assert api.get(PATH).json()["data"] == []
    again = api.post(PATH, {"target_url": URL, "event": "order.created"})
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (200, first["id"], "active")


def test_other_types_for_the_same_url_are_a_conflict_that_says_what_to_do(api: Any) -> None:
    first = subscribe(api)
    problem = assert_problem(api.post(PATH, {"target_url": URL, "event": "order.paid"}), 409)
    assert (problem["code"], problem["hook_id"]) == ("hook_exists", first["id"])
    assert problem["event_types"] == ["order.created"]
    assert f"DELETE /api/hooks/{first['id']}" in problem["detail"]


def test_one_with_a_filter_or_channels_is_not_the_same(api: Any) -> None:
    narrow = {"filter": {"total": {"$gte": 100}}, "channels": ["eu", "us"]}
    body = {"url": URL, "event_types": ["order.created"], **narrow}
    made = api.post("/api/subscriptions", body).json()
    asked = {"target_url": URL, "event": "order.created"}
    for other in (
        {},
        {"filter": narrow["filter"]},
        {"channels": narrow["channels"]},
        {"filter": {"total": {"$gte": 1}}, "channels": ["eu", "us"]},
    ):
        problem = assert_problem(api.post(PATH, {**asked, **other}), 409)
        assert (problem["code"], problem["hook_id"]) == ("hook_exists", made["id"])
        assert (problem["filter"], problem["channels"]) == (narrow["filter"], narrow["channels"])
        assert "order.created with a filter and channels" in problem["detail"]
    again = api.post(PATH, {**asked, **narrow, "channels": ["us", "eu"]})
    assert (again.status_code, again.json()["id"]) == (200, made["id"])
    assert (again.json()["filter"], again.json()["channels"]) == (narrow["filter"], narrow["channels"])
    assert Subscription.objects.count() == 1


def test_one_is_made_with_a_filter_and_channels(api: Any) -> None:
    shown = subscribe(api, {"target_url": URL, "filter": {"total": {"$gte": 100}}, "channels": ["eu"]})
    assert (shown["filter"], shown["channels"]) == ({"total": {"$gte": 100}}, ["eu"])
    assert_problem(api.post(PATH, {"target_url": URL, "filter": {"total": {"$huge": 1}}}), 400)
    assert api.get(PATH).json()["data"][0]["channels"] == ["eu"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"event": "a"}, "/target_url"),
        ({"target_url": URL, "url": "https://example.com/other"}, "/url"),
        ({"target_url": URL, "event": "a", "event_types": ["b"]}, "/event_types"),
        ({"target_url": "https://user:secret@example.com/"}, "/target_url"),
        ({"hookUrl": "http://10.0.0.1/"}, "/hookUrl"),
        ({"target_url": URL, "event": "not a type"}, "/event"),
        ({"target_url": URL, "event_types": ["a", "not a type"]}, "/event_types/1"),
        ({"target_url": URL, "event": 5}, "/event"),
        ({"target_url": URL, "secret": "mine"}, "/secret"),
    ],
)
def test_what_is_wrong_is_named(api: Any, body: dict[str, Any], pointer: str) -> None:
    answer = api.post(PATH, body)
    assert_problem(answer, 400, pointer)
    assert b"user:secret" not in answer.content
    assert not Subscription.objects.exists()


def test_a_password_in_a_url_is_refused_with_the_place_where_it_belongs(api: Any) -> None:
    problem = assert_problem(api.post(PATH, {"hookUrl": "https://me:hunter2@example.com/"}), 400, "/hookUrl")
    assert "`auth` of `POST /api/subscriptions`" in problem["errors"][0]["detail"]
    assert "hunter2" not in str(problem)


def test_unsubscribing_again_is_harmless(api: Any, other_api: Any) -> None:
    hook = subscribe(api)
    path = f"{PATH}/{hook['id']}"
    assert_problem(other_api.delete(path), 404)
    assert [api.delete(path).status_code for _ in range(3)] == [204] * 3
    assert_problem(other_api.delete(path), 404)
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == [
        "subscription.create", "subscription.delete",
    ]  # fmt: skip
    assert_problem(api.delete(f"{PATH}/0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"), 404)


def test_an_inbox_is_no_hook(api: Any) -> None:
    inbox = api.post("/api/subscriptions", {"kind": "inbox", "inbox": "orders", "event_types": ["*"]}).json()
    assert api.get(PATH).json()["data"] == []
    assert_problem(api.delete(f"{PATH}/{inbox['id']}"), 404)


def test_whether_a_url_is_subscribed_can_be_asked(api: Any, other_api: Any) -> None:
    hook = subscribe(api)
    subscribe(api, {"target_url": "https://example.com/other"})
    found = api.get(f"{PATH}?target_url={URL}").json()["data"]
    assert found == [{name: value for name, value in hook.items() if name != "secret"}]
    assert api.get(f"{PATH}?target_url=https://example.com/nobody").json()["data"] == []
    assert other_api.get(f"{PATH}?target_url={URL}").json()["data"] == []
    assert len(api.get(PATH).json()["data"]) == 2


@pytest.mark.django_db(transaction=True)
def test_subscribing_at_once_makes_one_hook(api: Any) -> None:
    gate = threading.Barrier(4)
    statuses: list[int] = []

    def create() -> None:
        try:
            gate.wait()
            statuses.append(api.post(PATH, {"target_url": URL}).status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 200, 201]
    assert Subscription.objects.count() == 1


def test_hooks_count_as_subscriptions(api: Any, settings: Settings) -> None:
    settings.MAX_SUBSCRIPTIONS = 1
    subscribe(api)
    assert api.post(PATH, {"target_url": URL, "event": "order.created"}).status_code == 200
    assert assert_problem(api.post(PATH, {"target_url": "https://b.example/"}), 409)["code"] == "too_many_subscriptions"


def test_samples_are_what_is_delivered_newest_first(api: Any, other_api: Any, receiver: Receiver) -> None:
    hook = subscribe(api, {"target_url": receiver.url(), "event": "order.*"})
    other_api.post("/api/events", {"type": "order.created", "data": "theirs"})
    for number in range(4):
        api.post("/api/events", {"type": "order.created", "data": {"n": number, "exact": 12.50}})
    api.post("/api/events", {"type": "invoice.paid", "data": 1})
    fan_out_batch(10)
    answer = api.get(f"{PATH}/sample?event=order.*")
    assert answer.status_code == 200
    assert [one["data"]["n"] for one in answer.json()] == [3, 2, 1]
    assert len(api.get(f"{PATH}/sample?limit=20").json()) == 5
    assert api.get(f"{PATH}/sample?event=order.created&limit=1").json() == answer.json()[:1]
    delivered = [
        row.event for row in Delivery.objects.filter(subscription_id=hook["id"]).select_related("event").order_by("-id")
    ]
    assert [one["id"] for one in answer.json()] == [str(event.pk) for event in delivered[:3]]


def test_without_events_the_type_s_examples_are_the_sample(api: Any) -> None:
    for name, examples in (("order.created", [{"n": 1}, {"n": 2}]), ("order.paid", [{"n": 3}]), ("x", [{"n": 4}])):
        assert api.post("/api/event-types", {"name": name, "examples": examples}).status_code == 201
    shown = api.get(f"{PATH}/sample?event=order.created").json()
    assert [(one["type"], one["data"]) for one in shown] == [("order.created", {"n": 1}), ("order.created", {"n": 2})]
    assert len({one["id"] for one in shown}) == 2
    assert [one["id"] for one in api.get(f"{PATH}/sample?event=order.created").json()] == [one["id"] for one in shown]
    assert [one["data"]["n"] for one in api.get(f"{PATH}/sample?event=order.*").json()] == [1, 2, 3]
    assert api.get(f"{PATH}/sample?event=nothing").json() == []
    assert_problem(api.get(f"{PATH}/sample?event=not a type"), 400, "?event")
    assert_problem(api.get(f"{PATH}/sample?limit=21"), 400, "?limit")


def test_a_410_unsubscribes_a_hook_and_disables_any_other_subscription(api: Any) -> None:
    hook = subscribe(api)
    other, _ = subscriptions.create(Subscription.objects.get().organization_id, url=URL, event_types=["*"])
    api.post("/api/events", {"type": "order.created", "data": 1})
    fan_out_batch(10)
    record_results([result(one, 410) for one in claim(10).deliveries])
    subscriptions.resync(hook["id"])
    assert api.get(f"/api/subscriptions/{hook['id']}").status_code == 404
    assert api.get(f"/api/subscriptions/{other.pk}").json()["status"] == "disabled"
    statuses = Delivery.objects.values_list("subscription_id", "status")
    assert {str(key): status for key, status in statuses} == {hook["id"]: "cancelled", str(other.pk): "held"}
    entry = AuditEntry.objects.get(action="subscription.delete")
    assert (entry.target, entry.actor, entry.reason) == (
        hook["id"], "system:worker", "The endpoint returned 410 Gone.",
    )  # fmt: skip
    assert api.delete(f"{PATH}/{hook['id']}").status_code == 204


def test_me_has_a_label(api: Any) -> None:
    shown = api.get("/api/me").json()
    assert shown["label"] == f"Acme ({shown['key']['prefix']})"


@pytest.mark.django_db(transaction=True)
def test_a_sample_is_byte_for_byte_what_a_receiver_gets(api: Any, receiver: Receiver) -> None:
    subscribe(api, {"target_url": receiver.url()})
    raw = b'{"type":"order.created","data":{"n": 12.50,"big":123456789012345678901234567890}}'
    assert api.post("/api/events", raw=raw).status_code == 202
    fan_out_batch(10)
    with sending():
        (request,) = receiver.wait_for(1)
    assert b"[" + request.body + b"]" == api.get(f"{PATH}/sample").content
