"""The inbox: leases, acknowledgements, and the log, through the API, with a real database."""

from __future__ import annotations

import datetime
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from core.ids import derive_id, new_id
from devstack.http_receiver import Receiver
from events import backlog
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.keys import create_api_key
from orgs.models import Organization
from orgs.scopes import Scope
from tests.conftest import ApiClient
from tests.webhooks.helpers import database_time, fan_out, in_threads
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks import inboxes, stats, subscriptions
from webhooks.destinations.inbox import fetching, log
from webhooks.dispatch.claim import claim
from webhooks.models import BulkRun, Delivery, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import FanOut
from webhooks.routing.round_insert import RoundInsert
from webhooks.routing.selection import select
from webhooks.upkeep import recovery
from webhooks.upkeep.inbox_retention import InboxRetention, cancel_unfetched
from webhooks.upkeep.retention import purge_expired
from webhooks.upkeep.sweep import PURGE_EVERY_SECONDS, Sweep

pytestmark = pytest.mark.django_db


def send(api: ApiClient, *numbers: int, type: str = "order.created") -> list[str]:
    """Send an event for each number and fan all of them out; return their ids."""
    ids = [api.post("/api/events", {"type": type, "data": {"n": number}}).json()["id"] for number in numbers]
    fan_out()
    return ids


def make(api: ApiClient, name: str = "orders", event_types: Sequence[str] = ("*",)) -> dict[str, Any]:
    """Make an inbox."""
    response = api.post("/api/subscriptions", {"kind": "inbox", "inbox": name, "event_types": list(event_types)})
    assert response.status_code == 201, response.content
    found: dict[str, Any] = response.json()
    return found


def expire(event_ids: Sequence[str]) -> None:
    """Let the leases of these events be over."""
    Delivery.objects.filter(event_id__in=event_ids).update(
        next_attempt_at=F("next_attempt_at") - datetime.timedelta(days=1)
    )


def fetched(api: ApiClient, parameters: str = "") -> list[str]:
    """Return the ids of the events that a fetch brings."""
    response = api.get(f"/api/inbox?{parameters}")
    assert response.status_code == 200, response.content
    return [event["id"] for event in response.json()["events"]]


def test_the_first_use_makes_the_default_inbox_with_what_is_undelivered(api: ApiClient) -> None:
    [first, second] = send(api, 1, 2)
    got = api.get("/api/inbox").json()
    assert [(event["id"], event["type"], event["payload"]) for event in got["events"]] == [
        (first, "order.created", {"n": 1}),
        (second, "order.created", {"n": 2}),
    ]
    assert got["events"][0]["delivery_status"] == "delivering"
    assert got["next_cursor"] is None
    [third] = send(api, 3)
    assert fetched(api) == [third]
    acknowledged = api.post("/api/inbox/ack", {"event_ids": [first, second, third], "lease_id": None}).json()
    assert (acknowledged["acknowledged"], acknowledged["failed"]) == (3, 0)
    assert fetched(api) == []
    assert Event.objects.filter(id=first).exists()
    assert api.get("/api/events?undelivered=true").json()["data"] == []


def test_what_another_subscription_has_received_is_not_in_a_new_default_inbox(
    api: ApiClient, subscription: Subscription
) -> None:
    received, failed = send(api, 1, 2)
    Delivery.objects.filter(event_id=received).update(status="delivered", completed_at=Now())
    Delivery.objects.filter(event_id=failed).update(status="failed", completed_at=Now())
    assert fetched(api) == [failed]


def test_an_event_that_waits_for_its_fan_out_is_in_a_new_default_inbox(api: ApiClient) -> None:
    event_id = api.post("/api/events", {"type": "order.created", "data": {}}).json()["id"]
    assert fetched(api) == [event_id]
    fan_out()
    assert Delivery.objects.count() == 1


def test_a_new_default_inbox_takes_a_bounded_number_of_waiting_events_and_the_fan_out_the_others(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inboxes, "ACCEPTED_AT_ONCE", 2)
    ids = [api.post("/api/events", {"type": "order.created", "data": {}}).json()["id"] for _ in range(5)]
    assert fetched(api) == ids[:2]
    fan_out()
    assert fetched(api) == ids[2:]


@pytest.mark.django_db(transaction=True)
def test_what_a_fan_out_has_in_hand_holds_nobody_up_and_comes_into_a_new_default_inbox(api: ApiClient) -> None:
    """The fan-out looked up the subscriptions before there was the inbox, which neither waits for it nor misses it."""
    settled, in_hand = send(api, 1), api.post("/api/events", {"type": "order.created", "data": {}}).json()["id"]
    looked_up, may_end = threading.Event(), threading.Event()

    class Slow(FanOut):
        """One that takes its time between looking up the subscriptions and inserting."""

        def _process(self, events: Any, hand_over: Any = None) -> Any:
            wanting = select(events, self._subscribers.matchers({e.organization_id: e.fingerprint for e in events}))
            looked_up.set()
            assert may_end.wait(30)
            insertion = RoundInsert(events, wanting)
            insertion.insert()
            return insertion

    with ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(lambda: (Slow().run_round(10), connections.close_all()))
            assert looked_up.wait(30)
            assert fetched(api) == []  # it didn't wait, and what is older keeps its place before what is in hand
        finally:
            may_end.set()
        running.result(30)
    while (run := recovery.advance(BulkRun.objects.get().pk)) and run.state == BulkRun.State.RUNNING:
        pass
    assert fetched(api) == [*settled, in_hand]
    assert "rounds" not in BulkRun.objects.get().filters


