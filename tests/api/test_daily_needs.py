"""What whoever runs an integration does every day: erase, filter, retry many, try without storing, keep own ids."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import replace
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from events.models import ERASED, Event
from events.payload import parse_event
from orgs.keys import create_api_key
from orgs.models import AuditEntry, Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem, rows
from tests.webhooks.helpers import fan_out_batch, result, sending
from webhooks.destinations.exchange import Exchange
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, Subscription
from webhooks.upkeep import recovery, replay
from webhooks.upkeep.preview import preview_recovery

SUBSCRIPTIONS = "/api/subscriptions"
# No hexadecimal digits: four digits alone also occur in one UUID in two thousand.
CARD = "card-of-jane-roe"


def make(api: Any, **members: Any) -> dict[str, Any]:
    answer = api.post(SUBSCRIPTIONS, {"url": "https://example.com/hook", "event_types": ["*"], **members})
    assert answer.status_code == 201, answer.content
    shown: dict[str, Any] = answer.json()
    return shown


def send(api: Any, **members: Any) -> str:
    answer = api.post("/api/events", {"type": "order.created", "data": {"card": CARD}, **members})
    assert answer.status_code == 202, answer.content
    event_id: str = answer.json()["id"]
    return event_id


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["data"]]


# --- erasure --------------------------------------------------------------------------------------


def test_no_producer_s_text_is_what_stands_for_erased_data() -> None:
    for body in (
        b'{"type":"a","data":null }',
        b'{"type":"a","data": null ,"dedup_id":"x"}',
        b'{"data":null  ,"type":"a"}',
    ):
        assert parse_event(body).data == "null" != ERASED


def test_an_erased_payload_is_nowhere_and_what_became_of_the_event_stays(api: Any) -> None:
    make(api)
    event_id = send(api)
    fan_out_batch(10)
    record_results([result(one, 200, body=f'you sent {{"card":"{CARD}"}}') for one in claim(10).deliveries])
    make(api, url="https://example.com/late")
    before = api.get("/api/deliveries").json()["data"]
    assert api.delete(f"/api/events/{event_id}/payload").status_code == 204
    assert api.delete(f"/api/events/{event_id}/payload").status_code == 204
    shown = api.get(f"/api/events/{event_id}").json()
    assert (shown["data"], shown["payload_erased"], shown["type"]) == (None, True, "order.created")
    delivery = api.get(f"/api/deliveries/{before[0]['id']}").json()
    assert (delivery["status"], delivery["attempts"][0]["status_code"]) == ("delivered", 200)
    assert api.get("/api/deliveries").json()["data"] == before
    attempt = api.get(f"/api/deliveries/{before[0]['id']}/attempts/1")
    assert attempt.status_code == 200
    for model in (Event, Delivery, DeliveryAttempt):
        assert CARD not in str(list(model.objects.values()))
    assert CARD not in attempt.content.decode()
    entry = AuditEntry.objects.get(action="event.erase_payload")
    assert (entry.target, entry.target_name) == (event_id, "order.created")
    problem = assert_problem(api.post(f"/api/deliveries/{before[0]['id']}/retry"), 409)
    assert "payload was erased" in problem["detail"]
    assert api.get("/api/hooks/sample").json() == []
    assert "was erased" in str(
        assert_problem(api.post(f"{SUBSCRIPTIONS}/{make(api)['id']}/preview", {"event_id": event_id}), 400)["errors"]
    )


def test_what_waits_for_an_erased_payload_is_cancelled(api: Any) -> None:
    make(api)
    held = make(api, url="https://example.com/held")
    api.post(f"{SUBSCRIPTIONS}/{held['id']}/disable")
    event_id, other = send(api), send(api)
    fan_out_batch(10)
    assert api.delete(f"/api/events/{event_id}/payload").status_code == 204
    shown = api.get(f"/api/deliveries?event_id={event_id}").json()["data"]
    assert {(row["status"], row["last_error"], row["next_attempt_at"]) for row in shown} == {
        ("cancelled", "payload_erased", None)
    }
    assert {row["status"] for row in api.get(f"/api/deliveries?event_id={other}").json()["data"]} == {"pending", "held"}


def test_what_a_cloudevent_says_in_headers_is_erased_and_shown_to_readers_of_events_alone(
    api: Any, client_of: Any, organization: Any
) -> None:
    make(api, format="cloudevents-binary")
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created", "subject": "jane@example.com"}
    content_type = "application/cloudevents+json"
    event_id = api.request("POST", "/api/events", {**event, "data": {}}, content_type=content_type).json()["id"]
    fan_out_batch(10)
    [delivery] = claim(10).deliveries
    sent = Exchange("https://example.com/", [("webhook-id", event_id), ("ce-subject", event["subject"])])
    sent.response_head = b"HTTP/1.1 200 OK\r\nx-said: jane@example.com\r\n\r\n"
    done = result(delivery, 200)
    record_results([replace(done, outcome=replace(done.outcome, exchange=sent))])
    path = f"/api/deliveries/{Delivery.objects.get().id}/attempts/1"
    watcher = client_of(create_api_key(organization, scopes=[Scope.DELIVERIES_READ.value])[1])
    shown = {header["name"]: header["value"] for header in watcher.get(path).json()["exchange"]["request"]["headers"]}
    assert (shown["ce-subject"], shown["webhook-id"]) == ("***", event_id)
    assert "jane@example.com" in str(api.get(path).json()["exchange"]["request"])
    for _ in range(2):
        assert api.delete(f"/api/events/{event_id}/payload").status_code == 204
        assert api.get(path).json()["exchange"] is None
        # As when it was recorded after that: the request was on its way.
        DeliveryAttempt.objects.update(response_body="jane@example.com", sealed_exchange=b"jane@example.com")
    assert api.delete(f"/api/events/{event_id}/payload").status_code == 204
    assert "jane@example.com" not in str(list(DeliveryAttempt.objects.values()) + list(Event.objects.values()))


def test_a_recovery_leaves_out_what_was_erased(api: Any) -> None:
    erased, kept = send(api), send(api)
    fan_out_batch(10)
    api.delete(f"/api/events/{erased}/payload")
    for more in ({}, {"filter": {"$not": {"nothing": 1}}}):
        late = make(api, url="https://example.com/late", **more)
        subscription = Subscription.objects.get(pk=late["id"])
        since = timezone.now() - datetime.timedelta(hours=1)
        assert preview_recovery(subscription, since).total == 1
        run = recovery.start(subscription, since)
        recovery.advance(run.pk)
        rows = Delivery.objects.filter(subscription=subscription)
        assert [str(row.event_id) for row in rows] == [kept]


def test_an_event_that_is_erased_before_its_fan_out_goes_nowhere(api: Any) -> None:
    make(api)
    event_id = send(api)
    api.delete(f"/api/events/{event_id}/payload")
    fan_out_batch(10)
    assert api.get(f"/api/events/{event_id}").json()["status"] == "processed"
    assert not Delivery.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_delivery_that_is_due_although_its_payload_was_erased_fails_with_the_cause(
    api: Any, receiver: Receiver
) -> None:
    make(api, url=receiver.url())
    event_id = send(api)
    fan_out_batch(10)
    Event.objects.filter(pk=event_id).update(data=ERASED)  # as when it is erased between claim and retry
    with sending():
        wait_until(lambda: Delivery.objects.get().status == "failed")
    delivery = Delivery.objects.get()
    assert (delivery.last_error, delivery.attempt_count) == ("payload_erased", 1)
    assert receiver.of("/") == []


def test_a_producer_s_key_can_t_erase(api: Any, organization: Organization) -> None:
    event_id = send(api)
    path = f"/api/events/{event_id}/payload"
    api.key = create_api_key(organization, scopes=["events:write", "events:read"])[1]
    problem = assert_problem(api.delete(path), 403)
    assert (problem["code"], problem["scope"]) == ("missing_scope", "events:erase")
    assert api.get(f"/api/events/{event_id}").json()["data"] == {"card": CARD}
    api.key = create_api_key(organization, scopes=["events:erase"])[1]
    assert api.delete(path).status_code == 204


def test_another_organization_s_payload_can_t_be_erased(api: Any, other_api: Any) -> None:
    event_id = send(api)
    assert_problem(other_api.delete(f"/api/events/{event_id}/payload"), 404)
    assert api.get(f"/api/events/{event_id}").json()["data"] == {"card": CARD}


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", "&undelivered=true"])
def test_a_list_can_be_walked_in_both_directions(api: Any, more: str) -> None:
    make(api)
    sent = [send(api) for _ in range(5)]
    fan_out_batch(3)  # some have deliveries that wait, some wait for their fan-out

    def walk(order: str) -> list[str]:
        found, cursor = [], ""
        while True:
            page = api.get(f"/api/events?limit=2&order={order}{more}{cursor}").json()
            found += [row["id"] for row in page["data"]]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    assert walk("asc") == sent
    assert walk("desc") == sent[::-1]
    assert_problem(api.get("/api/events?order=up"), 400, "?order")


def test_every_list_takes_an_order(api: Any) -> None:
    for number in range(3):
        make(api, url=f"https://example.com/{number}")
        api.post("/api/keys", {"name": str(number)})
        api.post("/api/event-types", {"name": f"type{number}"})
    for path in (SUBSCRIPTIONS, "/api/keys", "/api/event-types", "/api/audit", "/api/hooks", "/api/deliveries"):
        assert ids(api.get(f"{path}?order=asc")) == ids(api.get(path))[::-1]


def test_subscriptions_are_found_by_url_host_state_and_uid(api: Any) -> None:
    first = make(api, url="https://a.example/x?y=1", uid="mine")["id"]
    second = make(api, url="https://A.example:8443/other")["id"]
    third = make(api, url="https://b.example/")["id"]
    api.post(f"{SUBSCRIPTIONS}/{third}/disable")
    assert ids(api.get(f"{SUBSCRIPTIONS}?url=https://a.example/x%3Fy=1")) == [first]
    assert ids(api.get(f"{SUBSCRIPTIONS}?host=A.example")) == [second, first]
    assert ids(api.get(f"{SUBSCRIPTIONS}?state=disabled")) == [third]
    assert ids(api.get(f"{SUBSCRIPTIONS}?state=disabled&host=a.example")) == []
    assert ids(api.get(f"{SUBSCRIPTIONS}?uid=mine")) == [first]


def test_events_and_deliveries_are_found_by_their_ids(api: Any) -> None:
    one, two = make(api)["id"], make(api, url="https://example.com/2")["id"]
    first, second = send(api, dedup_id="first"), send(api)
    fan_out_batch(10)
    assert ids(api.get("/api/events?dedup_id=first")) == [first]
    assert ids(api.get("/api/events?dedup_id=none")) == []
    found = api.get(f"/api/deliveries?event_id={second}&subscription_id={two}&state=pending").json()["data"]
    assert [(row["event_id"], row["subscription_id"]) for row in found] == [(second, two)]
    assert ids(api.get(f"/api/deliveries?event={second}&subscription={two}")) == [found[0]["id"]]
    assert_problem(api.get(f"/api/deliveries?event={first}&event_id={second}"), 400, "?event_id")
    assert len(ids(api.get(f"/api/deliveries?subscription_id={one}"))) == 2


# --- uid and metadata -----------------------------------------------------------------------------


def test_a_subscription_keeps_an_own_id_and_metadata(api: Any, other_api: Any) -> None:
    made = make(api, uid="crm-17", metadata={"team": "north"})
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    shown = api.get(path).json()
    assert (shown["uid"], shown["metadata"]) == ("crm-17", {"team": "north"})
    problem = assert_problem(
        api.post(SUBSCRIPTIONS, {"url": "https://b.example/", "event_types": ["*"], "uid": "crm-17"}), 409
    )
    assert (problem["code"], problem["subscription_id"]) == ("uid_taken", made["id"])
    other = make(api)
    assert (other["uid"], other["metadata"]) == (None, {})
    assert assert_problem(api.patch(f"{SUBSCRIPTIONS}/{other['id']}", {"uid": "crm-17"}), 409)["code"] == "uid_taken"
    assert make(other_api, uid="crm-17")["uid"] == "crm-17"
    assert api.patch(path, {"uid": None, "metadata": {}}).json()["uid"] is None
    assert api.patch(f"{SUBSCRIPTIONS}/{other['id']}", {"uid": "crm-17"}).status_code == 200
    api.delete(f"{SUBSCRIPTIONS}/{other['id']}")
    assert make(api, uid="crm-17")["uid"] == "crm-17"


@pytest.mark.parametrize(
    ("member", "pointer"),
    [
        ({"uid": ""}, "/uid"), ({"uid": "x" * 256}, "/uid"), ({"uid": 5}, "/uid"), ({"metadata": "x"}, "/metadata"),
        ({"metadata": {"a": 1}}, "/metadata/a"), ({"metadata": {"a": "x" * 501}}, "/metadata/a"),
        ({"metadata": {str(n): "" for n in range(51)}}, "/metadata"),
    ],
    ids=str,
)  # fmt: skip
def test_an_own_id_and_metadata_are_bounded(api: Any, member: dict[str, Any], pointer: str) -> None:
    body = {"url": "https://example.com/", "event_types": ["*"], **member}
    assert_problem(api.post(SUBSCRIPTIONS, body), 400, pointer)


# --- many retries ---------------------------------------------------------------------------------


def test_many_deliveries_are_retried_with_one_request(api: Any) -> None:
    subscription, other = make(api)["id"], make(api, url="https://example.com/2")["id"]
    for _ in range(3):
        send(api)
    fan_out_batch(10)
    Delivery.objects.update(status="failed", last_error="timeout", next_attempt_at=None)
    answer = api.post("/api/deliveries/retry", {"subscription_id": subscription, "since": "2020-01-01T00:00:00Z"})
    assert answer.status_code == 202
    again = api.post("/api/deliveries/retry", {"subscription_id": subscription, "since": "2020-01-01T00:00:00Z"})
    assert again.json()["id"] == answer.json()["id"]
    replay.advance(answer.json()["id"])
    shown = api.get(answer["Location"]).json()
    assert (shown["status"], shown["seen"], shown["queued"], shown["held"]) == ("done", 3, 3, 0)
    states = Delivery.objects.values_list("subscription_id", "status")
    assert {(str(key), status) for key, status in states} == {(subscription, "pending"), (other, "failed")}
    entry = AuditEntry.objects.get(action="delivery.retry")
    assert (entry.target, entry.detail["filters"]["subscription"]) == (answer.json()["id"], subscription)
    named = [str(Delivery.objects.filter(subscription_id=other).first().pk)]  # type: ignore[union-attr]
    run = api.post("/api/deliveries/retry", {"delivery_ids": named}).json()["id"]
    replay.advance(run)
    assert Delivery.objects.filter(status="failed").count() == 2


def test_another_organization_s_deliveries_are_not_retried(api: Any, other_api: Any) -> None:
    make(api)
    send(api)
    fan_out_batch(10)
    Delivery.objects.update(status="failed", last_error="timeout")
    delivery = str(Delivery.objects.get().pk)
    answer = other_api.post("/api/deliveries/retry", {"delivery_ids": [delivery]})
    replay.advance(answer.json()["id"])
    assert other_api.get(answer["Location"]).json()["queued"] == 0
    assert Delivery.objects.get().status == "failed"
    assert_problem(api.get(answer["Location"]), 404)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, ""), ({"status": "held"}, "/status"), ({"state": "failed"}, "/state"),
     ({"delivery_ids": []}, "/delivery_ids"), ({"delivery_ids": ["x"]}, "/delivery_ids/0")],
)  # fmt: skip
def test_a_retry_of_many_says_what_it_needs(api: Any, body: dict[str, Any], pointer: str) -> None:
    assert_problem(api.post("/api/deliveries/retry", body), 400, pointer)


def test_the_number_of_runs_is_bounded(api: Any) -> None:
    for _ in range(20):
        assert api.post("/api/deliveries/retry", {"event_id": str(uuid.uuid4())}).status_code == 202
    answer = api.post("/api/deliveries/retry", {"event_id": str(uuid.uuid4())})
    assert assert_problem(answer, 429)["code"] == "too_many_runs"
    assert answer["Retry-After"] == "10"
    assert BulkRun.objects.count() == 20


# --- validate_only --------------------------------------------------------------------------------


def test_an_event_can_be_checked_without_being_stored(api: Any) -> None:
    before = rows()
    answer = api.post("/api/events?validate_only=true", {"type": "a", "data": 1, "dedup_id": "x"})
    assert (answer.status_code, answer.json()["status"], answer.json()["id"]) == (200, "valid", None)
    assert_problem(api.post("/api/events?validate_only=true", {"type": "a b", "data": 1}), 400, "/type")
    batch = api.post("/api/events/batch?validate_only=true", [{"type": "a", "data": 1}, {"type": "a"}])
    assert (batch.status_code, batch.json()["accepted"]) == (200, 0)
    assert [one["status"] for one in batch.json()["data"]] == ["valid", "invalid"]
    for query in ("validate_only=yes", "validateOnly=true", "dry_run=true"):
        assert_problem(api.post(f"/api/events?{query}", {"type": "a", "data": 1}), 400, f"?{query.split('=')[0]}")
    assert rows() == before
    assert api.post("/api/events?validate_only=false", {"type": "a", "data": 1}).status_code == 202


def test_a_check_looks_at_the_catalog(api: Any) -> None:
    api.post("/api/event-types", {"name": "a", "schema": {"type": "integer"}})
    api.patch("/api/event-types/settings", {"strictness": "schema"})
    assert api.post("/api/events?validate_only=true", {"type": "a", "data": 1}).status_code == 200
    assert_problem(api.post("/api/events?validate_only=true", {"type": "a", "data": "x"}), 400, "/data")
    assert_problem(api.post("/api/events?validate_only=true", {"type": "b", "data": 1}), 400, "/type")


# --- CORS -----------------------------------------------------------------------------------------

ORIGIN = "https://tool.example"


def test_pages_of_an_allowed_origin_may_use_the_api(api: Any, settings: Settings) -> None:
    settings.CORS_ALLOWED_ORIGINS = [ORIGIN]
    for path in ("/api/me", "/api/events"):
        preflight = api.request(
            "OPTIONS", path, Origin=ORIGIN, **{"Access-Control-Request-Method": "POST"}
        )  # fmt: skip
        assert preflight.status_code == 204
        assert preflight["Access-Control-Allow-Origin"] == ORIGIN
        # What the API reads: a page that sends another header is refused by its browser.
        for name in ("x-api-key", "idempotency-key", "ce-id", "ce-source", "ce-type", "ce-specversion"):
            assert name in preflight["Access-Control-Allow-Headers"].split(", ")
        assert "DELETE" in preflight["Access-Control-Allow-Methods"]
    for answer in (
        api.get("/api/me", Origin=ORIGIN),
        api.post("/api/events", {"type": "a", "data": 1}, Origin=ORIGIN),
        api.post("/api/events", {"type": ""}, Origin=ORIGIN),
        api.get("/api/nothing", Origin=ORIGIN),
    ):
        assert answer["Access-Control-Allow-Origin"] == ORIGIN
        assert "Origin" in answer["Vary"]
        for name in ("X-Request-Id", "Idempotency-Replayed"):
            assert name in answer["Access-Control-Expose-Headers"].split(", ")
        assert not answer.has_header("Access-Control-Allow-Credentials")


@pytest.mark.parametrize("allowed", [[], [ORIGIN]])
def test_pages_of_any_other_origin_may_not(api: Any, settings: Settings, allowed: list[str]) -> None:
    settings.CORS_ALLOWED_ORIGINS = allowed
    for origin in ("https://evil.example", "null", f"{ORIGIN}.evil.example"):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = api.request("OPTIONS", "/api/events", **asked)
        assert assert_problem(preflight, 403)["code"] == "origin_not_allowed"
        for answer in (preflight, api.post("/api/events", {"type": "a", "data": 1}, Origin=origin)):
            assert not answer.has_header("Access-Control-Allow-Origin")
