"""Subscriptions: made with a secret shown once, listed, read, changed, disabled, enabled, deleted."""

from __future__ import annotations

import base64
import datetime
import threading
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.dateparse import parse_datetime
from pytest_django import Settings

from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem, refuse_audit_entries
from tests.webhooks.helpers import fan_out_batch
from webhooks.models import Delivery, Subscription, SubscriptionQueue

PATH = "/api/subscriptions"
NEW = {
    "url": "https://example.com/hook?x=1",
    "event_types": ["order.created", "invoice.*", "*"],
    "description": "Orders for the warehouse",
    "headers": {"X-Warehouse": "north", "Authorization": "Basic aHVudGVyMg=="},
    "max_in_flight": 7,
    "deliveries_per_second": 2.5,
}


def make(api: Any, **members: Any) -> dict[str, Any]:
    answer = api.post(PATH, {"url": "https://example.com/hook", "event_types": ["*"], **members})
    assert answer.status_code == 201, answer.content
    shown: dict[str, Any] = answer.json()
    return shown


def test_a_subscription_is_made_with_everything_that_was_given_and_a_secret(api: Any) -> None:
    answer = api.post(PATH, NEW)
    assert answer.status_code == 201
    shown = answer.json()
    assert answer["Location"] == f"{PATH}/{shown['id']}"
    secret = shown.pop("secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert parse_datetime(shown.pop("created_at"))
    assert parse_datetime(shown.pop("updated_at"))
    assert parse_datetime(shown.pop("state_since"))
    assert shown == {
        "id": shown["id"], "kind": "http", "inbox": None, "format": "standard", "transform": "",
        "uid": None, "metadata": {},
        "url": NEW["url"], "event_types": NEW["event_types"], "description": NEW["description"],
        "header_names": ["Authorization", "X-Warehouse"], "status": "active", "disabled_cause": None,
        "disabled_reason": "", "disabled_at": None, "max_in_flight": 7, "deliveries_per_second": 2.5,
        "state": "active", "breaker": "closed", "paused_until": None, "last_success_at": None,
        "last_failure_at": None, "last_error": None, "last_status_code": None, "next_attempt_at": None,
        "auth_type": None, "client_certificate": None,
        "signature_header": None, "public_key": None, "channels": [], "filter": None, "ordered": False,
        "ordered_attempts": None, "ordered_on_failure": "skip", "operational": False,
    }  # fmt: skip


def test_neither_the_secret_nor_a_header_s_value_is_ever_shown_again(api: Any) -> None:
    shown = api.post(PATH, NEW).json()
    path = f"{PATH}/{shown['id']}"
    answers = [api.get(path), api.get(PATH), api.patch(path, {"description": "new"}), api.post(f"{path}/disable"),
               api.post(f"{path}/enable"), api.get("/api/audit")]  # fmt: skip
    for answer in answers:
        assert answer.status_code == 200
        for hidden in (shown["secret"], "north", "aHVudGVyMg=="):
            assert hidden.encode() not in answer.content
    row = Subscription.objects.values().get()
    assert shown["secret"] not in str(row)
    assert "aHVudGVyMg==" not in str(row)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("  https://example.com/hook \t\r\n", "https://example.com/hook"),
        ("\u00a0https://example.com/hook\u2003", "https://example.com/hook"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.Example:8443/Ä?x=ö&y=%C3%B6", "https://xn--bcher-kva.example:8443/%C3%84?x=%C3%B6&y=%C3%B6"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://例え。テスト/", "https://xn--r8jz45g.xn--zckzah/"),
        ("https://my_hooks.bücher.example/", "https://my_hooks.xn--bcher-kva.example/"),
        ("https://ｅｘａｍｐｌｅ.com/", "https://example.com/"),
        ("https://example.com/日本?🙂", "https://example.com/%E6%97%A5%E6%9C%AC?%F0%9F%99%82"),
        # What is ASCII stays as it is.
        ("HTTPS://Example.COM:443/a/../%7e?sig=a%2Fb&t=%zz", "HTTPS://Example.COM:443/a/../%7e?sig=a%2Fb&t=%zz"),
        ("https://example.com/a/../%7e?sig=a%2Fb&t=é", "https://example.com/a/../%7e?sig=a%2Fb&t=%C3%A9"),
        ("https://example.com?", "https://example.com?"),
    ],
)
def test_a_pasted_url_is_converted_once_and_shown_as_it_is_stored(api: Any, given: str, stored: str) -> None:
    shown = make(api, url=given)
    assert shown["url"] == stored
    assert Subscription.objects.get().url == stored
    again = api.patch(f"{PATH}/{shown['id']}", {"url": stored})
    assert (again.status_code, again.json()["url"]) == (200, stored)
    assert api.patch(f"{PATH}/{shown['id']}", {"url": given}).json()["url"] == stored


