"""Results become attempts, deliveries and queues, once, whatever is in them and however late they come."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from orgs.models import Organization
from tests.webhooks.helpers import accept, queue_of, result, statuses, subscribe
from webhooks import subscriptions
from webhooks.destinations.outcome import Failure
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import MAX_WORKERS_LOST, expire, release
from webhooks.dispatch.record import record_each, record_results
from webhooks.dispatch.recorder import FEW_RESULTS, next_batch
from webhooks.models import Delivery, DeliveryAttempt, SubscriptionQueue

pytestmark = pytest.mark.django_db


def test_an_attempt_says_when_how_long_what_and_why(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    record_results([result(claimed, 503, body="busy", detail="The endpoint responded with 503.")])
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.number, attempt.cause, attempt.status_code) == (1, "schedule", 503)
    assert (attempt.error, attempt.error_detail) == ("http_status", "The endpoint responded with 503.")
    assert (attempt.response_body, attempt.duration_ms) == ("busy", 1.5)
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.attempts_used, delivery.attempt_count) == ("pending", 1, 1)
    assert (delivery.last_status_code, delivery.last_error, delivery.lease_id) == (503, "http_status", None)


def test_recording_tells_whether_a_queue_had_no_room_for_what_may_wait(
    organization: Organization, settings: Any
) -> None:
    subscription = subscribe(organization)
    accept(organization, 5)
    SubscriptionQueue.objects.update(concurrency_window=3)
    taken = claim(10).deliveries
    assert len(taken) == 3
    assert record_results([result(taken[0])]) is True, "three of three places were taken"
    assert queue_of(subscription).in_flight == 2
    assert record_results([result(taken[1], 500)]) is False, "two of four were"
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 0.0, 5.0)
    assert record_results([result(taken[2], 500)]) is True, "it is due again at once"


def test_results_of_an_organization_with_few_are_recorded_apart_from_those_of_one_with_many(
    organization: Organization, other_organization: Organization
) -> None:
    for owner in (organization, other_organization):
        subscribe(owner)
    accept(organization, FEW_RESULTS + 10)
    accept(other_organization, 2)
    SubscriptionQueue.objects.update(concurrency_window=100)
    results = [result(one) for one in claim(100).deliveries]
    few = [one for one in results if one.delivery.organization_id == other_organization.pk]
    many = [one for one in results if one.delivery.organization_id == organization.pk]
    assert (len(few), len(many)) == (2, FEW_RESULTS + 10)
    mixed = [*many[:5], few[0], *many[5:], few[1]]
    assert next_batch(mixed) == (few, many)
    assert next_batch(many) == (many, [])
    assert next_batch(few) == (few, [])


def test_every_entry_of_the_schedule_is_used_and_then_it_has_failed(organization: Organization, settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0, 300.0)
    settings.DELIVERY_RETRY_JITTER = 0.0
    subscribe(organization)
    accept(organization)
    waits = []
    for _ in range(3):
        Delivery.objects.update(next_attempt_at=Now())
        SubscriptionQueue.objects.update(next_due_at=Now(), paused_until=None)
        (claimed,) = claim(10).deliveries
        record_results([result(claimed, 500)])
        delivery = Delivery.objects.get()
        if delivery.next_attempt_at is not None:
            at = delivery.next_attempt_at.timestamp()
            with connection.cursor() as cursor:
                cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                waits.append(at - cursor.fetchone()[0])
    assert [round(wait / 5) for wait in waits] == [1, 60]
    assert (delivery.status, delivery.attempts_used) == ("failed", 3)
    assert delivery.completed_at is not None
    assert list(DeliveryAttempt.objects.values_list("number", flat=True).order_by("id")) == [1, 2, 3]


def test_a_result_that_comes_after_its_lease_changes_nothing_but_the_attempts(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    (first,) = claim(10).deliveries
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    assert expire() == 1
    (second,) = claim(10).deliveries
    record_results([result(first, 500)])
    assert statuses() == ["delivering"]
    assert Delivery.objects.get().lease_id == second.lease_id
    assert queue_of(subscription).in_flight == 1
    record_results([result(second)])
    assert statuses() == ["delivered"]
    assert queue_of(subscription).in_flight == 0
    errors = DeliveryAttempt.objects.order_by("number").values_list("number", "error")
    assert list(errors) == [(1, "worker_lost"), (2, "http_status"), (3, "")]


@pytest.mark.parametrize("order", [1, -1])
def test_a_late_result_beside_the_one_that_counts_leaves_both_as_attempts(
    organization: Organization, order: int
) -> None:
    """While the database is away a worker may gather both, and write them together."""
    subscription = subscribe(organization)
    accept(organization)
    (late,) = claim(100).deliveries
    release([late.lease_id])
    (own,) = claim(100).deliveries
    record_results([result(late, 500), result(own)][::order])
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.attempt_count) == ("delivered", 2)
    assert sorted(DeliveryAttempt.objects.values_list("number", flat=True)) == [1, 2]
    assert queue_of(subscription).in_flight == 0


def _refuse_attempts(condition: str) -> None:
    """Make the database itself refuse attempts, as a broken disk page or somebody's trigger might."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"ALTER TABLE webhooks_deliveryattempt ADD CONSTRAINT poison CHECK (NOT ({condition})) NOT VALID"
        )


