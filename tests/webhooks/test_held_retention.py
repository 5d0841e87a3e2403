"""What has been held for HELD_RETENTION_DAYS is cancelled, says so, and is deleted with its event when that is old."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from events.models import Event
from orgs.models import Organization
from tests.webhooks.helpers import subscribe
from webhooks import delivery_actions, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import Delivery, Subscription, SubscriptionQueue
from webhooks.upkeep import held_retention
from webhooks.upkeep.held_retention import BATCH, HeldRetention, cancel_expired
from webhooks.upkeep.retention import purge_expired
from webhooks.upkeep.sweep import PURGE_EVERY_SECONDS, Sweep

pytestmark = pytest.mark.django_db

NOW = timezone.now()


def days_ago(days: float) -> datetime.datetime:
    return NOW - datetime.timedelta(days=days)


def hold(subscription: Subscription, created: float, status: str = "held", **values: Any) -> Delivery:
    """Make a delivery of an event that was created so many days ago."""
    at = days_ago(created)
    event = Event.objects.create(
        organization_id=subscription.organization_id, type="a", data="1", status="processed", created_at=at
    )
    given = {"next_attempt_at": at, "last_error": "timeout", "last_status_code": None, **values}
    return Delivery.objects.create(
        organization_id=subscription.organization_id, event=event, subscription=subscription, status=status,
        created_at=at, **given,
    )  # fmt: skip


def disabled(organization: Organization, days: float) -> Subscription:
    """Return a subscription that was disabled so many days ago."""
    row = subscribe(organization)
    subscriptions.disable(row)
    Subscription.objects.filter(pk=row.pk).update(disabled_at=days_ago(days))
    return row


def status_of(delivery: Delivery) -> str:
    delivery.refresh_from_db()
    return delivery.status


def test_what_is_held_for_too_long_is_cancelled_and_says_so(
    api: Any, organization: Organization, settings: Any
) -> None:
    settings.HELD_RETENTION_DAYS = 10
    gone = disabled(organization, 20)
    old, later = hold(gone, 100), hold(gone, 11)
    fresh = hold(gone, 9)
    others = [hold(gone, 100, status) for status in ("failed", "delivered", "cancelled")]
    assert cancel_expired().deliveries == 2
    assert (status_of(old), status_of(later), status_of(fresh)) == ("cancelled", "cancelled", "held")
    assert [status_of(row) for row in others] == ["failed", "delivered", "cancelled"]
    shown = api.get(f"/api/deliveries/{old.pk}").json()
    assert (shown["status"], shown["last_error"], shown["next_attempt_at"]) == ("cancelled", "held_too_long", None)
    assert shown["completed_at"] is not None
    subscriptions.enable(gone)
    assert (status_of(old), status_of(fresh)) == ("cancelled", "pending")
    # It is settled, so that retention takes it.
    assert purge_expired().events > 0
    assert not Delivery.objects.filter(pk=old.pk).exists()


def test_a_delivery_is_held_since_the_last_of_what_holds_it(organization: Organization, settings: Any) -> None:
    settings.HELD_RETENTION_DAYS = 10
    recently_disabled, active = disabled(organization, 2), subscribe(organization)
    long_disabled = disabled(organization, 50)
    kept = [
        hold(recently_disabled, 100),
        hold(active, 100, next_attempt_at=days_ago(2)),
        hold(long_disabled, 100, next_attempt_at=days_ago(1)),  # replayed yesterday, and held instead of sent
    ]
    by_a_person = hold(active, 100, "pending")
    assert delivery_actions.apply(DeliveryAction.HOLD, [by_a_person.pk]) == 1
    gone = hold(active, 100, next_attempt_at=days_ago(11))
    assert cancel_expired().deliveries == 1
    assert [status_of(row) for row in (*kept, by_a_person, gone)] == ["held"] * 4 + ["cancelled"]


def test_what_is_about_to_be_released_is_left_alone(organization: Organization, settings: Any) -> None:
    settings.HELD_RETENTION_DAYS = 10
    gone = disabled(organization, 20)
    delivery = hold(gone, 100)
    # As between the commit of `enable` and the resync of a great many deliveries.
    Subscription.objects.filter(pk=gone.pk).update(is_active=True, disabled_at=None)
    SubscriptionQueue.objects.filter(pk=gone.pk).update(accepts_deliveries=True, needs_resync=True)
    assert cancel_expired().deliveries == 0
    with connection.cursor() as cursor:  # also if it was enabled between the two statements
        cursor.execute(held_retention._CANCEL, [[delivery.pk]])
        assert cursor.rowcount == 0
        cursor.execute(held_retention._CANCEL, [[hold(subscribe(organization), 100, "pending").pk]])
        assert cursor.rowcount == 0
    subscriptions.resync(gone.pk)
    assert status_of(delivery) == "pending"


def test_zero_keeps_everything(organization: Organization, settings: Any) -> None:
    settings.HELD_RETENTION_DAYS = 0
    delivery = hold(disabled(organization, 1000), 2000)
    assert cancel_expired().is_complete
    assert status_of(delivery) == "held"


def test_organizations_take_turns_and_a_step_is_bounded(
    organization: Organization, other_organization: Organization, settings: Any
) -> None:
    settings.HELD_RETENTION_DAYS = 10
    big, small = disabled(organization, 50), disabled(other_organization, 50)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause,"
            " attempts_used, attempt_count, last_error, created_at, next_attempt_at)"
            " SELECT gen_random_uuid(), %s, gen_random_uuid(), %s, 'held', 'schedule', 0, 0, '',"
            " now() - interval '60 days' - make_interval(secs => n), now() - interval '60 days'"
            " FROM generate_series(1, %s) AS n",
            [organization.pk, big.pk, 5 * BATCH],
        )
    of_small = hold(small, 100)
    retention = HeldRetention()
    steps = [retention.run(0.0) for _ in range(2)]  # slices of one step each
    assert status_of(of_small) == "cancelled", "the small one needn't wait for the big one"
    while not steps[-1].is_complete:
        steps.append(retention.run(0.0))
    assert max(step.deliveries for step in steps) == BATCH
    assert sum(step.deliveries for step in steps) == 5 * BATCH + 1


@pytest.mark.parametrize("how", ["sweep", "command"])
def test_workers_and_the_command_do_it(
    organization: Organization, settings: Any, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.HELD_RETENTION_DAYS = 10
    delivery = hold(disabled(organization, 50), 20)
    if how == "command":
        call_command("purge_expired")
        assert "1 held deliveries cancelled." in capsys.readouterr().out
    else:
        sweep = Sweep(lambda: None)
        sweep._purged_at -= PURGE_EVERY_SECONDS
        sweep.run()
    assert status_of(delivery) == "cancelled"