@pytest.mark.parametrize(
    "url",
    [
        "https://exam ple.com/", "https://example.com/a b", "https://example.com/\u00a0 x", "https://.ü.example/",
        "https://ü..example/", "https://-ü.example/", "https://ü.exam ple/", "https://a\u200db.example/",
        "https://\u2100.example/", "https://example.com／@ü.example/", "https://ü@example.com/",
        "https://example.com：443/", "https://１０.０.０.１/", "https://①⓪.⓪.⓪.①/", "https://10。0。0。1/",
        "https://[::１]/", "https://example.com:８０/", "httpş://example.com/", "ü",
        "https://" + "ü" * 64 + ".example/", "https://example.com/" + "ü" * 700, "https://ü\\@127.0.0.1/",
    ],
)  # fmt: skip
def test_a_url_that_has_no_one_meaning_is_refused(api: Any, url: str) -> None:
    answer = api.post(PATH, {"url": url, "event_types": ["*"]})
    assert_problem(answer, 400, "/url")
    assert not Subscription.objects.exists()


def test_what_is_not_given_has_a_default(api: Any) -> None:
    shown = make(api)
    assert (shown["description"], shown["header_names"]) == ("", [])
    assert (shown["max_in_flight"], shown["deliveries_per_second"]) == (None, None)


def test_no_two_subscriptions_share_a_secret(api: Any) -> None:
    assert len({make(api)["secret"] for _ in range(5)}) == 5


def test_a_subscription_is_read_and_listed(api: Any) -> None:
    ids = [make(api)["id"] for _ in range(3)]
    assert [row["id"] for row in api.get(PATH).json()["data"]] == ids[::-1]
    assert api.get(f"{PATH}/{ids[0]}").json() == api.get(PATH).json()["data"][-1]


CHANGES: list[dict[str, Any]] = [
    {"url": "https://example.org/other"},
    {"event_types": ["a.b", "c.*"]},
    {"description": ""},
    {"max_in_flight": None},
    {"max_in_flight": 10_000},
    {"deliveries_per_second": None},
    {"deliveries_per_second": 0.01},
]


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_a_change_changes_what_it_names_and_nothing_else(api: Any, change: dict[str, Any]) -> None:
    before = api.get(api.post(PATH, NEW)["Location"]).json()
    answer = api.patch(f"{PATH}/{before['id']}", change)
    assert answer.status_code == 200
    after = answer.json()
    assert parse_datetime(after["updated_at"]) > parse_datetime(before["updated_at"])
    assert after == {**before, **change, "updated_at": after["updated_at"], "state_since": after["state_since"]}
    assert api.get(f"{PATH}/{before['id']}").json() == after


def test_a_change_looks_at_the_deliveries_once(api: Any) -> None:
    """For the planner, that is each partition of them: looking four times cost more than all the rest of a change."""
    path = f"{PATH}/{make(api)['id']}"
    with CaptureQueriesContext(connection) as captured:
        assert api.patch(path, {"description": "new"}).status_code == 200
    assert sum(row["sql"].count('FROM "webhooks_delivery"') for row in captured) == 1


def test_headers_are_replaced_as_a_whole(api: Any) -> None:
    path = f"{PATH}/{api.post(PATH, NEW).json()['id']}"
    assert api.patch(path, {"headers": {"X-New": "1"}}).json()["header_names"] == ["X-New"]
    assert api.patch(path, {"description": "x"}).json()["header_names"] == ["X-New"]
    assert api.patch(path, {"headers": {}}).json()["header_names"] == []


def test_types_that_are_named_twice_count_once(api: Any) -> None:
    assert make(api, event_types=["a", "b.*", "a"])["event_types"] == ["a", "b.*"]


def test_disabling_holds_what_waits_and_enabling_sends_it(api: Any) -> None:
    subscription = make(api)
    path = f"{PATH}/{subscription['id']}"
    api.post("/api/events", {"type": "a", "data": 1})
    fan_out_batch(10)
    disabled = api.post(f"{path}/disable")
    assert disabled.status_code == 200
    assert (disabled.json()["status"], disabled.json()["disabled_reason"]) == ("disabled", "Disabled by request.")
    assert disabled.json()["disabled_cause"] == "by_request"
    assert parse_datetime(disabled.json()["disabled_at"])
    api.post("/api/events", {"type": "a", "data": 2})
    fan_out_batch(10)
    assert [row["status"] for row in api.get("/api/deliveries").json()["data"]] == ["held", "held"]
    again = api.post(f"{path}/disable").json()
    assert again["disabled_at"] == disabled.json()["disabled_at"]  # since when stays true
    enabled = api.post(f"{path}/enable").json()
    assert (enabled["status"], enabled["disabled_reason"], enabled["disabled_at"]) == ("active", "", None)
    assert enabled["disabled_cause"] is None
    assert [row["status"] for row in api.get("/api/deliveries").json()["data"]] == ["pending", "pending"]
    assert api.post(f"{path}/enable").json()["status"] == "active"


