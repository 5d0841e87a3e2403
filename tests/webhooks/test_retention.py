"""What is settled goes after its organization's days; what is not settled never does; nothing else grows unseen."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from events.ingest import ingest
from events.models import DedupKey, Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, in_threads, result, subscribe
from webhooks import delivery_actions, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.upkeep import recovery
from webhooks.upkeep.retention import BATCH, PURGED_AT_A_TIME, Purge, purge_expired
from webhooks.upkeep.sweep import PURGE_EVERY_SECONDS, Sweep


def _age(days: float, **filters: Any) -> None:
    Event.objects.filter(**filters).update(created_at=Now() - datetime.timedelta(days=days))


def _deliver_all(status: int = 200) -> None:
    SubscriptionQueue.objects.update(concurrency_window=10_000)
    while taken := claim(10_000).deliveries:
        record_results([result(c, status) for c in taken])


@pytest.mark.django_db
def test_settled_events_go_with_their_deliveries_and_attempts_after_their_organization_s_days(
    organization: Organization, other_organization: Organization
) -> None:
    Organization.objects.filter(id=organization.id).update(retention_days=10)
    Organization.objects.filter(id=other_organization.id).update(retention_days=20)
    for one in (organization, other_organization):
        subscribe(one)
        accept(one, 3)
    _deliver_all()
    _age(15)
    (young,) = accept(organization, 1)
    _deliver_all()
    purged = purge_expired()
    assert (purged.events, purged.deliveries, purged.attempts) == (3, 3, 3)
    assert set(Event.objects.filter(organization=organization).values_list("id", flat=True)) == {young}
    assert Event.objects.filter(organization=other_organization).count() == 3
    assert DeliveryAttempt.objects.count() == 4
    _age(21, organization=other_organization)
    assert purge_expired().events == 3


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["pending", "delivering", "held"])
def test_an_event_with_anything_unsettled_never_goes(organization: Organization, status: str) -> None:
    subscribe(organization)
    subscribe(organization)
    (event,) = accept(organization)
    _deliver_all()
    Delivery.objects.filter(id=Delivery.objects.order_by("id")[0].id).update(status=status, next_attempt_at=Now())
    _age(4000)
    assert purge_expired().events == 0
    assert Event.objects.filter(id=event).exists()
    assert DeliveryAttempt.objects.count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["accepted", "error"])
def test_an_event_that_was_never_fanned_out_never_goes(organization: Organization, status: str) -> None:
    ingest(organization.id, NewEvent("a.b", "{}", None))
    Event.objects.update(status=status)
    _age(4000)
    assert purge_expired().events == 0
    assert Event.objects.count() == 1


@pytest.mark.django_db
def test_failed_and_cancelled_deliveries_and_events_that_nobody_wants_are_settled(
    organization: Organization, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0,)
    accept(organization)
    subscribe(organization)
    accept(organization, 2)
    _deliver_all(500)
    Delivery.objects.filter(id=Delivery.objects.order_by("id")[0].id).update(status="cancelled")
    _age(100)
    assert purge_expired().events == 3


@pytest.mark.django_db
def test_any_amount_of_what_must_stay_keeps_nothing_else_from_going_and_is_passed_once(
    organization: Organization, other_organization: Organization
) -> None:
    subscribe(organization)
    accept(organization, BATCH + 100)  # pending, the oldest of all
    _age(300)
    subscribe(other_organization)
    newer = accept(organization, 30)
    Delivery.objects.filter(event_id__in=newer).update(status="delivered")
    _age(200, id__in=newer)
    purge = Purge()
    slices = 0
    total = 0
    while True:
        done = purge.run(0)  # one transaction a slice
        total += done.events
        slices += 1
        if done.is_complete:
            break
    assert total == 30
    assert slices <= 5  # and not one walk through everything for each batch
    assert Event.objects.count() == BATCH + 100


@pytest.mark.django_db
def test_a_transaction_deletes_a_bounded_number_of_rows(organization: Organization) -> None:
    """Each event has a thousand deliveries; the bound is on them."""
    for _ in range(8):
        ingest(organization.id, NewEvent("a.b", "{}", None))
    Event.objects.update(status="processed")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO webhooks_delivery"
            " (id, organization_id, event_id, subscription_id, status, cause, attempts_used,"
            " attempt_count, last_error) SELECT gen_random_uuid(), %s, e.id, gen_random_uuid(), 'delivered', 'replay',"
            " 1, 0, '' FROM events_event e, generate_series(1, 1000)",
            [organization.id],
        )
    _age(100)
    purge = Purge()
    sizes = []
    while True:
        before = Delivery.objects.count()
        done = purge.run(0)
        sizes.append(before - Delivery.objects.count())
        if done.is_complete:
            break
    assert sum(sizes) == 8000
    assert max(sizes) <= PURGED_AT_A_TIME


@pytest.mark.django_db(transaction=True)
def test_a_delivery_that_is_replayed_while_it_would_go_keeps_its_event(organization: Organization) -> None:
    subscribe(organization)
    (event,) = accept(organization)
    _deliver_all()
    _age(100)
    delivery = Delivery.objects.get()
    with transaction.atomic():
        assert delivery_actions.apply(DeliveryAction.REPLAY, [delivery.id]) == 1
        # Its own snapshot still sees a delivered one; it has to wait for the row, and look again.
        purged: list[Any] = []
        thread = threading.Thread(target=lambda: purged.append(in_threads(1, lambda _: purge_expired())))
        thread.start()
        thread.join(0.5)
        assert not purged
    thread.join(30)
    assert purged[0][0].events == 0
    assert Event.objects.filter(id=event).exists()
    assert Delivery.objects.get().status == "pending"


@pytest.mark.django_db(transaction=True)
def test_a_recovery_never_makes_a_delivery_of_an_event_that_is_going(organization: Organization) -> None:
    accept(organization, 50)
    subscription = subscribe(organization)
    _age(100)
    run = recovery.start(subscription, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))

    def work(number: int) -> None:
        if number:
            while BulkRun.objects.get(id=run.id).state == "running":
                recovery.advance(run.id, 3)
        else:
            for _ in range(10):
                Purge().run(0)

    in_threads(2, work)
    events = set(Event.objects.values_list("id", flat=True))
    assert set(Delivery.objects.values_list("event_id", flat=True)) <= events


@pytest.mark.django_db(transaction=True)
def test_several_purges_at_once_are_no_deadlock_and_leave_nothing(organization: Organization) -> None:
    for _ in range(3):
        subscribe(organization)
    accept(organization, 300)
    _deliver_all()
    _age(100)
    total = sum(purged.events for purged in in_threads(3, lambda _: purge_expired()))
    total += purge_expired().events
    assert total == 300
    assert (Event.objects.count(), Delivery.objects.count(), DeliveryAttempt.objects.count()) == (0, 0, 0)


@pytest.mark.django_db
def test_dedup_ids_go_when_their_window_ends_and_not_before(organization: Organization) -> None:
    for number in range(5):
        ingest(organization.id, NewEvent("a.b", "1", f"d{number}"))
    DedupKey.objects.filter(dedup_id__in=["d0", "d1"]).update(expires_at=Now() - datetime.timedelta(seconds=1))
    assert purge_expired().dedup_keys == 2
    assert DedupKey.objects.count() == 3
    DedupKey.objects.update(expires_at=F("expires_at") - datetime.timedelta(days=2))
    assert purge_expired().dedup_keys == 3
    assert Event.objects.count() == 5


@pytest.mark.django_db
def test_finished_recoveries_and_replays_go_with_their_organization_s_days(organization: Organization) -> None:
    subscription = subscribe(organization)
    for days in (1, 29, 31):
        BulkRun.objects.create(
            kind="recover", subscription=subscription, organization_id=organization.id, state="done",
            finished_at=Now() - datetime.timedelta(days=days),
        )  # fmt: skip
    BulkRun.objects.create(kind="replay", state="cancelled", finished_at=Now() - datetime.timedelta(days=31))
    running = BulkRun.objects.create(kind="recover", subscription=subscription, organization_id=organization.id)
    BulkRun.objects.filter(id=running.id).update(created_at=Now() - datetime.timedelta(days=400))
    assert purge_expired().bulk_runs == 2
    assert BulkRun.objects.count() == 3


@pytest.mark.django_db
def test_a_deleted_subscription_goes_when_its_last_delivery_has_gone(organization: Organization) -> None:
    live, old, new = subscribe(organization), subscribe(organization), subscribe(organization)
    accept(organization, 2)
    recovery.start(old, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    for one in (old, new):
        subscriptions.delete(one)
    Subscription.objects.filter(pk=old.pk).update(deleted_at=Now() - datetime.timedelta(days=60))
    assert purge_expired().subscriptions == 0  # its deliveries still tell where they would have gone
    _deliver_all()
    _age(100)
    purge_expired()
    purge_expired()
    assert set(Subscription.objects.values_list("pk", flat=True)) == {live.pk, new.pk}
    assert set(SubscriptionQueue.objects.values_list("pk", flat=True)) == {live.pk, new.pk}
    assert BulkRun.objects.count() == 0
    # One whose last delivery is on the wire stays until that is over.
    sending = subscribe(organization)
    subscriptions.delete(sending)
    Subscription.objects.filter(pk=sending.pk).update(deleted_at=Now() - datetime.timedelta(days=60))
    SubscriptionQueue.objects.filter(pk=sending.pk).update(in_flight=1)
    assert purge_expired().subscriptions == 0
    SubscriptionQueue.objects.filter(pk=sending.pk).update(in_flight=0)
    assert purge_expired().subscriptions == 1


@pytest.mark.django_db
def test_the_command_deletes_and_says_what(organization: Organization, capsys: Any) -> None:
    accept(organization, 2)
    _age(100)
    call_command("purge_expired")
    assert "2 events" in capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_the_sweep_purges_and_goes_on_in_the_next_round_while_more_is_left(organization: Organization) -> None:
    accept(organization, 3)
    _age(100)
    sweep = Sweep(lambda: None)
    sweep.run()
    assert Event.objects.count() == 3  # a worker that just began has other things to do
    sweep._purged_at -= PURGE_EVERY_SECONDS
    sweep.run()
    assert Event.objects.count() == 0


@pytest.mark.django_db
def test_what_is_kept_of_an_answer_is_bounded_in_the_database(organization: Organization, settings: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT character_maximum_length FROM information_schema.columns"
                       " WHERE table_name = 'webhooks_deliveryattempt' AND column_name = 'error_detail'")  # fmt: skip
        assert cursor.fetchone()[0] == 500
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(1).deliveries
    record_results([result(claimed, 500, detail="x" * 10_000)])
    assert len(DeliveryAttempt.objects.get().error_detail) == 500
