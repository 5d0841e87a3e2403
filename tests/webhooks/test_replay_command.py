"""`manage.py replay_deliveries`: exactly what its filters say, counted, paced, shown, resumable."""

from __future__ import annotations

import datetime
import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from devstack.waiting import wait_until
from events.models import ERASED, Event
from orgs.models import AuditEntry, Organization
from tests.servers import postgres
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, Subscription, SubscriptionQueue

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)


def replay(*arguments: str) -> tuple[str, str]:
    """Run the command in this process; return its stdout and stderr."""
    out, err = StringIO(), StringIO()
    call_command("replay_deliveries", *arguments, "--rate", "100000", stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def add(subscription: Subscription, status: str = "failed", at: datetime.datetime = NOW - HOUR) -> Delivery:
    event = Event.objects.create(organization=subscription.organization, type="a", data="1", status="processed")
    return Delivery.objects.create(
        organization=subscription.organization, event=event, subscription=subscription, status=status, created_at=at,
        completed_at=at, attempts_used=8, attempt_count=8, next_attempt_at=at,
    )  # fmt: skip


def add_many(subscription: Subscription, count: int, status: str = "failed") -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause,"
            " attempts_used, attempt_count, last_error, created_at)"
            " SELECT gen_random_uuid(), %s, gen_random_uuid(), %s, %s, 'schedule', 8, 8, '',"
            "        clock_timestamp() - make_interval(secs => n) FROM generate_series(1, %s) AS n",
            [subscription.organization_id, subscription.pk, status, count],
        )


@pytest.fixture
def other_subscription(other_organization: Organization) -> Subscription:
    """Return a subscription of the other organization."""
    return subscriptions.create(other_organization.id, url="http://127.0.0.1:9/", event_types=["*"])[0]


def replayed() -> set[uuid.UUID]:
    return set(Delivery.objects.filter(status="pending", cause="replay").values_list("id", flat=True))


def test_what_was_erased_is_left_alone_and_the_preview_says_so(subscription: Subscription) -> None:
    erased, other = add(subscription), add(subscription)
    Event.objects.filter(pk=erased.event_id).update(data=ERASED)
    out, _ = replay("--status", "failed", "--dry-run")
    assert "1 deliveries would be replayed." in out
    assert "1 more would be left alone, because their events' payloads were erased" in out
    out, _ = replay("--status", "failed")
    assert out == "1 deliveries replayed.\n"
    assert replayed() == {other.pk}
    run = BulkRun.objects.get()
    assert (run.visited, run.queued, run.total) == (2, 1, 2)


def test_a_replay_starts_the_schedule_anew_and_says_how_many_it_did(subscription: Subscription) -> None:
    deliveries = [add(subscription) for _ in range(3)]
    out, err = replay("--status", "failed")
    assert out == "3 deliveries replayed.\n"
    run = BulkRun.objects.get()
    assert f"--resume {run.id}" in err
    for delivery in deliveries:
        delivery.refresh_from_db()
        assert (delivery.status, delivery.cause, delivery.attempts_used) == ("pending", "replay", 0)
        assert (delivery.completed_at, delivery.attempt_count) == (None, 8)
        assert delivery.next_attempt_at is not None
        assert delivery.next_attempt_at >= NOW
    queue = SubscriptionQueue.objects.get(subscription=subscription)
    assert queue.next_due_at is not None
    assert queue.next_due_at <= timezone.now()
    assert (run.state, run.queued) == ("done", 3)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target) == ("delivery.replay", str(run.id))
    assert entry.detail == {"filters": {"statuses": ["failed"]}, "count": 3, "count_is_more": False}