def test_a_deleted_subscription_is_gone_and_what_waited_is_cancelled(api: Any) -> None:
    path = f"{PATH}/{make(api)['id']}"
    api.post("/api/events", {"type": "a", "data": 1})
    fan_out_batch(10)
    answer = api.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    delivery = api.get("/api/deliveries").json()["data"][0]
    assert (delivery["status"], delivery["next_attempt_at"]) == ("cancelled", None)
    assert delivery["completed_at"]
    for response in (api.get(path), api.patch(path, {"description": "x"}), api.delete(path), api.post(f"{path}/enable"),
                     api.post(f"{path}/disable"), api.post(f"{path}/rotate-secret"),
                     api.post(f"{path}/recover", {"since": "2026-01-01T00:00:00Z"})):  # fmt: skip
        assert_problem(response, 404)
    assert api.get(PATH).json()["data"] == []
    api.post("/api/events", {"type": "a", "data": 2})
    fan_out_batch(10)
    assert Delivery.objects.count() == 1
    row = Subscription.objects.get()
    assert (row.encrypted_secret, row.encrypted_headers) == ("", "")


def test_a_rotated_secret_is_shown_once_with_the_end_of_the_old_one(api: Any) -> None:
    created = make(api)
    path = f"{PATH}/{created['id']}"
    rotated = api.post(f"{path}/rotate-secret", {"overlap_seconds": 60})
    assert rotated.status_code == 200
    assert rotated.json()["secret"].startswith("whsec_")
    assert rotated.json()["secret"] != created["secret"]
    ends = parse_datetime(rotated.json()["previous_secret_expires_at"])
    assert ends is not None
    assert 0 < (ends - datetime.datetime.now(datetime.UTC)).total_seconds() <= 61
    at_once = api.post(f"{path}/rotate-secret", {"overlap_seconds": 0}).json()
    assert at_once["previous_secret_expires_at"] is None
    a_day = parse_datetime(api.post(f"{path}/rotate-secret").json()["previous_secret_expires_at"])
    assert a_day is not None
    assert 86000 < (a_day - datetime.datetime.now(datetime.UTC)).total_seconds() <= 86401


def test_a_recovery_is_started_and_shows_its_progress(api: Any, organization: Organization) -> None:
    path = f"{PATH}/{make(api)['id']}"
    answer = api.post(f"{path}/recover", {"since": "2026-01-01T00:00:00Z"})
    assert answer.status_code == 202
    shown = api.get(answer["Location"])
    assert shown.status_code == 200
    assert shown.json() == answer.json()
    assert (shown.json()["kind"], shown.json()["status"], shown.json()["queued"]) == ("recover", "running", 0)
    other = f"{PATH}/{make(api)['id']}"
    assert_problem(api.get(answer["Location"].replace(path, other)), 404)


def test_another_organization_s_subscription_does_not_exist(api: Any, other_api: Any) -> None:
    path = f"{PATH}/{make(api)['id']}"
    for response in (other_api.get(path), other_api.patch(path, {"description": "x"}), other_api.delete(path),
                     other_api.post(f"{path}/enable"), other_api.post(f"{path}/disable"),
                     other_api.post(f"{path}/rotate-secret")):  # fmt: skip
        assert_problem(response, 404)
    assert api.get(path).json()["status"] == "active"


def test_every_change_is_in_the_audit_log(api: Any, organization: Organization) -> None:
    subscription_id = make(api)["id"]
    path = f"{PATH}/{subscription_id}"
    api.patch(path, {"description": "x"})
    for word in ("disable", "enable", "rotate-secret"):
        api.post(f"{path}/{word}")
    api.delete(path)
    entries = AuditEntry.objects.filter(organization=organization, target=subscription_id).order_by("created_at")
    assert [entry.action.removeprefix("subscription.") for entry in entries] == [
        "create", "change", "disable", "enable", "rotate_secret", "delete",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["disable", "enable", "delete"])
def test_a_change_whose_audit_entry_can_t_be_written_does_not_happen(api: Any, word: str) -> None:
    path = f"{PATH}/{make(api)['id']}"
    if word == "enable":
        api.post(f"{path}/disable")
    before = Subscription.objects.values().get(), SubscriptionQueue.objects.values().get()
    refuse_audit_entries(f"subscription.{word}")
    answer = api.delete(path) if word == "delete" else api.post(f"{path}/{word}")
    assert_problem(answer, 500)
    assert (Subscription.objects.values().get(), SubscriptionQueue.objects.values().get()) == before


def test_one_subscription_more_than_allowed_is_a_409(api: Any, settings: Settings) -> None:
    settings.MAX_SUBSCRIPTIONS = 2
    first = make(api)
    make(api)
    problem = assert_problem(api.post(PATH, NEW), 409)
    assert problem["code"] == "too_many_subscriptions"
    api.delete(f"{PATH}/{first['id']}")
    make(api)
    assert Subscription.objects.filter(deleted_at=None).count() == 2


@pytest.mark.django_db(transaction=True)
def test_the_number_of_subscriptions_is_bounded_for_callers_at_once(api: Any, settings: Settings) -> None:
    settings.MAX_SUBSCRIPTIONS = 3
    gate = threading.Barrier(6)
    statuses: list[int] = []

    def create() -> None:
        try:
            gate.wait()
            statuses.append(api.post(PATH, NEW).status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [409] * 3
    assert Subscription.objects.count() == 3
