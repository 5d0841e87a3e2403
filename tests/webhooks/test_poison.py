"""An event or subscription that makes the fan-out raise harms nobody else, and comes through after the fix."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from events import reprocessing
from events.ingest import ingest, ingest_batch
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, fan_out_batch, sending, statuses, subscribe
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import DELIVERIES_AT_A_TIME
from webhooks.upkeep.sweep import Sweep


def _sql(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def _poison(condition: str) -> None:
    """Make the database refuse deliveries, as it does when a constraint or a trigger went wrong."""
    _sql(f"ALTER TABLE webhooks_delivery ADD CONSTRAINT poison CHECK (NOT ({condition})) NOT VALID")


def _due_again() -> None:
    Event.objects.filter(status="accepted").update(due_at=Now())


def _event(organization: Organization, kind: str = "a.b") -> Any:
    return ingest(organization.id, NewEvent(kind, "{}", None)).event_id


@pytest.mark.django_db
def test_a_poison_event_s_neighbors_go_through_and_it_ends_in_error_with_its_reason(
    organization: Organization, api: Any, settings: Any
) -> None:
    settings.EVENT_MAX_ATTEMPTS = 3
    subscribe(organization)
    before = [_event(organization) for _ in range(5)]
    poison = _event(organization)
    after = [_event(organization) for _ in range(5)]
    _poison(f"event_id = '{poison}'")

    assert fan_out_batch(100) == 11
    assert Event.objects.filter(id__in=before + after, status="processed").count() == 10
    assert Delivery.objects.count() == 10
    waits = []
    for attempts in (1, 2):
        event = Event.objects.get(id=poison)
        assert (event.status, event.failed_attempts) == ("accepted", attempts)
        assert "poison" in event.last_error
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM due_at - clock_timestamp()) FROM events_event WHERE id = %s", [poison]
            )
            waits.append(float(cursor.fetchone()[0]))
        assert fan_out_batch(100) == 0  # not before its pause is over
        _due_again()
        assert fan_out_batch(100) == 1
    assert waits[1] > waits[0] > 0

    event = Event.objects.get(id=poison)
    assert (event.status, event.failed_attempts) == ("error", 3)
    _due_again()
    assert fan_out_batch(100) == 0
    (listed,) = api.get("/api/events?status=error").json()["data"]
    assert (listed["id"], listed["failed_attempts"]) == (str(poison), 3)
    assert "poison" in listed["error"]
    assert [e["id"] for e in api.get("/api/events?undelivered=true").json()["data"]][-6] == str(poison)

    _sql("ALTER TABLE webhooks_delivery DROP CONSTRAINT poison")
    assert reprocessing.reprocess(Event.objects.filter(organization=organization)) == 1
    assert fan_out_batch(100) == 1
    shown = api.get(f"/api/events/{poison}").json()
    assert shown["status"] == "processed"
    assert len(shown["deliveries"]) == 1
    assert Delivery.objects.count() == 11


@pytest.mark.django_db
def test_a_subscription_that_breaks_the_fan_out_stops_no_other_organization(
    organization: Organization, other_organization: Organization, settings: Any
) -> None:
    settings.EVENT_MAX_ATTEMPTS = 2
    broken = subscribe(organization)
    good = subscribe(other_organization)
    # A row that only a hand could make: an event type that is null.
    _sql("UPDATE webhooks_subscription SET event_types = ARRAY[NULL]::varchar[] WHERE id = %s", broken.pk)
    for _ in range(3):
        _event(organization)
        _event(other_organization)
    fan_out_batch(100)
    assert statuses(subscription=good) == ["pending"] * 3
    _due_again()
    fan_out_batch(100)
    assert set(Event.objects.filter(organization=organization).values_list("status", flat=True)) == {"error"}
    assert all(Event.objects.filter(organization=organization).values_list("last_error", flat=True))

    _sql("UPDATE webhooks_subscription SET event_types = ARRAY['*'] WHERE id = %s", broken.pk)
    assert reprocessing.reprocess(Event.objects.all()) == 3
    fan_out_batch(100)
    assert statuses(subscription=broken) == ["pending"] * 3
    assert statuses(subscription=good) == ["pending"] * 3


@pytest.mark.django_db
def test_an_event_whose_fan_out_raised_halfway_leaves_nothing_half_made(organization: Organization) -> None:
    subscriptions = [subscribe(organization) for _ in range(3)]
    _poison(f"subscription_id = '{subscriptions[2].pk}'")
    _event(organization)
    fan_out_batch(100)
    assert Delivery.objects.count() == 0
    assert Event.objects.get().status == "accepted"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "column",
    [
        "encrypted_secret",
        "encrypted_headers",
        "encrypted_previous_secrets",
        "encrypted_auth",
        "encrypted_client_certificate",
    ],
)
def test_a_subscription_whose_secret_cannot_be_decrypted_harms_nobody_else(
    organization: Organization, receiver: Receiver, settings: Any, column: str
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 600.0)
    broken = subscribe(organization, receiver.url("/broken"))
    good = subscribe(organization, receiver.url("/good"))
    if column == "encrypted_previous_secrets":
        change: dict[str, Any] = {column: ["not a token"], "previous_secrets_expire_at": ["2100-01-01T00:00:00Z"]}
    else:
        change = {column: "not a token"}
    Subscription.objects.filter(pk=broken.pk).update(**change)
    with sending():
        accept(organization, 5)
        wait_until(lambda: statuses(subscription=good) == ["delivered"] * 5)
        wait_until(lambda: DeliveryAttempt.objects.filter(delivery__subscription=broken).count() >= 4)
    assert receiver.of("/broken") == []
    attempt = DeliveryAttempt.objects.filter(delivery__subscription=broken).first()
    assert attempt is not None
    assert attempt.error == "internal_error"
    assert attempt.error_detail.startswith("The subscription's secrets can't be decrypted")
    assert "not a token" not in attempt.error_detail
    assert set(statuses(subscription=broken)) == {"pending"}


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_cannot_be_resynced_stops_no_other_part_of_the_sweep(
    organization: Organization, other_organization: Organization
) -> None:
    bad, fine = subscribe(organization), subscribe(other_organization)
    accept(organization, 2)
    accept(other_organization, 2)
    Subscription.objects.update(is_active=False)
    SubscriptionQueue.objects.update(accepts_deliveries=False, needs_resync=True)
    _poison(f"subscription_id = '{bad.pk}' AND status = 'held'")
    woken: list[bool] = []
    _event(organization)
    try:
        sweep = Sweep(lambda: woken.append(True))
        sweep.run()
    finally:
        _sql("ALTER TABLE webhooks_delivery DROP CONSTRAINT poison")
    assert statuses(subscription=bad) == ["pending"] * 2
    assert statuses(subscription=fine) == ["held"] * 2
    assert woken == [True]
    sweep.run()
    assert statuses(subscription=bad) == ["held"] * 2


@pytest.mark.django_db
def test_many_events_for_many_subscriptions_are_cut_into_bounded_transactions(organization: Organization) -> None:
    for _ in range(30):
        subscribe(organization)
    ingest_batch(organization.id, [NewEvent("a.b", "{}", None)] * 700)
    assert fan_out_batch(1000) == 1000  # more wait
    assert DELIVERIES_AT_A_TIME - 30 < Delivery.objects.count() <= DELIVERIES_AT_A_TIME < 21_000
    rounds = 1
    while fan_out_batch(1000):
        rounds += 1
    assert rounds == -(-700 // (DELIVERIES_AT_A_TIME // 30))
    assert Delivery.objects.count() == 21_000
    assert Event.objects.filter(status="processed").count() == 700
