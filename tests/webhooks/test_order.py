"""Ordering keys: one at a time and in order within a subscription and key; a failure holds up only its key."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.test import RequestFactory

from console.pages.deliveries import DeliveryAdmin
from devstack.http_receiver import Receiver
from events.erasure import erase
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.conftest import ApiClient
from tests.webhooks.helpers import fan_out, queue_of, result, sending, statuses, subscribe
from tests.webhooks.test_recovery import LONG_AGO
from webhooks import delivery_actions, ordering_keys, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.destinations.outcome import Failure
from webhooks.dispatch import leases
from webhooks.dispatch.claim import claim
from webhooks.dispatch.hand_over import SenderHandOver
from webhooks.dispatch.record import record_results
from webhooks.display.standing import recent_attempts
from webhooks.models import Delivery, Subscription
from webhooks.ordering_keys import PARKED_FROM, repair_order
from webhooks.routing.fan_out import FanOut
from webhooks.upkeep import recovery
from webhooks.upkeep.held_retention import cancel_expired

pytestmark = pytest.mark.django_db


def send(organization: Organization, *keys: str | None) -> list[Any]:
    """Accept an event for each key and fan them out; the data of each is its position."""
    ids = []
    for number, key in enumerate(keys):
        ids.append(ingest(organization.id, NewEvent("a.b", str(number), None, ordering_key=key)).event_id)
    fan_out()
    return ids


def claimed() -> list[Any]:
    return sorted(claim(100).deliveries, key=lambda one: int(one.event_data))


def numbers(deliveries: list[Any]) -> list[int]:
    return [int(one.event_data) for one in deliveries]


def make_due() -> None:
    """Let retries be due now; what is parked stays."""
    Delivery.objects.filter(status="pending", next_attempt_at__lt=PARKED_FROM).update(next_attempt_at=LONG_AGO)
    for subscription in Subscription.objects.all():
        type(queue_of(subscription)).objects.filter(pk=subscription.pk).update(next_due_at=LONG_AGO, paused_until=None)


def test_one_at_a_time_and_in_order(organization: Organization) -> None:
    ordered = subscribe(organization, ordered=True)
    send(organization, "a", "a", "b", None, "a", "b")
    first = claimed()
    assert numbers(first) == [0, 2, 3]
    assert claimed() == []
    record_results([result(first[0])])
    second = claimed()
    assert numbers(second) == [1]
    record_results([result(first[1]), result(second[0])])
    third = claimed()
    assert numbers(third) == [4, 5]
    record_results([result(one) for one in third])
    assert claimed() == []
    assert statuses(subscription=ordered).count("delivered") == 5


def test_a_failure_holds_up_only_its_key(organization: Organization) -> None:
    ordered = subscribe(organization, ordered=True, ordered_attempts=2)
    send(organization, "a", "b", "a", "b")
    first = claimed()
    record_results([result(first[0], 500), result(first[1])])
    second = claimed()
    assert numbers(second) == [3]
    record_results([result(second[0])])
    make_due()
    again = claimed()
    assert numbers(again) == [0], "the retry, and nothing of its key"
    record_results([result(again[0], 500)])
    assert statuses(subscription=ordered).count("failed") == 1
    last = claimed()
    assert numbers(last) == [2], "after two attempts it is given up, and its key goes on"
    record_results([result(last[0])])


def test_a_key_is_blocked_until_somebody_decides(organization: Organization, api: ApiClient) -> None:
    ordered = subscribe(organization, ordered=True, ordered_attempts=1, ordered_on_failure="block")
    send(organization, "a", "a", "b", "a")
    first = claimed()
    record_results([result(first[0], 500), result(first[1])])
    assert claimed() == []
    assert repair_order() == 0, "it waits for a reason"
    failed = Delivery.objects.get(status="failed")
    delivery_actions.apply(DeliveryAction.RETRY, [failed.pk])
    again = claimed()
    assert numbers(again) == [0]
    record_results([result(again[0], 500)])
    assert claimed() == []
    # It is seen, and somebody gives it up.
    second, third = Delivery.objects.filter(status="pending").order_by("ordered_at", "event_id")
    for waiting in (second, third):
        assert api.get(f"/api/deliveries/{waiting.pk}").json()["waits_for"] == str(failed.pk)
    assert api.get(f"/api/deliveries/{failed.pk}").json()["waits_for"] is None
    assert ordering_keys.count_waiting(failed, 10) == 2
    skipped = api.post(f"/api/deliveries/{failed.pk}/skip")
    assert (skipped.status_code, skipped.json()["status"]) == (200, "cancelled")
    problem = api.post(f"/api/deliveries/{failed.pk}/skip").json()
    assert (problem["code"], problem["delivery_status"]) == ("not_skippable", "cancelled")
    assert api.get(f"/api/deliveries/{second.pk}").json()["waits_for"] is None
    taken = claimed()
    assert numbers(taken) == [1]
    assert api.get(f"/api/deliveries/{third.pk}").json()["waits_for"] == str(second.pk)
    assert api.post(f"/api/deliveries/{second.pk}/skip").status_code == 409, "it is on its way"
    record_results([result(taken[0], 500)])
    assert claimed() == []
    answer = api.patch(f"/api/subscriptions/{ordered.pk}", {"ordered_on_failure": "skip"})
    assert answer.json()["ordered_on_failure"] == "skip"
    assert numbers(claimed()) == [3]


def test_only_what_has_a_key_is_skipped_also_while_it_waits(organization: Organization, api: ApiClient) -> None:
    ordered = subscribe(organization, ordered=True)
    send(organization, "a", "a", "a", None)
    subscriptions.disable(ordered)
    first, second, third, other = Delivery.objects.order_by("event_id")
    assert delivery_actions.apply(DeliveryAction.SKIP, [first.pk, second.pk, other.pk]) == 2
    other.refresh_from_db()
    assert "no ordering key" in delivery_actions.why_not_skippable(other)
    subscriptions.enable(ordered)
    assert numbers(claimed()) == [2, 3]
    assert statuses(subscription=ordered).count("cancelled") == 2
    assert ordering_keys.waits_for(third) is None


def test_one_that_is_retried_waits_for_a_later_one_on_its_way(organization: Organization) -> None:
    subscribe(organization, ordered=True, ordered_attempts=1)
    send(organization, "a", "a", "a")
    first = claimed()
    record_results([result(first[0], 500)])
    second = claimed()
    assert numbers(second) == [1]
    delivery_actions.apply(DeliveryAction.RETRY, [first[0].delivery_id])
    assert claimed() == []
    record_results([result(second[0])])
    assert numbers(claimed()) == [0]


@pytest.mark.django_db(transaction=True)
def test_the_sender_sends_in_order(organization: Organization) -> None:
    """Nothing with a key is handed over, however idle the queue is."""
    with Receiver() as receiver:
        subscribe(organization, receiver.url(), ordered=True)
        with sending() as sender:
            fans = FanOut()
            for number in range(20):
                ingest(organization.id, NewEvent("a.b", str(number), None, ordering_key="ab"[number % 2]))
                ingest(organization.id, NewEvent("a.b", str(100 + number), None))
                fans.run_round(100, hand_over=SenderHandOver(sender))
                sender.wake()
            received = receiver.wait_for(40)
    sent = [request.document["data"] for request in received]
    for key in (0, 1):
        of_key = [number for number in sent if number < 100 and number % 2 == key]
        assert of_key == list(range(key, 20, 2))


def test_the_api_shows_what_waits(organization: Organization, api: ApiClient) -> None:
    new = {"url": "https://a.example/", "event_types": ["*"], "ordered": True, "ordered_attempts": 3}
    made = api.post("/api/subscriptions", new).json()
    assert (made["ordered"], made["ordered_attempts"], made["ordered_on_failure"]) == (True, 3, "skip")
    sent = [api.post("/api/events", {"type": "a.b", "data": 1, "ordering_key": "k"}).json()["id"] for _ in range(2)]
    batch = api.post("/api/events/batch", [{"type": "a.b", "data": 1, "ordering_key": "k"}] * 2).json()
    assert batch["accepted"] == 2
    assert api.get(f"/api/events/{sent[0]}").json()["ordering_key"] == "k"
    fan_out()
    deliveries = api.get("/api/deliveries").json()["data"]
    assert [one["ordering_key"] for one in deliveries] == ["k"] * 4
    assert sorted(one["next_attempt_at"] is None for one in deliveries) == [False, True, True, True]
    assert api.get(f"/api/subscriptions/{made['id']}").json()["next_attempt_at"]
    for bad in ("", "x" * 256, "a\x00", 1, ["a"]):
        answer = api.post("/api/events", {"type": "a.b", "data": 1, "ordering_key": bad})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == "/ordering_key"
    for wrong in ({"ordered": 1}, {"ordered_attempts": 0}, {"ordered_on_failure": "stop"}):
        assert api.patch(f"/api/subscriptions/{made['id']}", wrong).status_code == 400
    inbox = {"kind": "inbox", "inbox": "i", "event_types": ["*"], "ordered": True}
    assert api.post("/api/subscriptions", inbox).status_code == 400


def test_an_event_waits_for_an_earlier_one_that_is_not_fanned_out(organization: Organization) -> None:
    """Another worker has it in hand."""
    subscribe(organization, ordered=True)
    first, second = (
        ingest(organization.id, NewEvent("a.b", str(n), None, ordering_key="a")).event_id for n in range(2)
    )
    free = ingest(organization.id, NewEvent("a.b", "2", None, ordering_key="b")).event_id
    Event.objects.filter(pk=first).update(due_at=PARKED_FROM)
    fans = FanOut()
    looked = fans.run_round(100)
    assert set(Delivery.objects.values_list("event_id", flat=True)) == {free}
    assert (looked.put_off, looked.left_behind, looked.more) == (1, frozenset(), False), "the round left nothing behind"
    assert not fans.run_round(100).seen, "it isn't claimed again and again"
    Event.objects.filter(pk__in=[first, second]).update(due_at=LONG_AGO)
    fans.run_round(100)
    assert numbers(claimed()) == [0, 2]


def test_what_is_recovered_is_in_order(organization: Organization) -> None:
    send(organization, "a", "a", "a")
    ordered = subscribe(organization, ordered=True)
    recovery.advance(recovery.start(ordered, LONG_AGO).id, 2)
    recovery.advance(recovery.start(ordered, LONG_AGO).id)
    for number in range(3):
        taken = claimed()
        assert numbers(taken) == [number]
        record_results([result(taken[0])])


def test_disabling_holding_and_lost_workers_keep_the_order(organization: Organization) -> None:
    ordered = subscribe(organization, ordered=True)
    ids = send(organization, "a", "a", "a")
    subscriptions.disable(ordered)
    send(organization, "a")
    subscriptions.enable(ordered)
    taken = claimed()
    assert [one.event_id for one in taken] == ids[:1]
    assert leases.release({taken[0].lease_id}) == 1
    delivery_actions.apply(DeliveryAction.HOLD, [taken[0].delivery_id])
    assert claimed() == [], "what is held holds its key up"
    delivery_actions.apply(DeliveryAction.RETRY, Delivery.objects.values_list("pk", flat=True))
    assert claimed() == []
    delivery_actions.apply(DeliveryAction.RESUME, [taken[0].delivery_id])
    assert [one.event_id for one in claimed()] == ids[:1]


def test_the_sweep_finds_what_was_forgotten(organization: Organization) -> None:
    ordered = subscribe(organization, ordered=True)
    send(organization, *(["a", "b"] * 2))
    assert numbers(claimed()) == [0, 1]
    # By hand, past all that would let the next one go.
    Delivery.objects.filter(status="delivering").update(status="cancelled", lease_id=None, lease_expires_at=None)
    type(queue_of(ordered)).objects.update(in_flight=0)
    assert claimed() == []
    assert repair_order() == 2
    assert numbers(claimed()) == [2, 3]


def test_without_ordering_nothing_is_looked_at(organization: Organization) -> None:
    subscription = subscribe(organization)
    send(organization, "a", "a")
    assert numbers(claimed()) == [0, 1]
    assert not queue_of(subscription).has_ordered
    assert not Delivery.objects.exclude(ordering_key=None).exists()


def test_a_key_goes_on_when_the_later_one_has_to_be_tried_again(organization: Organization) -> None:
    """The earlier one was retried meanwhile and parked behind it; nobody else would let it go."""
    subscribe(organization, ordered=True, ordered_attempts=2)
    send(organization, "a", "a")
    (first,) = claimed()
    record_results([result(first)])
    (second,) = claimed()
    delivery_actions.apply(DeliveryAction.REPLAY, [first.delivery_id])
    assert claimed() == []
    record_results([result(second, 500)])
    assert numbers(claimed()) == [0]


def test_an_erased_event_blocks_no_key(organization: Organization) -> None:
    subscribe(organization, ordered=True, ordered_attempts=1, ordered_on_failure="block")
    ids = send(organization, "a", "a", "a", "a")
    (first,) = claimed()
    record_results([result(first, 500)])
    assert claimed() == []
    for event_id in ids[:2]:  # one whose delivery has failed, and one whose delivery waits for that
        erase(organization.id, event_id)
    (third,) = claimed()
    assert numbers([third]) == [2]
    erase(organization.id, ids[2])  # while it is sent; its next attempt is refused
    record_results([result(third, None, Failure.PAYLOAD_ERASED)])
    assert numbers(claimed()) == [3]


def test_what_waits_for_a_key_is_held_since_its_subscription_was_disabled(
    organization: Organization, settings: Any
) -> None:
    ordered = subscribe(organization, ordered=True)
    send(organization, "a", "a")
    assert numbers(claimed()) == [0]
    subscriptions.disable(ordered)
    row = Delivery.objects.get(status="held")
    assert row.next_attempt_at is not None
    assert row.next_attempt_at < PARKED_FROM
    settings.HELD_RETENTION_DAYS = 1
    Delivery.objects.filter(pk=row.pk).update(created_at=LONG_AGO, next_attempt_at=LONG_AGO)
    Subscription.objects.filter(pk=ordered.pk).update(disabled_at=LONG_AGO)
    assert cancel_expired().deliveries == 1


def test_the_sweep_looks_at_every_key(organization: Organization, monkeypatch: Any) -> None:
    monkeypatch.setattr(ordering_keys, "_WAITING_KEYS", ordering_keys._WAITING_KEYS.replace("1000)", "2)"))
    monkeypatch.setattr(ordering_keys, "KEYS_AT_A_TIME", 2)
    subscribe(organization, ordered=True)
    send(organization, *"abcde")
    Delivery.objects.filter(ordering_key__in=["b", "e"]).update(next_attempt_at=ordering_keys.PARKED_UNTIL)
    assert repair_order() == 2


def test_a_parked_delivery_has_no_time_in_lists(organization: Organization) -> None:
    ordered = subscribe(organization, ordered=True)
    send(organization, "a", "a")
    (first,) = claimed()
    record_results([result(first, 500)])
    planned = Delivery.objects.get(attempt_count=1)
    rows = DeliveryAdmin(Delivery, admin.site).get_queryset(RequestFactory().get("/"))
    assert set(rows.values_list("planned_at", flat=True)) == {planned.next_attempt_at, None}
    attempts = recent_attempts(Delivery.objects.filter(subscription=ordered), 1)
    assert [one.delivery_id for one in attempts] == [planned.pk]