def test_an_answer_that_the_database_refuses_is_recorded_without_its_words(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 3)
    _refuse_attempts("response_body LIKE '%poison%'")
    taken = claim(10).deliveries
    results = [result(c, 500 if n == 1 else 200, body="poison" if n == 1 else "ok") for n, c in enumerate(taken)]
    assert record_each(results)[0] == []
    assert statuses() == ["delivered", "delivered", "pending"]
    attempt = DeliveryAttempt.objects.get(status_code=500)
    assert (attempt.response_body, attempt.error_detail) == ("", "The response could not be stored.")
    assert queue_of(subscription).in_flight == 0


def test_a_result_that_the_database_refuses_altogether_holds_back_no_other_and_has_a_way_out(
    organization: Organization,
) -> None:
    subscription = subscribe(organization)
    accept(organization, 3)
    _refuse_attempts("status_code = 418")
    taken = claim(10).deliveries
    poison = taken[1].delivery_id
    assert record_each([result(c, 418 if n == 1 else 200) for n, c in enumerate(taken)])[0] == []
    assert statuses() == ["delivered", "delivered", "delivering"]
    # Recorded once each: what went well isn't written again because a neighbor can't be.
    assert DeliveryAttempt.objects.count() == 2
    Delivery.objects.filter(id=poison).update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    assert expire() == 1
    assert Delivery.objects.get(id=poison).status == "pending"
    assert queue_of(subscription).in_flight == 0


def test_a_delivery_that_its_workers_die_of_waits_longer_each_time_and_is_given_up(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    waits = []
    for _ in range(MAX_WORKERS_LOST):
        Delivery.objects.update(next_attempt_at=Now())
        assert len(claim(10).deliveries) == 1
        Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
        assert expire() == 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM webhooks_delivery")
            waits.append(float(cursor.fetchone()[0]))
    assert waits[0] <= 0
    assert waits[:11] == sorted(set(waits[:11]))
    assert max(waits) <= 3600
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.last_error) == ("failed", "worker_lost")
    assert delivery.attempt_count == MAX_WORKERS_LOST
    assert queue_of(delivery.subscription).in_flight == 0


def test_one_lost_worker_costs_no_attempt_and_no_wait(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    claim(10)
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    expire()
    (again,) = claim(10).deliveries
    assert again.attempts_used == 0
    record_results([result(again, 500)])
    # What happened in between counts from there anew.
    Delivery.objects.update(next_attempt_at=Now())
    SubscriptionQueue.objects.update(next_due_at=Now())
    claim(10)
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    expire()
    assert len(claim(10).deliveries) == 1


def test_failures_for_long_enough_disable_the_subscription_and_a_success_starts_the_count_anew(
    organization: Organization, settings: Any
) -> None:
    settings.DISABLE_AFTER_FAILING_FOR = 3600.0
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0)
    subscription = subscribe(organization)
    accept(organization, 4)
    taken = claim(10).deliveries
    record_results([result(taken[0], 500)])
    SubscriptionQueue.objects.update(failing_since=Now() - datetime.timedelta(hours=2))
    record_results([result(taken[1])])
    subscription.refresh_from_db()
    assert subscription.is_active
    assert queue_of(subscription).failing_since is None
    assert queue_of(subscription).recent_failures == []
    record_results([result(taken[2], 500)])
    SubscriptionQueue.objects.update(failing_since=Now() - datetime.timedelta(hours=2))
    record_results([result(taken[3], failure=Failure.TIMEOUT, status=None)])
    subscription.refresh_from_db()
    assert not subscription.is_active
    assert (subscription.disabled_cause, subscription.disabled_reason) == (
        "always_failed", "Every delivery failed for 0.1 days."
    )  # fmt: skip
    assert not queue_of(subscription).accepts_deliveries


def test_failures_of_long_ago_do_not_let_the_first_one_after_a_silence_disable_the_subscription(
    organization: Organization, settings: Any
) -> None:
    settings.DISABLE_AFTER_FAILING_FOR = 3600.0
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0, 5.0)
    settings.BREAKER_THRESHOLD = 0
    subscription = subscribe(organization)
    SubscriptionQueue.objects.update(concurrency_window=100)
    accept(organization, 7)
    taken = claim(10).deliveries
    for claimed in taken[:4]:
        record_results([result(claimed, 500)])
    assert len(queue_of(subscription).recent_failures) == 3  # as many as the schedule holds
    long_ago = timezone.now() - datetime.timedelta(hours=2)
    SubscriptionQueue.objects.update(failing_since=long_ago, recent_failures=[long_ago] * 3)
    for claimed, still_active in zip(taken[4:], [True, True, False], strict=True):
        record_results([result(claimed, 500)])
        subscription.refresh_from_db()
        assert subscription.is_active is still_active