def test_two_leases_never_share_an_event_and_an_expired_one_comes_first_again(api: ApiClient) -> None:
    make(api)
    ids = send(api, *range(6))
    assert fetched(api, "inbox=orders&limit=2") == ids[:2]
    assert fetched(api, "inbox=orders&limit=2") == ids[2:4]
    expire(ids[:2])
    assert fetched(api, "inbox=orders") == [*ids[:2], *ids[4:]]
    assert fetched(api, "inbox=orders") == []


def test_the_delay_before_the_first_attempt_is_not_for_inboxes(
    api: ApiClient, settings: Any, receiver: Receiver
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = [600.0, 600.0]
    make(api, "default")
    api.post("/api/subscriptions", {"url": receiver.url("/"), "event_types": ["*"]})
    [event] = send(api, 1)
    assert fetched(api) == [event]
    due = [one["next_attempt_at"] for one in api.get("/api/deliveries").json()["data"]]
    assert max(due) > (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=500)).isoformat()


def test_a_fetch_counts_its_attempts(api: ApiClient) -> None:
    make(api)
    ids = send(api, 1)
    fetched(api, "inbox=orders")
    expire(ids)
    [event] = api.get("/api/inbox?inbox=orders").json()["events"]
    assert event["attempt"] == 2


def test_inboxes_are_separate_and_match_types(api: ApiClient) -> None:
    make(api, "orders", ["order.*"])
    make(api, "all")
    [order] = send(api, 1)
    [user] = send(api, 2, type="user.created")
    assert fetched(api, "inbox=orders") == [order]
    assert fetched(api, "inbox=all&type=user.*") == [user]
    assert fetched(api, "inbox=all&type=order.created") == [order]
    assert api.post("/api/inbox/ack", {"event_ids": [order], "inbox": "orders"}).json()["acknowledged"] == 1
    assert Delivery.objects.get(event_id=order, subscription__inbox="all").status == "pending"


@pytest.mark.parametrize("wanted", ["user.created", "user.*"])
def test_events_of_a_type_come_in_order_those_that_were_fetched_before_first(api: ApiClient, wanted: str) -> None:
    send(api, *range(3))
    make(api, "default")
    before = send(api, 1, 2, type="user.created")
    send(api, *range(3))
    after = send(api, 3, type="user.created")
    send(api, 4, type="user")
    for other in ["user.created-late"] if wanted == "user.created" else ["users.created", "user-x.created"]:
        send(api, 5, type=other)
    assert fetched(api, f"type={wanted}&limit=1") == before[:1]
    assert fetched(api, f"type={wanted}&limit=1") == before[1:]
    expire(before[1:])
    assert fetched(api, f"type={wanted}&limit=2") == [before[1], *after]
    assert fetched(api, f"type={wanted}") == []


@pytest.mark.parametrize("wanted", ["*", "order.created", "order.*"])
def test_what_was_given_back_comes_before_what_has_waited_for_longer(api: ApiClient, wanted: str) -> None:
    make(api, "default")
    first, second, *_ = send(api, *range(4))
    assert fetched(api, "limit=2") == [first, second]
    for given_back in ([second], [second, first]):  # of these, too, the one that has waited for longer is the first
        for one in given_back:
            assert api.post("/api/inbox/nack", {"event_ids": [one]}).json()["given_back"] == 1
        assert fetched(api, f"type={wanted}&limit=1") == [second]


@pytest.mark.parametrize("wanted", ["user.created", "user.*"])
def test_what_others_have_fetched_leaves_room_for_the_rest_of_a_type(api: ApiClient, wanted: str) -> None:
    make(api, "default")
    ids = send(api, *range(4), type="user.created")
    assert [fetched(api, f"type={wanted}&limit=1") for _ in ids] == [[one] for one in ids]


def test_what_a_recovery_or_a_disabled_inbox_brings_is_found_by_its_type(api: ApiClient) -> None:
    [missed] = send(api, 1)
    inbox = Subscription.objects.get(pk=make(api, "default")["id"])
    recovery.advance(recovery.start(inbox, inbox.created_at - datetime.timedelta(days=1)).pk)
    assert fetched(api, "type=order.*") == [missed]
    subscriptions.disable(inbox)
    [held] = send(api, 2)
    subscriptions.enable(inbox)
    assert fetched(api, "type=order.created") == [held]


