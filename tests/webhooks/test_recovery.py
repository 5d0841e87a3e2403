"""A recovery queues what a subscription missed: in the background, with progress, once, whatever dies meanwhile."""

from __future__ import annotations

import datetime
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from devstack.processes import Process
from devstack.waiting import wait_until
from events.erasure import erase
from events.models import Event
from orgs.models import Organization
from tests.servers import postgres
from tests.webhooks.helpers import accept, in_threads, queue_of, result, statuses, subscribe
from webhooks import subscriptions
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import BulkRun, Delivery, SubscriptionQueue
from webhooks.upkeep import background_runs, recovery
from webhooks.upkeep.preview import preview_recovery
from webhooks.upkeep.sweep import Sweep

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def _sweep() -> None:
    Sweep(lambda: None).run()


def _missed(organization: Organization, count: int) -> Any:
    """Return a subscription that was made after `count` events were fanned out."""
    accept(organization, count)
    return subscribe(organization)


@pytest.mark.django_db
def test_what_was_missed_is_queued_once_and_progress_is_shown(organization: Organization, api: Any) -> None:
    subscription = _missed(organization, 7)
    answer = api.post(f"/api/subscriptions/{subscription.pk}/recover", {"since": LONG_AGO.isoformat()})
    assert answer.status_code == 202
    run = uuid.UUID(answer.json()["id"])
    assert answer.json()["status"] == "running"
    assert Delivery.objects.count() == 0  # not in the request
    recovery.advance(run, 3)
    shown = api.get(answer["Location"]).json()
    assert (shown["status"], shown["queued"]) == ("running", 3)
    _sweep()
    shown = api.get(answer["Location"]).json()
    assert (shown["status"], shown["queued"]) == ("done", 7)
    assert shown["finished_at"]
    assert statuses() == ["pending"] * 7
    assert len(claim(100).deliveries) > 0


@pytest.mark.django_db
def test_only_what_it_wants_since_then_and_has_not_received_is_queued(organization: Organization) -> None:
    (old,) = accept(organization, 1, kind="order.old")
    Event.objects.filter(id=old).update(created_at=LONG_AGO)
    accept(organization, 2, kind="order.new")
    accept(organization, 2, kind="invoice.new")
    subscription = subscribe(organization, event_types=["order.*"])
    other = subscribe(organization)
    accept(organization, 1, kind="order.received")
    for claimed in claim(100).deliveries:
        record_results([result(claimed)])
    run = recovery.start(subscription, LONG_AGO + datetime.timedelta(days=1))
    recovery.advance(run.id)
    types = Delivery.objects.filter(subscription=subscription).values_list("event__type", "status")
    assert sorted(types) == [("order.new", "pending"), ("order.new", "pending"), ("order.received", "delivered")]
    assert statuses(subscription=other) == ["delivered"]


@pytest.mark.django_db
@pytest.mark.parametrize("active", [True, False])
def test_what_failed_for_good_is_queued_anew_and_held_while_the_subscription_is_disabled(
    organization: Organization, settings: Any, active: bool
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0,)
    subscription = subscribe(organization)
    accept(organization, 3)
    record_results([result(c, 500) for c in claim(100).deliveries])
    assert statuses() == ["failed"] * 3
    if not active:
        subscriptions.disable(subscription)
    run = recovery.advance(recovery.start(subscription, LONG_AGO).id)
    assert run is not None
    assert run.queued == 3
    assert statuses() == ["pending" if active else "held"] * 3
    subscriptions.enable(subscription)
    SubscriptionQueue.objects.update(concurrency_window=100, paused_until=None)
    taken = claim(100).deliveries
    assert [(c.cause, c.attempts_used) for c in taken] == [("replay", 0)] * 3


@pytest.mark.django_db
def test_a_second_request_joins_the_recovery_that_runs_and_may_reach_further_back(organization: Organization) -> None:
    subscription = _missed(organization, 6)
    now = datetime.datetime.now(datetime.UTC)
    first = recovery.start(subscription, now - datetime.timedelta(hours=1))
    recovery.advance(first.id, 2)
    again = recovery.start(subscription, now - datetime.timedelta(minutes=30))
    assert (again.id, again.cursor_id is None) == (first.id, False)
    further = recovery.start(subscription, LONG_AGO)
    assert (further.id, further.cursor_id) == (first.id, None)
    assert datetime.datetime.fromisoformat(further.filters["since"]) == LONG_AGO
    recovery.advance(first.id)
    assert BulkRun.objects.get().queued == 6
    assert Delivery.objects.count() == 6
    assert recovery.start(subscription, LONG_AGO).id != first.id  # that one is done


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_requests_one_recovery_is_begun(organization: Organization) -> None:
    subscription = _missed(organization, 1)
    runs = in_threads(6, lambda _: recovery.start(subscription, LONG_AGO).id)
    assert len(set(runs)) == 1
    assert BulkRun.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_take_no_chunk_twice(organization: Organization) -> None:
    subscription = _missed(organization, 60)
    run = recovery.start(subscription, LONG_AGO)

    def work(number: int) -> None:
        while BulkRun.objects.get(id=run.id).state == "running":
            recovery.advance(run.id, 5)

    in_threads(3, work)
    run.refresh_from_db()
    assert (run.state, run.queued, Delivery.objects.count()) == ("done", 60, 60)