def test_a_late_result_says_nothing_about_the_delivery_or_its_endpoint(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    (late,) = claim(10).deliveries
    Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    expire()
    (good,) = claim(10).deliveries
    record_results([result(good)])
    before = queue_of(subscription)
    record_results([result(late, 410, body="gone")])
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.last_status_code, delivery.last_error) == ("delivered", 200, "")
    after = queue_of(subscription)
    assert (after.consecutive_failures, after.failing_since, after.accepts_deliveries) == (0, None, True)
    assert after.concurrency_window == before.concurrency_window
    assert DeliveryAttempt.objects.filter(status_code=410).count() == 1


def test_the_breaker_opens_while_the_endpoint_s_retry_after_runs(organization: Organization, settings: Any) -> None:
    settings.BREAKER_THRESHOLD = 3
    subscription = subscribe(organization)
    SubscriptionQueue.objects.update(concurrency_window=100)
    accept(organization, 4)
    for claimed in claim(10).deliveries:
        record_results([result(claimed, 503, retry_after="30")])
    assert queue_of(subscription).breaker_trips == 1


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_a_retry_is_spread_by_the_jitter_of_the_settings(
    organization: Organization, settings: Any, jitter: float
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 10_000.0)
    settings.DELIVERY_RETRY_JITTER = jitter
    settings.BREAKER_THRESHOLD = 0
    subscribe(organization)
    SubscriptionQueue.objects.update(concurrency_window=100)
    accept(organization, 40)
    record_results([result(claimed, 500) for claimed in claim(100).deliveries])
    times = sorted(Delivery.objects.values_list("next_attempt_at", flat=True))
    spread = (times[-1] - times[0]).total_seconds()
    assert spread < 60 if jitter == 0.0 else spread > 1_000


@pytest.mark.parametrize(("status", "becomes"), [(200, "delivered"), (500, "cancelled"), (410, "cancelled")])
def test_what_is_in_flight_to_a_deleted_subscription_ends_there(
    organization: Organization, status: int, becomes: str
) -> None:
    subscription = subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    subscriptions.delete(subscription)
    record_results([result(claimed, status)])
    assert statuses() == [becomes]
    assert Delivery.objects.get().completed_at is not None
    assert queue_of(subscription).in_flight == 0


def test_what_is_in_flight_to_a_disabled_subscription_is_held_with_its_attempt(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    subscriptions.disable(subscription)
    record_results([result(claimed, 500)])
    assert statuses() == ["held"]
    assert DeliveryAttempt.objects.count() == 1
    subscriptions.enable(subscription)
    assert len(claim(10).deliveries) == 1


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\x00b\udfff", "\U0001f600" * 300])
def test_what_postgresql_cannot_hold_is_replaced(organization: Organization, text: str) -> None:
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    assert record_each([result(claimed, 500, body=text, detail=text)])[0] == []
    attempt = DeliveryAttempt.objects.get()
    assert "\x00" not in attempt.response_body + attempt.error_detail
    assert attempt.error_detail != "The response could not be stored."


def test_a_failure_of_any_kind_leaves_no_window_beyond_the_subscription_s_own_limit(organization: Organization) -> None:
    subscription = subscribe(organization, max_in_flight=3)
    accept(organization)
    [claimed] = claim(10).deliveries
    SubscriptionQueue.objects.update(concurrency_window=10)  # the limit was lowered since
    record_results([result(claimed, 400)])
    assert queue_of(subscription).concurrency_window == 3


def test_the_longest_retry_after_of_a_batch_pauses_the_queue(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization, 3)
    asked = [None, "1000", "10"]
    before = timezone.now()
    record_results([result(c, 429, retry_after=wait) for c, wait in zip(claim(10).deliveries, asked, strict=True)])
    paused_until = queue_of(subscription).paused_until
    assert paused_until is not None
    assert paused_until >= before + datetime.timedelta(seconds=999)


@pytest.mark.parametrize(("delay", "asked", "longer"), [(5.0, 1000, 1000), (2000.0, 1000, 2000)])
def test_the_next_attempt_waits_for_the_schedule_and_for_retry_after(
    organization: Organization, settings: Any, delay: float, asked: int, longer: float
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, delay)
    settings.DELIVERY_RETRY_JITTER = 0.0
    subscribe(organization)
    accept(organization)
    [claimed] = claim(10).deliveries
    before = timezone.now()
    record_results([result(claimed, 503, retry_after=str(asked))])
    after = timezone.now()
    next_attempt_at = Delivery.objects.get().next_attempt_at
    assert next_attempt_at is not None
    wait = datetime.timedelta(seconds=longer)
    assert before + wait <= next_attempt_at <= after + wait