def test_each_filter_replays_exactly_what_it_names(
    organization: Organization, subscription: Subscription, other_subscription: Subscription
) -> None:
    second = subscriptions.create(organization.id, url="http://127.0.0.1:9/", event_types=["*"])[0]
    failed, delivered = add(subscription), add(subscription, "delivered")
    recent = add(subscription, at=NOW - datetime.timedelta(minutes=5))
    elsewhere, foreign = add(second), add(other_subscription)
    retrying = add(subscription, "pending")
    Delivery.objects.filter(pk=retrying.pk).update(last_error="timeout")
    retrying.refresh_from_db()
    untouched = [add(subscription, status) for status in ("pending", "delivering", "held", "cancelled")]
    before = {row.id: row.status for row in untouched}
    half_hour_ago = (NOW - HOUR / 2).isoformat()
    cases: list[tuple[list[str], set[Delivery]]] = [
        (["--delivery", str(failed.id)], {failed}),
        (["--event", str(delivered.event_id)], set()),
        (["--event", str(delivered.event_id), "--include-delivered"], {delivered}),
        (["--subscription", str(second.id)], {elsewhere}),
        (["--org", "Acme"], {failed, retrying, recent, elsewhere}),
        (["--org", "Acme", "--include-delivered"], {failed, retrying, delivered, recent, elsewhere}),
        (["--org", str(foreign.organization_id)], {foreign}),
        (["--status", "failed"], {failed, recent, elsewhere, foreign}),
        (["--status", "retrying"], {retrying}),
        (["--status", "delivered", "--include-delivered"], {delivered}),
        (["--status", "failed", "--include-delivered"], {failed, recent, elsewhere, foreign, delivered}),
        (["--since", half_hour_ago], {recent}),
        (["--since", "30m"], {recent}),
        (["--until", half_hour_ago], {failed, retrying, elsewhere, foreign}),
        (["--org", "Acme", "--status", "failed", "--until", "30m"], {failed, elsewhere}),
        (["--subscription", str(second.id), "--status", "retrying"], set()),
    ]
    for arguments, expected in cases:
        dry, _ = replay(*arguments, "--dry-run")
        assert dry.startswith(f"{len(expected)} deliveries would be replayed.\n"), arguments
        assert not replayed()
        out, _ = replay(*arguments)
        assert out == f"{len(expected)} deliveries replayed.\n", arguments
        assert replayed() == {row.id for row in expected}, arguments
        for row in (failed, retrying, delivered, recent, elsewhere, foreign):
            row.save()  # as it was before
    assert {row.id: row.status for row in Delivery.objects.filter(id__in=before)} == before


def test_deliveries_of_a_disabled_subscription_are_held_and_of_a_deleted_one_left_alone(
    organization: Organization, subscription: Subscription
) -> None:
    deleted = subscriptions.create(organization.id, url="http://127.0.0.1:9/deleted", event_types=["*"])[0]
    for one in (subscription, deleted):
        add(one)
    subscriptions.disable(subscription)
    subscriptions.delete(deleted)
    dry, _ = replay("--status", "failed", "--dry-run")
    assert dry.startswith("1 deliveries would be replayed.\n")
    assert f"1 would be held, because the subscription is disabled: {subscription.url}" in dry
    assert f"1 would be left alone, because the subscription was deleted: {deleted.url}" in dry
    out, _ = replay("--status", "failed")
    assert out == "1 deliveries replayed. 1 of them are held: their subscriptions are disabled.\n"
    assert sorted(Delivery.objects.values_list("status", flat=True)) == ["failed", "held"]
    subscriptions.enable(subscription)
    assert sorted(Delivery.objects.values_list("status", flat=True)) == ["failed", "pending"]


def test_what_was_delivered_is_sent_again_only_if_that_is_said(subscription: Subscription) -> None:
    add(subscription, "delivered")
    with pytest.raises(CommandError, match="only with --include-delivered"):
        replay("--status", "delivered")
    assert "1 more were delivered" in replay("--subscription", str(subscription.id), "--dry-run")[0]
    assert replay("--subscription", str(subscription.id))[0] == "0 deliveries replayed.\n"
    assert replay("--subscription", str(subscription.id), "--include-delivered")[0] == "1 deliveries replayed.\n"


def test_a_dry_run_says_of_which_causes_and_what_the_circuit_breaker_makes_of_it(subscription: Subscription) -> None:
    for error, code in (("http_status", 503), ("http_status", 503), ("timeout", None)):
        Delivery.objects.filter(pk=add(subscription).pk).update(last_error=error, last_status_code=code)
    until = timezone.now() + HOUR
    SubscriptionQueue.objects.update(breaker_trips=3, paused_until=until, failing_since=NOW)
    dry, _ = replay("--subscription", str(subscription.id), "--dry-run")
    assert dry.splitlines()[:3] == [
        "3 deliveries would be replayed.",
        "  2 failed http_status 503",
        "  1 failed timeout",
    ]
    assert "3 would wait behind a circuit breaker" in dry
    assert f"nothing is sent before {until.isoformat(timespec='seconds')}" in dry
    replay("--subscription", str(subscription.id))
    assert SubscriptionQueue.objects.get().paused_until == until, "many replays are no reason to probe the endpoint"