def test_senders_never_claim_from_an_inbox_and_nothing_is_due(api: ApiClient) -> None:
    made = make(api)
    [event_id] = send(api, 1)
    assert claim(10).deliveries == []
    queue = SubscriptionQueue.objects.get(pk=made["id"])
    assert queue.next_due_at is None
    assert queue.in_flight == 0
    health = api.get("/api/health/detailed").json()
    assert health["queues"]["webhook_queue_length"] == 0
    assert not any(health["paused_deliveries"].values())
    api.post(f"/api/subscriptions/{made['id']}/disable")
    api.post(f"/api/subscriptions/{made['id']}/enable")
    api.post(f"/api/deliveries/{derive_id(uuid.UUID(event_id), uuid.UUID(made['id']))}/retry")
    assert claim(10).deliveries == []
    assert SubscriptionQueue.objects.get(pk=made["id"]).next_due_at is None
    shown = api.get(f"/api/subscriptions/{made['id']}").json()
    assert (shown["kind"], shown["inbox"], shown["url"], shown["next_attempt_at"]) == ("inbox", "orders", None, None)


def test_an_inbox_that_is_disabled_holds_what_comes_and_leases_survive_it(api: ApiClient) -> None:
    made = make(api)
    [first] = send(api, 1)
    assert fetched(api, "inbox=orders") == [first]
    api.post(f"/api/subscriptions/{made['id']}/disable")
    [second] = send(api, 2)
    refused = api.get("/api/inbox?inbox=orders")
    assert refused.status_code == 409
    assert refused.json()["code"] == "inbox_disabled"
    # Whoever has looked before it was disabled gets nothing either, whatever its events are like by then.
    Delivery.objects.filter(event_id=second).update(status="pending", next_attempt_at=Now())
    assert fetching.fetch(uuid.UUID(made["id"]), 10, 30)[1] == []
    api.post(f"/api/subscriptions/{made['id']}/enable")
    assert fetched(api, "inbox=orders") == [second]
    assert api.post("/api/inbox/ack", {"event_ids": [first], "inbox": "orders"}).json()["acknowledged"] == 1


def test_a_deleted_inbox_is_gone_and_its_name_free(api: ApiClient) -> None:
    made = make(api)
    send(api, 1)
    assert api.delete(f"/api/subscriptions/{made['id']}").status_code == 204
    missing = api.get("/api/inbox?inbox=orders")
    assert missing.status_code == 404
    assert missing.json()["code"] == "inbox_not_found"
    assert make(api)["id"] != made["id"]
    assert fetched(api, "inbox=orders") == []


# --- acknowledging ----------------------------------------------------------------------------------


def test_each_item_of_an_acknowledgement_has_a_result_of_its_own(api: ApiClient, other_api: ApiClient) -> None:
    ids = send(api, 1, 2)
    [foreign] = send(other_api, 3)
    assert fetched(other_api) == [foreign]
    got = api.get("/api/inbox?limit=1").json()
    asked = [ids[0], ids[0], foreign, str(new_id()), "no id", ids[1]]
    result = api.post("/api/inbox/ack", {"event_ids": asked, "lease_id": got["lease_id"]}).json()
    assert [item["status"] for item in result["results"]] == [
        "acknowledged", "acknowledged", "not_found", "not_found", "not_found", "not_leased",
    ]  # fmt: skip
    assert (result["acknowledged"], result["failed"]) == (2, 4)
    again = api.post("/api/inbox/ack", {"delivery_ids": [got["events"][0]["delivery_id"]]}).json()
    assert (again["acknowledged"], again["results"][0]["status"]) == (1, "already_acknowledged")
    assert again["results"][0]["acknowledged_at"] == result["results"][0]["acknowledged_at"] is not None
    for verb, at in (("nack", "available_at"), ("extend", "lease_expires_at")):
        body = {"event_ids": [ids[0]], **({"visibility": 60} if verb == "extend" else {})}
        [settled] = api.post(f"/api/inbox/{verb}", body).json()["results"]
        assert settled == {"event_id": ids[0], "status": "already_acknowledged", at: None}
    theirs = Delivery.objects.get(event_id=foreign)
    for verb in ("ack", "nack", "extend"):  # by its own id, which is the same in every inbox
        body = {"delivery_ids": [str(theirs.pk)], **({"visibility": 60} if verb == "extend" else {})}
        assert api.post(f"/api/inbox/{verb}", body).json()["results"][0]["status"] == "not_found"
    columns = ("status", "lease_id", "next_attempt_at", "completed_at")
    assert Delivery.objects.values(*columns).get(pk=theirs.pk) == {name: getattr(theirs, name) for name in columns}


def test_an_acknowledgement_after_the_timeout_counts_unless_another_consumer_has_the_event(api: ApiClient) -> None:
    late, lost = send(api, 1, 2)
    first = api.get("/api/inbox?visibility=1").json()
    expire([late, lost])
    second = api.get("/api/inbox?limit=1").json()
    assert [event["id"] for event in second["events"]] == [late]
    result = api.post("/api/inbox/ack", {"event_ids": [late, lost], "lease_id": first["lease_id"]}).json()
    assert [item["status"] for item in result["results"]] == ["lease_expired", "acknowledged"]
    result = api.post("/api/inbox/ack", {"event_ids": [late], "lease_id": second["lease_id"]}).json()
    assert result["acknowledged"] == 1


