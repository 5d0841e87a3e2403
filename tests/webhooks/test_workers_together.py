"""Several workers at once, as real transactions on connections of their own: nothing is claimed twice, bounds hold."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import (
    accept,
    fan_out,
    fan_out_batch,
    in_threads,
    queue_of,
    result,
    sending,
    statuses,
    subscribe,
)
from webhooks import subscriptions
from webhooks.dispatch.claim import claim
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.dispatch.leases import expire, release
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, DeliveryAttempt, SubscriptionQueue
from webhooks.upkeep.queue_repair import recount_in_flight, repair_next_due_at

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_delivery_is_claimed_twice_by_concurrent_workers(organization: Organization) -> None:
    queues = [subscribe(organization) for _ in range(5)]
    accept(organization, 60)
    SubscriptionQueue.objects.update(concurrency_window=1000)

    def work(number: int) -> list[ClaimedDelivery]:
        mine: list[ClaimedDelivery] = []
        while True:
            taken = claim(7)
            mine += taken.deliveries
            if not taken.deliveries and not taken.skipped_locked:
                return mine

    taken = [claimed for mine in in_threads(6, work) for claimed in mine]
    assert len(taken) == 300
    assert len({claimed.delivery_id for claimed in taken}) == 300
    assert statuses() == ["delivering"] * 300
    assert [queue_of(queue).in_flight for queue in queues] == [60] * 5


def test_a_claim_that_meets_only_locks_says_so_instead_of_sleeping(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 1)
    with transaction.atomic():
        SubscriptionQueue.objects.select_for_update().get(pk=subscription.pk)
        (elsewhere,) = in_threads(1, lambda _: claim(10))
    assert (elsewhere.deliveries, elsewhere.skipped_locked) == ([], True)
    assert not claim(10).skipped_locked
    assert not claim(10).skipped_locked  # nothing is due


def test_a_claim_that_passes_over_one_queue_because_of_its_lock_says_so_beside_what_it_brings(
    organization: Organization,
) -> None:
    held, free = subscribe(organization), subscribe(organization)
    accept(organization, 1)
    with transaction.atomic():
        SubscriptionQueue.objects.select_for_update().get(pk=held.pk)
        (elsewhere,) = in_threads(1, lambda _: claim(10))
    assert [claimed.subscription_id for claimed in elsewhere.deliveries] == [free.pk]
    assert elsewhere.skipped_locked
    rest = claim(10)
    assert [claimed.subscription_id for claimed in rest.deliveries] == [held.pk]
    assert not rest.skipped_locked


def test_workers_that_claim_record_die_and_stop_at_once_leave_every_count_exact(organization: Organization) -> None:
    queues = [subscribe(organization) for _ in range(3)]
    accept(organization, 40)
    SubscriptionQueue.objects.update(concurrency_window=8)

    def work(number: int) -> int:
        done = 0
        for round_number in range(25):
            taken = claim(5).deliveries
            kind = (round_number + number) % 5
            if kind == 3:
                release({c.lease_id for c in taken})
            elif kind == 4 and taken:
                Delivery.objects.filter(id__in=[c.delivery_id for c in taken]).update(
                    lease_expires_at=Now() - datetime.timedelta(seconds=1)
                )
                expire()
                record_results([result(c) for c in taken])  # the worker wasn't dead at all
            elif taken:
                record_results([result(c, 500 if kind == 2 and i == 0 else 200) for i, c in enumerate(taken)])
                done += len(taken)
        return done

    in_threads(4, work)
    for queue in queues:
        claimed = Delivery.objects.filter(subscription=queue, status="delivering").count()
        assert queue_of(queue).in_flight == claimed
    assert recount_in_flight() == 0
    assert repair_next_due_at() == 0
    assert Delivery.objects.count() == 120
    numbers: dict[Any, list[int]] = {}
    for delivery_id, number in DeliveryAttempt.objects.order_by("number").values_list("delivery_id", "number"):
        numbers.setdefault(delivery_id, []).append(number)
    for delivery in Delivery.objects.all():
        assert numbers.get(delivery.id, []) == list(range(1, delivery.attempt_count + 1))


def test_a_rate_limit_holds_over_workers_that_claim_at_once(organization: Organization) -> None:
    subscribe(organization, deliveries_per_second=20.0)
    accept(organization, 200)
    SubscriptionQueue.objects.update(concurrency_window=1000)
    started = time.monotonic()

    def work(number: int) -> int:
        ends = started + 1.5
        taken = 0
        while time.monotonic() < ends:
            taken += len(claim(50).deliveries)
            time.sleep(0.005)
        return taken

    taken = sum(in_threads(4, work))
    seconds = time.monotonic() - started
    assert 2 <= taken <= 20 * seconds + 2 + 1  # the rate, a tenth of a second's burst, and the edge
    assert statuses().count("delivering") == taken


def test_a_rate_limit_holds_on_the_wire_over_two_senders(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url(), deliveries_per_second=20.0)
    accept(organization, 30)
    with sending(), sending():
        requests = receiver.wait_for(30)
    span = requests[-1].monotonic - requests[0].monotonic
    # 30 at 20 a second, two of which may go at once.  A slow machine only makes it longer.
    assert span >= (30 - 2 - 1) / 20 * 0.9


def test_a_rate_limited_backlog_goes_on_without_being_woken(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url(), deliveries_per_second=20.0)
    accept(organization, 40)
    with sending(poll_seconds=3600):
        wait_until(lambda: statuses() == ["delivered"] * 40)


def test_organizations_take_turns_over_workers(organization: Organization, other_organization: Organization) -> None:
    for _ in range(30):
        subscribe(organization)
    quiet = subscribe(other_organization)
    accept(organization, 20)
    accept(other_organization, 20)
    for _ in range(10):
        taken = Counter(c.subscription_id for c in claim(4).deliveries)
        assert taken[quiet.pk] >= 1 or queue_of(quiet).in_flight >= queue_of(quiet).concurrency_window
        record_results([result(c) for c in claim(4).deliveries if c.subscription_id == quiet.pk])
    assert Delivery.objects.filter(subscription=quiet).exclude(status="pending").count() >= 4


def test_an_open_circuit_lets_one_probe_through_whoever_asks(organization: Organization, settings: Any) -> None:
    settings.BREAKER_THRESHOLD = 3
    subscription = subscribe(organization)
    accept(organization, 20)
    record_results([result(c, 503) for c in claim(4).deliveries])
    queue = queue_of(subscription)
    assert (queue.breaker_trips, queue.concurrency_window) == (1, 1)
    assert claim(50).deliveries == []
    SubscriptionQueue.objects.update(paused_until=Now() - datetime.timedelta(seconds=1))
    probes = [c for taken in in_threads(4, lambda _: claim(50).deliveries) for c in taken]
    assert len(probes) == 1
    first_pause = queue.paused_until
    record_results([result(probes[0], 503)])
    queue = queue_of(subscription)
    assert queue.breaker_trips == 2
    assert queue.paused_until is not None
    assert first_pause is not None
    assert claim(50).deliveries == []
    SubscriptionQueue.objects.update(paused_until=Now() - datetime.timedelta(seconds=1))
    (probe,) = claim(50).deliveries
    record_results([result(probe)])
    queue = queue_of(subscription)
    assert (queue.breaker_trips, queue.consecutive_failures, queue.paused_until) == (0, 0, None)
    assert queue.concurrency_window == settings.INITIAL_CONCURRENCY_WINDOW
    assert len(claim(50).deliveries) == settings.INITIAL_CONCURRENCY_WINDOW


def test_concurrent_fan_outs_make_each_delivery_once(organization: Organization) -> None:
    for _ in range(4):
        subscribe(organization)
    for _ in range(200):
        ingest(organization.id, NewEvent("a.b", "{}", None))

    def work(number: int) -> None:
        while fan_out_batch(15):
            pass

    in_threads(5, work)
    assert Event.objects.filter(status="processed").count() == 200
    assert Delivery.objects.count() == 800
    assert Delivery.objects.values("event_id", "subscription_id").distinct().count() == 800


def test_a_subscription_that_changes_under_a_fan_out_keeps_no_delivery_in_the_wrong_state(
    organization: Organization,
) -> None:
    switched, deleted = subscribe(organization), subscribe(organization)

    def work(number: int) -> None:
        if number == 0:
            for _ in range(15):
                subscriptions.disable(switched)
                subscriptions.enable(switched)
            subscriptions.disable(switched)
        elif number == 1:
            wait_until(lambda: Event.objects.count() >= 30)  # of 120
            subscriptions.delete(deleted)
        else:
            for _ in range(60):
                ingest(organization.id, NewEvent("a.b", "{}", None))
                fan_out_batch(10)

    in_threads(4, work)
    fan_out()
    # What the sweep does for a queue that is marked.
    for queue in SubscriptionQueue.objects.filter(needs_resync=True):
        while not subscriptions.resync(queue.pk):
            pass
    assert set(statuses(subscription=switched)) == {"held"}
    assert set(statuses(subscription=deleted)) <= {"cancelled"}
    assert len(statuses(subscription=switched)) == 120
    subscriptions.enable(switched)
    assert set(statuses(subscription=switched)) == {"pending"}


def test_enabling_a_subscription_that_was_just_deleted_opens_nothing(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 3)
    subscriptions.delete(type(subscription).objects.get(pk=subscription.pk))
    subscriptions.enable(subscription)
    assert not queue_of(subscription).accepts_deliveries
    assert claim(10).deliveries == []
    assert statuses() == ["cancelled"] * 3


def test_no_more_subscriptions_are_made_at_once_than_an_organization_may_have(
    organization: Organization, settings: Any
) -> None:
    settings.MAX_SUBSCRIPTIONS = 3

    def work(number: int) -> int:
        try:
            subscribe(organization)
            return 1
        except subscriptions.TooManySubscriptions:
            return 0

    assert sum(in_threads(8, work)) == 3


def test_changing_a_url_while_its_results_disable_it_is_no_deadlock(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 40)

    def work(number: int) -> None:
        for round_number in range(20):
            if number % 2:
                subscriptions.change(subscription, {"url": f"http://127.0.0.1:9/{round_number}"})
            else:
                record_results([result(c, 410) for c in claim(1).deliveries])
                subscriptions.enable(subscription)

    in_threads(4, work)
    assert recount_in_flight() == 0