@pytest.mark.django_db(transaction=True)
def test_a_recovery_whose_process_is_killed_in_a_chunk_goes_on_where_it_was(
    organization: Organization, tmp_path: Path
) -> None:
    subscription = _missed(organization, 40)
    run = recovery.start(subscription, LONG_AGO)
    program = (
        "import django; django.setup()\n"
        "import sys, uuid\n"
        "from webhooks.upkeep import background_runs, recovery\n"
        "while recovery.advance(uuid.UUID(sys.argv[1]), 5).state == 'running': pass\n"
    )
    environment = {**os.environ, "DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}
    recovery.advance(run.id, 5)
    process = Process("recovery", [sys.executable, "-c", program, str(run.id)], tmp_path / "log", environment)
    with transaction.atomic():
        # The chunk needs the queue at its end: so the process waits with its deliveries made and not committed.
        SubscriptionQueue.objects.select_for_update().get(pk=subscription.pk)
        process.start()

        def is_waiting() -> bool:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(cursor.fetchone()[0])

        wait_until(is_waiting, timeout=50)
        process.kill()
    wait_until(lambda: recovery.advance(run.id, 5) is not None)  # the server noticed that the process is gone
    run.refresh_from_db()
    assert run.state == "running"
    assert (run.queued, Delivery.objects.count()) == (10, 10)
    while BulkRun.objects.get(id=run.id).state == "running":
        _sweep()
    run.refresh_from_db()
    assert (run.queued, Delivery.objects.count()) == (40, 40)


@pytest.mark.django_db
def test_a_chunk_that_is_rolled_back_is_done_again(organization: Organization) -> None:
    subscription = _missed(organization, 10)
    run = recovery.start(subscription, LONG_AGO)
    recovery.advance(run.id, 4)
    with transaction.atomic():
        recovery.advance(run.id, 4)
        transaction.set_rollback(True)
    assert Delivery.objects.count() == 4
    while recovery.advance(run.id, 4).state == "running":  # type: ignore[union-attr]
        pass
    run.refresh_from_db()
    assert (run.queued, Delivery.objects.count()) == (10, 10)


@pytest.mark.django_db(transaction=True)
def test_recoveries_take_turns_and_one_that_cannot_go_on_stops_no_other(
    organization: Organization, other_organization: Organization
) -> None:
    accept(organization, 3)
    broken = [recovery.start(subscribe(organization), LONG_AGO).id for _ in range(background_runs.RUNS_AT_A_TIME + 5)]
    BulkRun.objects.filter(id__in=broken).update(filters={})  # as only a hand could
    fine = recovery.start(_missed(other_organization, 3), LONG_AGO)
    for _ in range(200):
        _sweep()
        fine.refresh_from_db()
        if fine.state == "done":
            break
    assert (fine.state, fine.queued) == ("done", 3)
    assert set(BulkRun.objects.filter(id__in=broken).values_list("state", flat=True)) == {"running"}


@pytest.mark.django_db(transaction=True)
def test_runs_that_take_longer_than_a_slice_are_left_to_another_process_once_there_is_one(
    organization: Organization, other_organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhooks.upkeep.sweep.RUN_SLICE_SECONDS", 0.0)
    for owner in (organization, other_organization):
        recovery.start(_missed(owner, 3), LONG_AGO)
    asked: list[bool] = []
    is_there = False

    def take_over() -> bool:
        asked.append(is_there)
        return is_there

    sweep = Sweep(lambda: None, take_over)

    def visits() -> int:
        sweep.run()
        return sum(BulkRun.objects.values_list("visited", flat=True))

    assert (visits(), asked) == (3, [])  # it begins by itself
    is_there = True
    assert [visits(), visits()] == [3, 3]
    assert asked == [True, True]
    is_there = False
    assert (visits(), asked) == (6, [True, True, False])
    visits()  # sees that nothing is left
    BulkRun.objects.update(state=BulkRun.State.RUNNING)
    asked.clear()
    visits()
    assert asked == []  # the next one may be short


@pytest.mark.django_db
def test_a_recovery_of_a_subscription_that_was_deleted_ends(organization: Organization) -> None:
    subscription = _missed(organization, 3)
    run = recovery.start(subscription, LONG_AGO)
    subscriptions.delete(subscription)
    recovery.advance(run.id)
    run.refresh_from_db()
    assert run.state == "done"
    assert Delivery.objects.count() == 0
    assert not queue_of(subscription).accepts_deliveries


@pytest.mark.django_db
def test_an_erased_event_is_not_recovered(organization: Organization) -> None:
    subscription = _missed(organization, 2)
    erase(organization.id, Event.objects.order_by("id")[0].pk)
    assert preview_recovery(subscription, LONG_AGO).wanted == 1
    run = recovery.start(subscription, LONG_AGO)
    recovery.advance(run.id)
    run.refresh_from_db()
    assert (run.state, run.queued) == ("done", 1)