def test_a_single_event_is_acknowledged_by_either_id_at_both_urls(api: ApiClient) -> None:
    first, second = send(api, 1, 2)
    events = api.get("/api/inbox").json()["events"]
    done = api.post(f"/api/inbox/{first}/ack")
    assert done.status_code == 200
    assert done.json()["status"] == "acknowledged"
    assert done.json()["acknowledged_at"]
    done = api.post(f"/api/inbox/ack/{events[1]['delivery_id']}")
    assert done.status_code == 200
    assert set(done.json()) == {"id", "status", "acknowledged_at", "message"}
    assert api.post(f"/api/inbox/{second}/ack").json()["message"] == "The event was acknowledged before."
    assert api.post(f"/api/inbox/{new_id()}/ack").status_code == 404


def test_a_single_acknowledgement_with_a_lost_lease_is_refused(api: ApiClient) -> None:
    [event_id] = send(api, 1)
    lease_id = api.get("/api/inbox").json()["lease_id"]
    expire([event_id])
    api.get("/api/inbox")
    refused = api.post(f"/api/inbox/{event_id}/ack", {"lease_id": lease_id})
    assert refused.status_code == 409
    assert refused.json()["item_status"] == "lease_expired"


def test_what_is_given_back_can_be_fetched_at_once_or_after_a_delay(api: ApiClient) -> None:
    now, later = send(api, 1, 2)
    lease_id = api.get("/api/inbox").json()["lease_id"]
    body = {"event_ids": [now], "lease_id": lease_id}
    assert api.post("/api/inbox/nack", body).json()["results"][0]["status"] == "given_back"
    assert api.post("/api/inbox/nack", {"event_ids": [later], "delay": 60}).json()["given_back"] == 1
    assert api.post("/api/inbox/ack", body).json()["results"][0]["status"] == "lease_expired"
    assert api.post("/api/inbox/nack", {"event_ids": [str(new_id())]}).json()["failed"] == 1
    # It is nobody's now: to give it back once more, or to extend its lease, would delay it for others.
    for verb, seconds in (("nack", {"delay": 60}), ("extend", {"visibility": 60})):
        [item] = api.post(f"/api/inbox/{verb}", {"event_ids": [now], **seconds}).json()["results"]
        assert item["status"] == "lease_expired"
    assert fetched(api) == [now]
    shown = api.get(f"/api/deliveries?event={later}").json()["data"][0]
    assert (shown["status"], shown["last_error"]) == ("retrying", "given_back")
    assert stats.retrying_deliveries(9) == 1, "what was fetched again is retrying no more"
    expire([now])
    assert api.get(f"/api/deliveries?event={now}").json()["data"][0]["status"] == "pending"


def test_what_reached_nobody_counts_as_not_fetched_and_comes_first_again(api: ApiClient) -> None:
    inbox_id = uuid.UUID(make(api)["id"])
    first, second = send(api, 1, 2)
    lease_id, [got] = fetching.fetch(inbox_id, 1, 30)
    fetching.take_back(inbox_id, [got.delivery_id], lease_id)
    _, again = fetching.fetch(inbox_id, 2, 30)
    assert [(str(event.event_id), event.attempt) for event in again] == [(first, 1), (second, 1)]


def test_an_extended_lease_ends_later(api: ApiClient) -> None:
    [event_id] = send(api, 1)
    got = api.get("/api/inbox?visibility=1").json()
    body = {"event_ids": [event_id], "visibility": 600, "lease_id": got["lease_id"]}
    [item] = api.post("/api/inbox/extend", body).json()["results"]
    assert item["status"] == "extended"
    assert item["lease_expires_at"] > got["lease_expires_at"]
    assert fetched(api) == []


def test_a_lease_that_has_ended_is_extended_unless_another_consumer_has_the_event(api: ApiClient) -> None:
    taken, late = send(api, 1, 2)
    lease_id = api.get("/api/inbox").json()["lease_id"]
    expire([taken, late])
    assert fetched(api, "limit=1") == [taken]
    body = {"event_ids": [taken, late], "lease_id": lease_id, "visibility": 600}
    result = api.post("/api/inbox/extend", body).json()
    assert [item["status"] for item in result["results"]] == ["lease_expired", "extended"]
    assert fetched(api) == []


@pytest.mark.parametrize("seconds", [1, 45, 43_200])
def test_a_time_lasts_as_long_as_was_asked_for_up_to_the_bounds(api: ApiClient, seconds: int) -> None:
    [event_id] = send(api, 1)
    length = datetime.timedelta(seconds=seconds)

    def check(ask: Callable[[], str]) -> None:
        began = database_time()
        ends = datetime.datetime.fromisoformat(ask())
        assert began + length <= ends <= database_time() + length

    def change(verb: str, member: str) -> Callable[[], str]:
        at = "available_at" if verb == "nack" else "lease_expires_at"
        body = {"event_ids": [event_id], member: seconds}
        return lambda: str(api.post(f"/api/inbox/{verb}", body).json()["results"][0][at])

    check(lambda: str(api.get(f"/api/inbox?visibility={seconds}").json()["lease_expires_at"]))
    check(change("extend", "visibility"))
    check(change("nack", "delay"))


