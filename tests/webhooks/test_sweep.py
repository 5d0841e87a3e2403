"""The sweep finds what a crash or a lost wake-up left behind, by itself and one worker at a time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db.models.functions import Now

from events.ingest import ingest
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, in_threads, queue_of, statuses, subscribe
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import expire, release
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue, TaskLease
from webhooks.upkeep.queue_repair import recount_in_flight, repair_next_due_at
from webhooks.upkeep.sweep import SWEEP, Sweep
from webhooks.upkeep.task_lease import Lease


@pytest.mark.django_db
def test_what_a_dead_worker_had_claimed_is_due_again_with_an_attempt_that_says_so(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 3)
    claim(10)
    assert expire() == 0  # the worker lives as far as anybody knows
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    Sweep(lambda: None).run()
    assert statuses() == ["pending"] * 3
    assert queue_of(subscription).in_flight == 0
    assert set(DeliveryAttempt.objects.values_list("error", "number")) == {("worker_lost", 1)}
    assert len(claim(10).deliveries) == 3


@pytest.mark.django_db
@pytest.mark.parametrize(("state", "becomes"), [("active", "pending"), ("disabled", "held"), ("deleted", "cancelled")])
@pytest.mark.parametrize("how", ["expire", "release"])
def test_a_lease_that_ends_leaves_the_delivery_as_its_subscription_is_now(
    organization: Organization, state: str, becomes: str, how: str
) -> None:
    subscription = subscribe(organization)
    accept(organization, 2)
    taken = claim(10).deliveries
    if state != "active":
        Subscription.objects.update(is_active=False, deleted_at=Now() if state == "deleted" else None)
        SubscriptionQueue.objects.update(accepts_deliveries=False)
    if how == "expire":
        Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
        assert expire() == 2
    else:
        assert release({c.lease_id for c in taken}) == 2
        assert DeliveryAttempt.objects.count() == 0  # nothing was sent
    assert statuses() == [becomes] * 2
    assert queue_of(subscription).in_flight == 0
    assert {d.completed_at is None for d in Delivery.objects.all()} == {becomes != "cancelled"}


@pytest.mark.django_db
def test_releasing_nothing_or_what_was_recorded_changes_nothing(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    assert release([]) == 0
    assert release([claimed.lease_id]) == 1
    assert release([claimed.lease_id]) == 0


@pytest.mark.django_db
def test_accepted_events_are_announced_when_their_wake_up_got_lost(organization: Organization) -> None:
    called: list[bool] = []
    sweep = Sweep(lambda: called.append(True))
    sweep.run()
    assert called == []
    ingest(organization.id, NewEvent("a.b", "1", None))
    sweep.run()
    assert called == [True]


@pytest.mark.django_db(transaction=True)
def test_one_worker_at_a_time_sweeps_and_events_are_announced_by_all(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    claim(10)
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    ingest(organization.id, NewEvent("a.b", "1", None))
    called: list[bool] = []
    other = Lease(SWEEP)
    assert other.take()
    Sweep(lambda: called.append(True)).run()
    assert statuses() == ["delivering"]
    assert called == [True]
    other.give_back()
    Sweep(lambda: None).run()
    assert statuses() == ["pending"]


@pytest.mark.django_db(transaction=True)
def test_of_many_workers_at_once_one_gets_the_lease() -> None:
    assert sum(in_threads(8, lambda _: Lease(SWEEP).take())) == 1


@pytest.mark.django_db(transaction=True)
def test_the_lease_of_a_worker_that_died_is_taken_over_and_that_one_notices(organization: Organization) -> None:
    dead = Lease(SWEEP)
    assert dead.take()
    assert dead.keep()
    Lease(SWEEP).give_back()  # what another one holds, nobody gives back
    assert not Lease(SWEEP).take()
    TaskLease.objects.update(expires_at=Now() - datetime.timedelta(seconds=1))
    subscribe(organization)
    accept(organization)
    claim(10)
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    Sweep(lambda: None).run()
    assert statuses() == ["pending"]


@pytest.mark.django_db
def test_a_queue_that_forgot_its_due_deliveries_is_reminded(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    assert repair_next_due_at() == 0
    for wrong in (None, Now() + datetime.timedelta(hours=1)):
        SubscriptionQueue.objects.update(next_due_at=wrong)
        assert claim(10).deliveries == []
        assert repair_next_due_at() == 1
        assert queue_of(subscription).next_due_at is not None
    assert len(claim(10).deliveries) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("wrong", [-3, 0, 4, 1000])
def test_a_queue_that_miscounts_what_is_in_flight_is_recounted(organization: Organization, wrong: int) -> None:
    subscription = subscribe(organization)
    accept(organization, 4)
    assert len(claim(2).deliveries) == 2
    SubscriptionQueue.objects.update(in_flight=wrong)
    assert recount_in_flight() == 1
    assert queue_of(subscription).in_flight == 2
    assert recount_in_flight() == 0


@pytest.mark.django_db
def test_more_expired_leases_than_one_transaction_takes_are_all_found(
    organization: Organization, settings: Any
) -> None:
    subscribe(organization)
    accept(organization, 25)
    SubscriptionQueue.objects.update(concurrency_window=1000)
    assert len(claim(1000).deliveries) == 25
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    assert [expire(10) for _ in range(4)] == [10, 10, 5, 0]
