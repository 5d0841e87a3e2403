"""`Idempotency-Key`: a request that is sent again gets the first response again, and does nothing."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from core import ratelimits
from core.problems import Problem
from events import rate
from events.api import views
from events.models import DedupKey, Event
from orgs.idempotency import LOCK, Once, fingerprint, lock_parameters, parse_key
from orgs.keys import create_api_key, revoke
from orgs.models import ApiKey, AuditEntry, IdempotencyKey
from orgs.scopes import Scope
from tests.api.helpers import assert_problem, rows
from tests.conftest import ApiClient
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks.models import Subscription
from webhooks.upkeep.retention import Purge

EVENTS = "/api/events"
BATCH = "/api/events/batch"
EVENT: dict[str, Any] = {"type": "order.created", "data": {"order": 1}}
ENDPOINT: dict[str, Any] = {"url": "https://example.com/hook", "event_types": ["*"]}


def once(api: Any, path: str, body: Any = None, key: str = "k-1", **more: Any) -> Any:
    return api.request("POST", path, body, **{"Idempotency-Key": key, **more})


def assert_replayed(first: Any, second: Any) -> None:
    assert "Idempotency-Replayed" not in first
    assert second["Idempotency-Replayed"] == "true"
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.get("Location") == first.get("Location")
    assert second["Content-Type"] == first["Content-Type"]


def test_an_event_that_is_sent_again_is_answered_as_the_first_time(api: Any) -> None:
    first = once(api, EVENTS, EVENT)
    assert first.status_code == 202
    assert_replayed(first, once(api, EVENTS, EVENT, '"k-1"'))
    assert_replayed(first, once(api, EVENTS + "/", EVENT))
    assert Event.objects.count() == 1
    assert Event.objects.get().dedup_id is None
    assert once(api, EVENTS, EVENT, "k-2").json()["id"] != first.json()["id"]
    assert "Idempotency-Replayed" not in api.post(EVENTS, EVENT)


def test_a_batch_that_is_sent_again_is_answered_as_the_first_time(api: Any) -> None:
    api.post(EVENTS, {**EVENT, "dedup_id": "old"})
    batch = [EVENT, {**EVENT, "dedup_id": "old"}, {**EVENT, "dedup_id": "old", "data": 2}, {"type": ""}]
    first = once(api, BATCH, batch)
    assert [item["status"] for item in first.json()["data"]] == ["accepted", "duplicate", "conflict", "invalid"]
    assert_replayed(first, once(api, BATCH, batch))
    assert Event.objects.count() == 2
    nothing = once(api, BATCH, [{"type": ""}], "k-2")
    assert nothing.status_code == 200
    assert_replayed(nothing, once(api, BATCH, [{"type": ""}], "k-2"))


def test_a_key_with_another_body_or_on_another_route_is_refused(api: Any, other_api: Any) -> None:
    once(api, EVENTS, EVENT)
    before = rows()
    for path, body in [
        (EVENTS, {**EVENT, "data": 2}),
        (BATCH, [EVENT]),
        (BATCH, EVENT),
        ("/api/subscriptions", ENDPOINT),
        ("/api/event-types", {"name": "a"}),
    ]:
        problem = assert_problem(once(api, path, body), 422, "#Idempotency-Key")
        assert problem["code"] == "idempotency_key_reused"
    assert rows() == before
    assert once(other_api, EVENTS, {**EVENT, "data": 2}).status_code == 202  # another organization


def test_the_key_comes_before_the_dedup_id(api: Any) -> None:
    event = {**EVENT, "dedup_id": "d-1"}
    first = once(api, EVENTS, event)
    assert first.json()["status"] == "accepted"
    assert_replayed(first, once(api, EVENTS, event))
    duplicate = once(api, EVENTS, event, "k-2")  # another key: the dedup id decides
    assert (duplicate.status_code, duplicate.json()["status"]) == (200, "duplicate")
    assert duplicate.json()["id"] == first.json()["id"]
    assert_replayed(duplicate, once(api, EVENTS, event, "k-2"))
    conflict = assert_problem(once(api, EVENTS, {**event, "data": 2}, "k-3"), 409)
    assert conflict["code"] == "dedup_conflict"
    assert once(api, EVENTS, EVENT, "k-3").status_code == 202  # what was refused has left its key free
    assert (Event.objects.count(), DedupKey.objects.count()) == (2, 1)


def test_a_replay_outlives_what_would_refuse_the_request_now(api: Any, organization: Any) -> None:
    first = once(api, EVENTS, EVENT)
    organization.event_type_strictness = "known"
    organization.catalog_version += 1
    organization.save()
    assert_problem(once(api, EVENTS, EVENT, "k-2"), 400)
    assert_replayed(first, once(api, EVENTS, EVENT))


def test_a_request_that_was_refused_leaves_its_key_free(api: Any) -> None:
    assert_problem(once(api, EVENTS, {"type": "a"}), 400)
    assert_problem(once(api, EVENTS, raw=b"{"), 400)
    assert_problem(once(api, EVENTS, raw=b"{}", content_type="text/html"), 415)
    assert not IdempotencyKey.objects.exists()
    assert once(api, EVENTS, EVENT).status_code == 202


BAD_KEYS = ["", " ", "x" * 256, "x" * 5_000, '"open', '"a"b"', "caf\xe9", '"a\\b"']


def test_a_bad_key_is_refused(api: Any) -> None:
    for key in BAD_KEYS:
        for path, body in [(EVENTS, EVENT), (BATCH, [EVENT]), ("/api/subscriptions", ENDPOINT)]:
            problem = assert_problem(once(api, path, body, key), 400, "#Idempotency-Key")
            assert "Idempotency-Key" in problem["detail"]
    assert not Event.objects.exists()


def test_keys_bare_and_quoted() -> None:
    assert parse_key(" a b ") == parse_key('"a b"') == parse_key('"a b";x=1') == "a b"
    assert parse_key(r'"a\"\\b"') == r'a"\b'
    for bad in ("a\x01", "a\tb", '"a\x7f"'):
        with pytest.raises(Problem):
            parse_key(bad)


def test_a_revoked_api_key_gets_no_replay(client_of: Any, organization: Any) -> None:
    key, text = create_api_key(organization)
    api = client_of(text)
    once(api, EVENTS, EVENT)
    revoke(key)
    assert_problem(once(api, EVENTS, EVENT), 401)


def test_an_expired_key_is_free_and_goes(api: Any) -> None:
    first = once(api, EVENTS, EVENT)
    once(api, EVENTS, EVENT, "k-2")
    IdempotencyKey.objects.update(expires_at=timezone.now())
    second = once(api, EVENTS, {**EVENT, "data": 2})
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]
    assert_replayed(second, once(api, EVENTS, {**EVENT, "data": 2}))
    Purge().run()
    assert [row.key for row in IdempotencyKey.objects.all()] == ["k-1"]


def test_each_route_that_creates_is_served_once(api: Any) -> None:
    for path, body, status in [
        ("/api/subscriptions", ENDPOINT, 201),
        ("/api/subscriptions", {"kind": "inbox", "inbox": "orders", "event_types": ["*"]}, 201),
        ("/api/event-types", {"name": "order.created"}, 201),
        ("/api/keys", {"name": "shop"}, 201),
        ("/api/hooks", {"target_url": "https://example.com/zap", "event": "order.created"}, 201),
        ("/api/portal-links", {"name": "ana@shop.example"}, 201),
        ("/api/deliveries/retry", {"since": "2026-01-31T12:00:00Z"}, 202),
    ]:
        key = str(uuid.uuid4())
        before = rows()
        first = once(api, path, body, key)
        assert first.status_code == status, first.content
        after = rows()
        entries = AuditEntry.objects.count()
        assert_replayed(first, once(api, path, body, key))
        assert rows() == after, (before, path)
        assert AuditEntry.objects.count() == entries
    subscription = Subscription.objects.get(url=ENDPOINT["url"])
    for path, body in [
        (f"/api/subscriptions/{subscription.id}/rotate-secret", {"overlap_seconds": 60}),
        (f"/api/subscriptions/{subscription.id}/secrets", {}),
        (f"/api/subscriptions/{subscription.id}/recover", {"since": "2026-01-31T12:00:00Z"}),
        (f"/api/keys/{ApiKey.objects.get(name='shop').id}/rotate", {"overlap_seconds": 0}),
    ]:
        key = str(uuid.uuid4())
        first = once(api, path, body, key)
        assert first.status_code < 300, first.content
        assert_replayed(first, once(api, path, body, key))


# POSTs that do the same thing if they are repeated.
TAKE_NO_KEY = {
    "enableSubscription", "disableSubscription", "previewSubscription", "acknowledgeEvents",
    "giveEventsBack", "extendLeases", "acknowledgeEvent", "acknowledgeEventAlias",
}  # fmt: skip


def test_every_other_post_takes_a_key(api: Any) -> None:
    found = set()
    for path, item in api.get("/api/schema").json()["paths"].items():
        if "post" in item and "Idempotency-Key" not in str(item["post"].get("parameters")):
            found.add((path, item["post"]["operationId"]))
    assert {name for _, name in found} == TAKE_NO_KEY, found


def test_a_response_with_a_secret_is_encrypted_and_for_its_api_key_alone(
    api: Any, client_of: Any, organization: Any
) -> None:
    secret = once(api, "/api/keys", {"name": "shop"}).json()["key"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT encode(body, 'escape') FROM orgs_idempotencykey")
        assert secret not in cursor.fetchone()[0]
    # Nor can a body that holds a password be guessed by what is kept of it.
    owners = ApiKey.objects.values_list("pk", flat=True)
    plain = [fingerprint("POST", "/api/keys", b'{"name": "shop"}', owner.bytes) for owner in owners]
    assert bytes(IdempotencyKey.objects.get().fingerprint) not in plain
    assert fingerprint("POST", "/api/keys", b"ab", b"c") != fingerprint("POST", "/api/keys", b"a", b"bc")
    lesser = client_of(create_api_key(organization, scopes=[Scope.KEYS_MANAGE.value])[1])
    assert_problem(once(lesser, "/api/keys", {"name": "shop"}), 422)


@pytest.mark.django_db(transaction=True)
def test_of_requests_at_once_one_is_served(api: Any) -> None:
    answers: list[Any] = []

    def send() -> None:
        answers.append(once(api, EVENTS, EVENT))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [one for one in answers if one.status_code == 202]
    assert {one.json()["id"] for one in served} == {str(Event.objects.get().id)}
    assert sum("Idempotency-Replayed" not in one for one in served) == 1
    for one in answers:
        if one not in served:
            assert assert_problem(one, 409)["code"] == "idempotency_key_in_use"
            assert one["Retry-After"] == "1"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("events_per_minute", [0, 100])
def test_a_request_that_is_still_served_is_a_409(api: Any, organization: Any, events_per_minute: int) -> None:
    organization.events_per_minute = events_per_minute  # with a limit, the key is looked at before the transaction
    organization.save()
    lock = Once(organization.id, "k-1", b"", uuid.uuid4(), "")
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(LOCK, lock_parameters([lock]))  # as a request does that isn't through yet
        answers: list[Any] = []

        def send() -> None:
            answers.append(once(api, EVENTS, EVENT))
            answers.append(once(api, "/api/keys", {"name": "another"}))
            answers.append(once(api, EVENTS, EVENT, "k-2"))
            connection.close()

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        cursor.execute("ROLLBACK")
    assert [assert_problem(one, 409)["code"] for one in answers[:2]] == ["idempotency_key_in_use"] * 2
    assert answers[2].status_code == 202
    assert once(api, EVENTS, EVENT).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_a_key_is_in_use_until_the_first_request_is_committed(api: Any) -> None:
    def send() -> Any:
        try:
            return once(api, "/api/keys", {"name": "shop"})
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool, another_transaction() as other:
        other.execute("SELECT 1 FROM orgs_organization FOR UPDATE")  # to which a new API key refers
        first = pool.submit(send)
        wait_until_held_up(other)
        second = pool.submit(send).result(60)
        assert assert_problem(second, 409)["code"] == "idempotency_key_in_use"
        other.rollback()
        assert first.result(60).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_what_fails_leaves_neither_event_nor_key(api: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orgs_idempotencykey ADD CONSTRAINT refused CHECK (key <> 'k-1')")
        try:
            assert_problem(once(api, EVENTS, EVENT), 500)
            assert_problem(once(api, BATCH, [EVENT]), 500)
            assert once(api, EVENTS, EVENT, "k-2").status_code == 202
        finally:
            cursor.execute("ALTER TABLE orgs_idempotencykey DROP CONSTRAINT refused")
    assert Event.objects.count() == 1
    assert once(api, EVENTS, EVENT).status_code == 202


def test_both_doors_read_each_others_keys(api: Any, client_of: Any, organization: Any) -> None:
    first = once(api, EVENTS, EVENT)
    views_api = ApiClient(create_api_key(organization)[1])
    assert_replayed(first, once(views_api, EVENTS, EVENT))
    assert views.EventListView.post.is_idempotent


def test_what_django_serves_counts_a_rate_before_its_transaction(
    organization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front door: tests/events/test_group_commit.py."""
    organization.events_per_minute = 5
    organization.save()
    api = ApiClient(create_api_key(organization)[1])
    depths: list[int] = []

    def hit(*arguments: Any) -> Any:
        depths.append(len(connection.savepoint_ids))  # the test itself is a transaction
        return ratelimits.hit(*arguments)

    monkeypatch.setattr(rate, "hit", hit)
    outside = len(connection.savepoint_ids)
    for path, body, key in ((EVENTS, EVENT, "k-1"), (BATCH, [EVENT, {"type": ""}], "k-2")):
        first = once(api, path, body, key)
        assert first.status_code == 202
        assert_replayed(first, once(api, path, body, key))
    assert_problem(once(api, EVENTS, {"type": ""}, "k-3"), 400)
    assert once(api, f"{EVENTS}?validate_only=true", EVENT, "k-4").status_code == 200
    assert depths == [outside] * 4  # two requests, and two replays
    with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}) as other:
        used = Once(organization.id, "k-5", b"", organization.id, "")
        other.execute(LOCK, lock_parameters([used]))
        assert_problem(once(api, EVENTS, EVENT, "k-5"), 409)
    assert len(depths) == 4


def test_replays_use_up_none_of_the_events_limit_and_have_one_of_their_own(api: Any, organization: Any) -> None:
    organization.events_per_minute = 3
    organization.save()
    first = once(api, BATCH, [EVENT] * 3)
    assert_problem(once(api, EVENTS, EVENT, "k-2"), 429)
    for left in (2, 1, 0):
        again = once(api, BATCH, [EVENT] * 3)
        assert_replayed(first, again)
        assert again["RateLimit-Policy"] == '"replays";q=3;w=60'
        assert again["RateLimit"].startswith(f'"replays";r={left};')
    problem = assert_problem(once(api, BATCH, [EVENT] * 3), 429)
    assert (problem["code"], problem["detail"]) == (
        "rate_limited", "The organization may repeat 3 requests a minute.",
    )  # fmt: skip
    assert Event.objects.count() == 3