@pytest.mark.django_db(transaction=True)
def test_consumers_that_race_lease_and_settle_each_event_once(api: ApiClient) -> None:
    ids = send(api, *range(20))
    api.get("/api/inbox?type=none")  # makes the inbox
    taken = in_threads(4, lambda number: fetched(api, "limit=5"))
    assert sorted(itertools.chain(*taken, fetched(api))) == sorted(ids)

    def acknowledge(number: int) -> list[str]:
        body = {"event_ids": ids[number:] + ids[:number]}
        return [item["status"] for item in api.post("/api/inbox/ack", body).json()["results"]]

    statuses = Counter(itertools.chain(*in_threads(4, acknowledge)))
    assert statuses == {"acknowledged": 20, "already_acknowledged": 60}


@pytest.mark.django_db(transaction=True)
def test_what_another_consumer_has_leased_since_a_prefix_found_it_is_not_fetched(api: ApiClient) -> None:
    make(api)
    send(api, 1)
    with another_transaction() as other:
        other.execute("LOCK TABLE webhooks_delivery IN EXCLUSIVE MODE")  # others may read rows, but not lock them

        def work(number: int) -> list[str] | None:
            if number == 0:
                return fetched(api, "inbox=orders&type=order.*")
            wait_until_held_up(other)
            other.execute(
                "UPDATE webhooks_delivery SET lease_id = gen_random_uuid(), next_attempt_at = now() + interval '1 hour'"
            )
            other.commit()
            return None

        assert [found for found in in_threads(2, work) if found is not None] == [[]]


def test_what_locks_deliveries_does_not_lease_them_by_the_same_statement() -> None:
    """PostgreSQL 18 crashed under ten consumers when one did: about once a minute, so no test can wait for it."""
    locking = [text for text in vars(fetching).values() if isinstance(text, str) and "SKIP LOCKED" in text]
    assert len(locking) >= 3
    for text in locking:
        assert "UPDATE webhooks_delivery" not in text
        assert "events_event" not in text


# --- the log ----------------------------------------------------------------------------------------


def test_the_log_goes_on_where_a_reader_stopped_and_leases_nothing(api: ApiClient) -> None:
    make(api)
    ids = send(api, *range(5))
    assert fetched(api, "inbox=orders&cursor=latest") == []
    page = api.get("/api/inbox?inbox=orders&cursor=&limit=3").json()
    assert [event["id"] for event in page["events"]] == ids[:3]
    assert page["has_more"]
    rest = api.get(f"/api/inbox?inbox=orders&cursor={page['next_cursor']}").json()
    assert [event["id"] for event in rest["events"]] == ids[3:]
    assert not rest["has_more"]
    assert fetched(api, "inbox=orders") == ids
    more = send(api, 6)
    end = api.get(f"/api/inbox?inbox=orders&cursor={rest['next_cursor']}").json()
    assert [event["id"] for event in end["events"]] == more
    assert fetched(api, "inbox=orders&cursor=latest") == []


def test_the_log_shows_how_each_event_stands(api: ApiClient) -> None:
    first, second = send(api, 1, 2)
    fetched(api, "limit=1")
    page = api.get("/api/inbox?cursor=").json()
    assert [event["delivery_status"] for event in page["events"]] == ["delivering", "pending"]
    assert fetched(api, "cursor=&status=pending") == [second]
    api.post(f"/api/inbox/{first}/ack")
    assert fetched(api, "cursor=&status=delivered&type=order.*") == [first]


def test_a_cursor_of_another_inbox_is_refused(api: ApiClient, other_api: ApiClient) -> None:
    send(api, 1)
    send(other_api, 1)
    cursor = other_api.get("/api/inbox?cursor=").json()["next_cursor"]
    for wrong in (cursor, "rubbish", "A" * 54, "é", "x" * 300):
        refused = api.get(f"/api/inbox?cursor={wrong}")
        assert refused.status_code == 400, wrong
        assert refused.json()["errors"][0]["pointer"] == "?cursor"


def test_a_cursor_older_than_the_retention_is_gone(api: ApiClient, organization: Organization) -> None:
    [event_id] = send(api, 1)
    cursor = api.get("/api/inbox?cursor=").json()["next_cursor"]
    assert fetched(api, "cursor=") == [event_id]
    Delivery.objects.update(created_at=Now() - datetime.timedelta(days=organization.retention_days + 1))
    old = api.get("/api/inbox?cursor=&limit=1").json()
    assert api.get(f"/api/inbox?cursor={cursor}").status_code == 200
    # The log moves a place behind everything on with the time, so this one needs something behind it.
    inbox_id = Subscription.objects.get(kind="inbox").pk
    hours_ago = log.Place(timezone.now() - datetime.timedelta(hours=3), new_id())
    moved = log.read(inbox_id, hours_ago, 10).following
    assert datetime.timedelta(0) <= timezone.now() - log.SLACK - moved.at < datetime.timedelta(minutes=5)
    send(api, 2)
    old = api.get("/api/inbox?cursor=&limit=1").json()
    gone = api.get(f"/api/inbox?cursor={old['next_cursor']}")
    assert gone.status_code == 410
    assert gone.json()["code"] == "cursor_expired"
    assert "empty `cursor`" in gone.json()["detail"]


