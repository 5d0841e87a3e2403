"""The rollups agree with the attempts, deliveries and events that they stand for, whatever happens on the way."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.db.models import F, Sum
from django.db.models.functions import Now
from django.utils import timezone

from orgs.models import Organization
from tests.webhooks.helpers import accept, in_threads, result, subscribe
from webhooks import rollups, stats, subscriptions
from webhooks.destinations.inbox import fetching
from webhooks.destinations.outcome import Failure
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import expire
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, DeliveryAttempt, Gauge, Rollup, Subscription, SubscriptionQueue

pytestmark = pytest.mark.django_db


def counted(subscription_id: uuid.UUID, organization_id: uuid.UUID, step: int = 1) -> dict[str, tuple[int, int]]:
    """Return attempts and settled deliveries by outcome, over all periods of a step."""
    rows = Rollup.objects.filter(step=step, subscription_id=subscription_id, organization_id=organization_id)
    sums = rows.values("outcome").annotate(a=Sum("attempts"), s=Sum("settled"))
    return {row["outcome"]: (row["a"], row["s"]) for row in sums}


def make_older(minutes: int) -> None:
    """Move all that was recorded so far into the past."""
    with connection.cursor() as cursor:
        for table, column in (
            ("webhooks_rollup", "at"), ("webhooks_gauge", "at"), ("events_event", "created_at"),
        ):  # fmt: skip
            cursor.execute(f"UPDATE {table} SET {column} = {column} - make_interval(mins => %s)", [minutes])


def test_every_attempt_is_counted_by_its_outcome_with_what_became_of_the_delivery(
    organization: Organization, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0,)
    subscription = subscribe(organization)
    accept(organization, 6)
    SubscriptionQueue.objects.update(concurrency_window=100)
    taken = claim(10).deliveries
    record_results([
        result(taken[0]), result(taken[1]), result(taken[2], 503), result(taken[3], 599),
        result(taken[4], None, Failure.TIMEOUT),
    ])  # fmt: skip
    record_results([result(taken[5])])
    assert counted(subscription.pk, organization.pk) == {
        "delivered": (3, 3), "http_status 503": (1, 1), "http_status 5xx": (1, 1), "timeout": (1, 1),
    }  # fmt: skip
    row = Rollup.objects.get(outcome="delivered")
    assert (sum(row.durations), row.duration_ms) == (3, 4.5)
    assert row.durations[0] == 3, "1.5 ms is in the first bucket"
    assert sum(row.latencies) == 3
    assert len(row.durations) == len(row.latencies) == rollups.BUCKETS


def test_a_failure_that_is_tried_again_settles_nothing_and_a_late_result_is_an_attempt(
    organization: Organization,
) -> None:
    subscription = subscribe(organization)
    accept(organization, 2)
    retried, late = claim(10).deliveries
    record_results([result(retried, 500)])
    Delivery.objects.filter(pk=late.delivery_id).update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    assert expire() == 1
    record_results([result(late)])
    assert counted(subscription.pk, organization.pk) == {
        "http_status 500": (1, 0), "worker_lost": (1, 0), "delivered": (1, 0),
    }  # fmt: skip
    assert DeliveryAttempt.objects.count() == 3


def test_a_result_that_is_not_stored_is_not_counted(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    with pytest.raises(Exception, match=r"null character|NUL"):
        record_results([result(claimed, 500, retry_after=None, body="x"), _unstorable(claimed)])
    assert not Rollup.objects.exists()


def _unstorable(claimed: Any) -> Any:
    return result(msgspec.structs.replace(claimed, cause="\x00"))


def test_what_is_sent_again_by_hand_says_nothing_about_the_latency(organization: Organization) -> None:
    subscribe(organization)
    accept(organization)
    Delivery.objects.update(cause="replay")
    (claimed,) = claim(10).deliveries
    record_results([result(claimed)])
    row = Rollup.objects.get()
    assert (sum(row.durations), sum(row.latencies)) == (1, 0)


@pytest.mark.django_db(transaction=True)
def test_many_workers_that_record_for_the_same_endpoints_lose_no_count(organization: Organization) -> None:
    for _ in range(3):
        subscribe(organization)
    accept(organization, 40)
    SubscriptionQueue.objects.update(concurrency_window=1000)
    taken = claim(1000).deliveries
    assert len(taken) == 120

    def record(worker: int) -> None:
        mine = [one for number, one in enumerate(taken) if number % 4 == worker]
        for start in range(0, len(mine), 5):
            record_results([result(one, 200 if start % 2 else 500) for one in mine[start : start + 5]])

    in_threads(4, record)
    total = Rollup.objects.aggregate(total=Sum("attempts"))["total"]
    assert total == DeliveryAttempt.objects.count() == 120


def test_the_sweep_sums_up_minutes_for_organizations_for_all_and_for_longer_periods(
    organization: Organization, other_organization: Organization
) -> None:
    ours, second, theirs = subscribe(organization), subscribe(organization), subscribe(other_organization)
    accept(organization, 2)
    accept(other_organization, 3)
    record_results([result(one, 500 if one.subscription_id == second.pk else 200) for one in claim(100).deliveries])
    make_older(60)
    assert rollups.keep_rollups()
    assert not rollups.keep_rollups(), "once a minute"
    for step in rollups.STEPS:
        assert counted(ours.pk, organization.pk, step) == {"delivered": (2, 2)}
        assert counted(theirs.pk, other_organization.pk, step) == {"delivered": (3, 3)}
        assert counted(rollups.NO_ID, organization.pk, step) == {
            "delivered": (2, 2), "http_status 500": (2, 0), "accepted": (2, 0),
        }  # fmt: skip
        assert counted(rollups.NO_ID, rollups.NO_ID, step) == {
            "delivered": (5, 5), "http_status 500": (2, 0), "accepted": (5, 0),
        }  # fmt: skip
    before = counted(rollups.NO_ID, rollups.NO_ID, 60)
    now = timezone.now()
    rollups.sum_up(now - datetime.timedelta(hours=3), now)
    assert counted(rollups.NO_ID, rollups.NO_ID, 60) == before, "summing up twice doubled something"
    long_ago = now - datetime.timedelta(hours=8)
    Rollup.objects.filter(step=1).update(at=long_ago)
    Gauge.objects.filter(step=1).update(at=long_ago)
    assert rollups.keep_rollups()
    assert not Rollup.objects.filter(step=1, at=long_ago).exists()


def _record(subscription: Subscription, at: datetime.datetime) -> None:
    """Let an attempt have been recorded in a minute."""
    nothing = [0] * rollups.BUCKETS
    Rollup.objects.create(
        step=1, organization_id=subscription.organization_id, subscription_id=subscription.pk, at=at,
        outcome="delivered", attempts=1, settled=1, duration_ms=1, durations=nothing, latencies=nothing,
    )  # fmt: skip


def test_what_was_recorded_late_is_summed_up_with_all_of_its_period(organization: Organization) -> None:
    subscription = subscribe(organization)
    assert rollups.keep_rollups()
    last = Gauge.objects.filter(step=1).latest("at").at
    Gauge.objects.update(at=F("at") - datetime.timedelta(minutes=1))
    _record(subscription, last - datetime.timedelta(minutes=2))
    assert rollups.keep_rollups()
    assert counted(rollups.NO_ID, organization.pk) == {"delivered": (1, 1)}
    hour = last.replace(minute=0) - datetime.timedelta(hours=3)
    for minutes in (1, 31):
        _record(subscription, hour + datetime.timedelta(minutes=minutes))
    rollups.sum_up(hour, hour + datetime.timedelta(hours=1))
    rollups.sum_up(hour + datetime.timedelta(minutes=30), hour + datetime.timedelta(hours=1))
    of_hour = Rollup.objects.get(step=60, subscription_id=subscription.pk, at=hour)
    assert of_hour.attempts == 2


def test_gauges_tell_what_could_be_sent_from_what_waits_behind_something(
    organization: Organization, other_organization: Organization
) -> None:
    due, paused, limited, disabled, busy, half_open = (subscribe(organization) for _ in range(6))
    inbox, _ = subscriptions.create(organization.id, inbox="orders", event_types=["*"])
    accept(organization, 2)
    lease, [given_back] = fetching.fetch(inbox.pk, 1, 60)
    fetching.give_back(inbox.pk, [given_back.delivery_id], lease_id=lease)
    fetching.fetch(inbox.pk, 1, 60)  # what a consumer has, and what waits in an inbox, is neither due nor retrying
    subscribe(other_organization)
    accept(other_organization)
    queues = SubscriptionQueue.objects
    later = timezone.now() + datetime.timedelta(hours=1)
    queues.filter(pk=paused.pk).update(paused_until=later)
    Subscription.objects.filter(pk=limited.pk).update(deliveries_per_second=0.01)
    queues.filter(pk=limited.pk).update(next_due_at=later)
    queues.filter(pk=busy.pk).update(in_flight=F("concurrency_window"))
    queues.filter(pk=half_open.pk).update(breaker_trips=1)
    first = Delivery.objects.filter(pk__in=Delivery.objects.filter(subscription=due)[:1])
    first.update(next_attempt_at=later, last_error="timeout")
    Delivery.objects.filter(pk__in=Delivery.objects.filter(subscription=paused)[:1]).update(last_error="timeout")
    subscriptions.disable(Subscription.objects.get(pk=disabled.pk))
    rollups.keep_rollups()
    row = Gauge.objects.get(step=1, organization_id=organization.pk)
    assert (row.due, row.retrying, row.paused, row.rate_limited, row.held) == (1, 2, 6, 2, 2)
    assert row.retrying == stats.retrying_deliveries(100), "what is retrying may be paused, too"
    due_now, all_paused = stats.waiting_deliveries(100)
    assert row.due + row.paused + row.rate_limited + row.held == sum([due_now - 1, *all_paused.values()]), (
        "the chart and the figures beside it mean the same"
    )
    of_all = Gauge.objects.get(step=1, organization_id=rollups.NO_ID)
    assert (of_all.due, of_all.paused, of_all.workers, of_all.places) == (2, 6, 0, 0)
    assert Gauge.objects.get(step=60, organization_id=rollups.NO_ID).due == 2


def test_a_quiet_minute_has_a_gauge_of_zeros_and_one_without_workers_has_none() -> None:
    rollups.keep_rollups()
    Gauge.objects.update(at=F("at") - datetime.timedelta(minutes=5))
    rollups.keep_rollups()
    minutes = [row.at for row in Gauge.objects.filter(step=1).order_by("at")]
    assert len(minutes) == 2
    assert minutes[1] - minutes[0] >= datetime.timedelta(minutes=5)
    assert set(Gauge.objects.values_list("due", "in_flight")) == {(0, 0)}


def test_what_takes_too_long_to_count_is_a_gap_and_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "_SAMPLE", f"SELECT pg_sleep(30) /* {rollups._SAMPLE} */".replace("%", "%%"))
    monkeypatch.setattr(rollups, "SAMPLE_TIMEOUT_MS", 50)
    assert rollups.keep_rollups()
    assert Gauge.objects.get(step=1).due is None


def test_old_periods_go_and_longer_ones_stay_longer(organization: Organization, settings: Any) -> None:
    settings.ROLLUP_RETENTION_DAYS = 30
    subscribe(organization)
    accept(organization)
    record_results([result(claim(1).deliveries[0])])
    make_older(5)
    rollups.keep_rollups()
    steps = []
    for hours in (8, 26, 24 * 9, 24 * 31):
        Rollup.objects.update(at=timezone.now() - datetime.timedelta(hours=hours))
        Gauge.objects.update(at=timezone.now() - datetime.timedelta(hours=hours))
        rollups._delete_old()
        assert {*Rollup.objects.values_list("step")} == {*Gauge.objects.values_list("step")}
        steps.append(sorted({step for (step,) in Rollup.objects.values_list("step")}))
    assert steps == [[10, 60, 1440], [60, 1440], [1440], []]