def test_more_than_a_chunk_is_replayed_to_the_last_one(subscription: Subscription) -> None:
    add_many(subscription, 1203)
    assert replay("--subscription", str(subscription.id))[0] == "1203 deliveries replayed.\n"
    assert len(replayed()) == 1203
    assert replay("--subscription", str(subscription.id))[0] == "0 deliveries replayed.\n"


WRONG: list[list[str]] = [
    [],
    ["--delivery", "1"],
    ["--event", "x"],
    ["--subscription", ""],
    ["--org", "Nobody"],
    ["--status", "pending"],
    ["--since", "yesterday"],
    ["--until", "2026-13-01"],
    ["--since", "99999999999d"],
    ["--status", "failed", "--rate", "0"],
    ["--status", "failed", "--rate", "-1"],
    ["--status", "failed", "--rate", "nan"],
    ["--resume", str(uuid.UUID(int=0))],
    ["--resume", "x"],
    ["--resume", str(uuid.UUID(int=0)), "--status", "failed"],
]


@pytest.mark.django_db
@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_argument_is_refused_and_begins_nothing(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("replay_deliveries", *arguments, stdout=StringIO(), stderr=StringIO())
    assert not BulkRun.objects.exists()


def manage(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}
    return subprocess.Popen(
        [sys.executable, "manage.py", "replay_deliveries", *arguments], cwd=ROOT, env=environment, text=True, **options
    )


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_killed_goes_on_where_it_stood_and_takes_no_delivery_twice(subscription: Subscription) -> None:
    add_many(subscription, 400)
    process = manage("--subscription", str(subscription.id), "--rate", "100", stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: Delivery.objects.filter(cause="replay").count() >= 50)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    run = BulkRun.objects.get()
    assert run.state == "running"
    assert 0 < run.queued < 400
    assert Delivery.objects.filter(cause="replay").count() == run.queued
    # What was replayed before the kill has been delivered meanwhile: a second replay would send it again.
    done = list(replayed())
    Delivery.objects.filter(id__in=done).update(status="delivered", cause="schedule")
    newer = Delivery.objects.create(
        organization=subscription.organization, event_id=uuid.uuid4(), subscription=subscription, status="failed"
    )
    out, _ = manage("--resume", str(run.id), "--rate", "100000", stdout=subprocess.PIPE).communicate(timeout=60)
    finished = BulkRun.objects.get()
    assert finished.state == "done"
    assert (out, finished.queued) == ("400 deliveries replayed.\n", 400)
    assert Delivery.objects.filter(id__in=done, status="delivered").count() == len(done)
    newer.refresh_from_db()
    assert newer.status == "failed"  # it failed after the run had begun
    assert len(replayed()) == 400 - len(done)
    out, _ = manage("--resume", str(run.id), stdout=subprocess.PIPE).communicate(timeout=60)
    assert out == "400 deliveries replayed.\n"
    assert len(replayed()) == 400 - len(done)


@pytest.mark.django_db(transaction=True)
def test_a_terminal_sees_a_progress_bar_and_a_pipe_does_not(subscription: Subscription) -> None:
    add_many(subscription, 30)
    master, slave = pty.openpty()
    process = manage("--status", "failed", stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert out == "30 deliveries replayed.\n"
    assert "replaying" in shown.decode()
    assert re.search(r"30/30", shown.decode())
    Delivery.objects.update(status="failed")
    out, err = manage("--status", "failed", stdout=subprocess.PIPE, stderr=subprocess.PIPE).communicate(timeout=60)
    assert out == "30 deliveries replayed.\n"
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.django_db(transaction=True)
def test_the_rate_bounds_how_fast_deliveries_become_due(subscription: Subscription) -> None:
    add_many(subscription, 40)
    started = time.monotonic()
    out = StringIO()
    call_command("replay_deliveries", "--status", "failed", "--rate", "20", stdout=out, stderr=StringIO())
    # 40 at 20 a second: the last chunk is due after a second and a half, never before.
    assert time.monotonic() - started >= 1.4
    assert out.getvalue() == "40 deliveries replayed.\n"


def test_rows_of_one_moment_are_each_replayed_once_over_the_chunks_edges(subscription: Subscription) -> None:
    add_many(subscription, 1203)
    Delivery.objects.update(created_at=NOW - HOUR)
    assert replay("--subscription", str(subscription.id))[0] == "1203 deliveries replayed.\n"
    assert len(replayed()) == 1203