# --- retention --------------------------------------------------------------------------------------


def age(event_ids: Sequence[str], days: float) -> None:
    """Let these events have come so many days ago."""
    past = datetime.timedelta(days=days)
    Delivery.objects.filter(event_id__in=event_ids).update(
        created_at=F("created_at") - past, next_attempt_at=F("next_attempt_at") - past
    )
    Event.objects.filter(id__in=event_ids).update(created_at=F("created_at") - past)


def test_an_abandoned_inbox_is_emptied_and_stops_neither_senders_nor_retention(
    api: ApiClient, organization: Organization, settings: Any
) -> None:
    make(api)
    old = send(api, 1, 2)
    settings.MAX_WAITING_DELIVERIES = 2
    backlog.estimate.reset()
    body = {"type": "a", "data": 1}
    assert api.post("/api/events", body).status_code == 429
    age(old, organization.retention_days + 1)
    assert InboxRetention().run(0.0).deliveries == 2
    backlog.estimate.reset()
    assert api.post("/api/events", body).status_code == 202
    shown = api.get(f"/api/deliveries?event={old[0]}").json()["data"][0]
    assert (shown["status"], shown["last_error"], shown["next_attempt_at"]) == ("cancelled", "not_fetched", None)
    assert api.post("/api/inbox/ack", {"event_ids": old, "inbox": "orders"}).json()["results"][0]["status"] == (
        "cancelled"
    )
    assert fetched(api, "inbox=orders") == []
    assert purge_expired().events == 2


def test_retention_leaves_what_is_recent_leased_given_back_or_an_endpoint_s(
    api: ApiClient, organization: Organization, subscription: Subscription
) -> None:
    make(api)
    days = organization.retention_days + 1
    leased, given_back, recent = send(api, 1, 2, 3)
    age([leased, given_back], days)
    age([recent], days - 2)
    assert fetched(api, "inbox=orders&limit=2") == [leased, given_back]
    assert api.post("/api/inbox/nack", {"event_ids": [given_back], "inbox": "orders"}).json()["given_back"] == 1
    assert cancel_unfetched().deliveries == 0
    assert subscription.pk in Delivery.objects.filter(status="pending").values_list("subscription_id", flat=True)
    age([leased], days)
    assert cancel_unfetched().deliveries == 1, "its lease ended long ago"


@pytest.mark.parametrize("how", ["sweep", "command"])
def test_workers_and_the_command_empty_abandoned_inboxes(
    api: ApiClient, organization: Organization, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(api)
    ids = send(api, 1)
    age(ids, organization.retention_days + 1)
    if how == "command":
        call_command("purge_expired")
        assert "1 unfetched deliveries cancelled." in capsys.readouterr().out
    else:
        sweep = Sweep(lambda: None)
        sweep._purged_at -= PURGE_EVERY_SECONDS
        sweep.run()
    assert not Delivery.objects.filter(status="pending").exists()


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        "limit=0", "limit=1001", "limit=x", "limit=-1", "wait=21", "wait=-1", "wait=x", "wait=nan", "visibility=0",
        "visibility=43201", "visibility=1e9", "type=a b", "inbox=", "inbox=%00", "inbox=a/b", "offset=5", "status=x",
        "status=delivered", "cursor=&visibility=5", "nope=1", "limit=1&limit=2",
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_be_honored_is_refused(api: ApiClient, parameters: str) -> None:
    refused = api.get(f"/api/inbox?{parameters}")
    assert refused.status_code == 400, refused.content
    assert refused.json()["errors"][0]["pointer"].startswith("?")
    assert not Subscription.objects.exists()


@pytest.mark.parametrize("verb", ["ack", "nack", "extend"])
@pytest.mark.parametrize(
    "body",
    [
        {}, {"event_ids": []}, {"event_ids": "x"}, {"event_ids": [1]}, {"event_ids": [None]}, {"ids": []},
        {"event_ids": ["x"], "lease_id": "no"}, {"event_ids": ["x"], "inbox": 5}, {"event_ids": ["x"] * 1001},
        {"event_ids": [str(uuid.UUID(int=1))] * 10_000},
        {"event_ids": ["x"], "lease_id": "00000000-0000-0000-0000-000000000000"},
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_honored_is_refused(api: ApiClient, verb: str, body: dict[str, Any]) -> None:
    refused = api.post(f"/api/inbox/{verb}", body)
    assert refused.status_code == 400, refused.content
    assert refused.json()["errors"]


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("nack", {"delay": -1}), ("nack", {"delay": 43_201}), ("nack", {"delay": True}), ("extend", {"visibility": 0}),
        ("extend", {"visibility": "60"}), ("ack", {"delay": 1}),
    ],
)  # fmt: skip
def test_a_time_out_of_range_is_refused(api: ApiClient, verb: str, body: dict[str, Any]) -> None:
    refused = api.post(f"/api/inbox/{verb}", {"event_ids": [str(new_id())], **body})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["pointer"] == f"/{next(iter(body))}"


@pytest.mark.parametrize("query", ["", "&cursor=latest"])
def test_without_the_front_door_a_wait_ends_with_what_comes_or_at_its_end(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    make(api)
    assert fetched(api, f"inbox=orders&wait=0.3{query}") == []
    came: list[str] = []
    # Something comes during the first pause.
    pausing = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: came.extend(send(api, 1)))
    monkeypatch.setattr("webhooks.api.inbox.time", pausing)
    assert fetched(api, f"inbox=orders&wait=20{query}") == came
    assert len(came) == 1


def test_a_head_request_leases_nothing(api: ApiClient) -> None:
    send(api, 1)
    assert api.request("HEAD", "/api/inbox").status_code == 405
    assert len(fetched(api)) == 1


def test_an_inbox_needs_its_scope(api: ApiClient, organization: Organization) -> None:
    scopes = [scope.value for scope in Scope if scope is not Scope.INBOX_CONSUME]
    without = ApiClient(create_api_key(organization, scopes=scopes)[1])
    for response in (without.get("/api/inbox"), without.post("/api/inbox/ack", {"event_ids": ["x"]})):
        assert response.status_code == 403
        assert response.json()["scope"] == "inbox:consume"
    only = ApiClient(create_api_key(organization, scopes=["inbox:consume"])[1])
    send(api, 1)
    assert len(fetched(only)) == 1


def test_another_organizations_inbox_does_not_exist(api: ApiClient, other_api: ApiClient) -> None:
    make(other_api)
    assert api.get("/api/inbox?inbox=orders").status_code == 404
    assert api.post("/api/inbox/ack", {"event_ids": ["x"], "inbox": "orders"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "inbox"}, "/inbox"),
        ({"kind": "inbox", "inbox": "a b"}, "/inbox"),
        ({"kind": "inbox", "inbox": "x" * 65}, "/inbox"),
        ({"kind": "inbox", "inbox": "a", "url": "https://example.com/"}, "/url"),
        ({"kind": "inbox", "inbox": "a", "headers": {}}, "/headers"),
        ({"kind": "pigeon", "url": "https://example.com/"}, "/kind"),
        ({"inbox": "a", "url": "https://example.com/"}, "/inbox"),
        ({}, "/url"),
    ],
)
def test_an_inbox_that_cannot_be_made_is_refused(api: ApiClient, body: dict[str, Any], pointer: str) -> None:
    refused = api.post("/api/subscriptions", {"event_types": ["*"], **body})
    assert refused.status_code == 400, refused.content
    assert pointer in [error["pointer"] for error in refused.json()["errors"]]


def test_what_an_inbox_does_not_have_is_refused(api: ApiClient) -> None:
    made = make(api)
    assert made["secret"] is None
    path = f"/api/subscriptions/{made['id']}"
    again = api.post("/api/subscriptions", {"kind": "inbox", "inbox": "orders", "event_types": ["*"]})
    assert again.status_code == 409
    assert again.json()["subscription_id"] == made["id"]
    for verb in ("rotate-secret", "test"):
        refused = api.post(f"{path}/{verb}")
        assert refused.status_code == 409
        assert refused.json()["code"] == "not_for_inboxes"
    assert api.patch(path, {"url": "https://example.com/"}).status_code == 400
    changed = api.patch(path, {"event_types": ["user.*"], "description": "users"})
    assert changed.status_code == 200
    assert changed.json()["event_types"] == ["user.*"]


def test_a_recovery_fills_an_inbox(api: ApiClient) -> None:
    ids = send(api, 1, 2)
    made = make(api)
    subscription = Subscription.objects.get(pk=made["id"])
    run = recovery.start(subscription, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    recovery.advance(run.pk)
    assert fetched(api, "inbox=orders") == ids
    assert SubscriptionQueue.objects.get(pk=made["id"]).next_due_at is None


def test_the_default_inbox_is_made_once_and_audited(api: ApiClient, organization: Organization) -> None:
    first = inboxes.find_or_make_default(organization.id, lambda made: None)
    with transaction.atomic():
        assert inboxes.find_or_make_default(organization.id, lambda made: None) == first
    assert subscriptions.of_organization(organization.id).count() == 1


def test_the_data_of_a_fetch_is_bounded(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.destinations.inbox.fetching.MAX_BYTES", 10)
    monkeypatch.setattr("webhooks.destinations.inbox.log.MAX_BYTES", 10)
    make(api)
    ids = send(api, 1, 2, 3)
    page = api.get("/api/inbox?inbox=orders&cursor=").json()
    assert [event["id"] for event in page["events"]] == ids[:2]
    assert page["has_more"]
    assert fetched(api, "inbox=orders") == ids[:2]
    assert fetched(api, "inbox=orders") == ids[2:]


def test_a_stream_without_the_front_door_ends_and_goes_on_behind_the_last_event(
    api: Any, organization: Organization
) -> None:
    begun = api.get("/api/inbox/stream")  # at what comes next
    assert begun["Content-Type"] == "text/event-stream"
    retry, place, *_ = begun.content.decode().split("\n")
    assert retry == "retry: 1000"
    ingest(organization.id, NewEvent("a.b", '{"text": "two\\nlines"}', None))
    fan_out()
    seen = api.get("/api/inbox/stream", **{"Last-Event-ID": place.removeprefix("id: ")}).content.decode()
    _, event, rest = seen.split("\n\n", 2)
    name, data = event.split("\n", 1)
    assert rest == f"{name}\n\n"  # and where to go on
    assert json.loads(data.removeprefix("data: "))["payload"] == {"text": "two\nlines"}
    again = api.get("/api/inbox/stream", **{"Last-Event-ID": name.removeprefix("id: ")}).content.decode()
    assert "data: " not in again


def test_a_stream_of_some_types_goes_on_behind_the_others(api: Any, organization: Organization) -> None:
    first = api.get("/api/inbox/stream").content.decode().split("\n")[1]
    ingest(organization.id, NewEvent("a.b", "1", None))
    fan_out()
    headers = {"Last-Event-ID": first.removeprefix("id: ")}
    *_, last = api.get("/api/inbox/stream?type=c.d", **headers).content.decode().strip().split("\n")
    assert last.startswith("id: ")
    assert last != first
    seen = api.get("/api/inbox/stream", **{"Last-Event-ID": last.removeprefix("id: ")}).content.decode()
    assert "data: " not in seen


def test_an_event_that_nobody_has_fetched_is_not_under_a_lease(api: Any, organization: Organization) -> None:
    api.get("/api/inbox")
    accepted = ingest(organization.id, NewEvent("a.b", "1", None))
    fan_out()
    for path, body in (("ack", {"event_ids": [str(accepted.event_id)]}), (f"{accepted.event_id}/ack", {})):
        response = api.post(f"/api/inbox/{path}", {**body, "lease_id": str(new_id())})
        told = (
            response.json()["item_status"] if response.status_code == 409 else response.json()["results"][0]["status"]
        )
        assert told == "not_leased"
    assert api.post(f"/api/inbox/{accepted.event_id}/ack").status_code == 200


def test_a_delivery_that_a_consumer_has_fetched_is_delivering_wherever_it_is_shown(api: ApiClient) -> None:
    make(api, "default")
    leased, waiting, given_back, over = send(api, 1, 2, 3, 4)
    fetched(api, "limit=4")
    api.post("/api/inbox/nack", {"event_ids": [waiting, given_back]})
    Delivery.objects.filter(event_id=waiting).update(lease_id=None, last_error="")
    expire([over])
    expected = {leased: "delivering", waiting: "pending", given_back: "retrying", over: "pending"}
    listed = api.get("/api/deliveries").json()["data"]
    assert {one["event_id"]: one["status"] for one in listed} == expected
    for status in ("delivering", "pending", "retrying"):
        found = {one["event_id"] for one in api.get(f"/api/deliveries?status={status}").json()["data"]}
        assert found == {event for event, state in expected.items() if state == status}
    for event, status in expected.items():
        assert [one["status"] for one in api.get(f"/api/events/{event}").json()["deliveries"]] == [status]
    [shown] = [one for one in listed if one["event_id"] == leased]
    assert shown["next_attempt_at"] > datetime.datetime.now(datetime.UTC).isoformat(), "until when it is leased"
    refused = api.post(f"/api/deliveries/{shown['id']}/retry")
    assert (refused.status_code, refused.json()["delivery_status"]) == (409, "delivering")
    assert "consumer has fetched" in refused.json()["detail"]
    api.post("/api/inbox/ack", {"event_ids": [leased]})
    assert api.get("/api/deliveries?status=delivering").json()["data"] == []


def erase(api: ApiClient, event_id: str) -> None:
    """Erase an event's payload."""
    assert api.delete(f"/api/events/{event_id}/payload").status_code in {200, 204}


def test_an_erased_event_is_never_handed_out(api: ApiClient) -> None:
    make(api, "default")
    leased, waiting, requeued, null, last = send(api, *range(5))
    Event.objects.filter(id=null).update(data="null")  # which a producer may send
    assert fetched(api, "limit=1") == [leased]
    erase(api, leased)
    erase(api, waiting)
    erase(api, requeued)
    Delivery.objects.filter(event_id=requeued).update(status="pending", next_attempt_at=Now(), completed_at=None)
    assert fetched(api, "limit=1") == [null], "not an empty page, either"
    assert fetched(api) == [last]
    acknowledged = api.post("/api/inbox/ack", {"event_ids": [leased]}).json()
    assert acknowledged["results"][0]["status"] == "cancelled"
    for event_id in (leased, waiting, requeued):
        [shown] = api.get(f"/api/deliveries?event={event_id}").json()["data"]
        assert (shown["status"], shown["last_error"]) == ("cancelled", "payload_erased")


def test_the_log_leaves_out_what_was_erased_and_goes_on_behind_it(api: ApiClient) -> None:
    make(api, "default")
    first, erased, last = send(api, *range(3))
    erase(api, erased)
    page = api.get("/api/inbox?cursor=&limit=2").json()
    assert ([event["id"] for event in page["events"]], page["has_more"]) == ([first], True)
    assert [event["id"] for event in api.get(f"/api/inbox?cursor={page['next_cursor']}").json()["events"]] == [last]
