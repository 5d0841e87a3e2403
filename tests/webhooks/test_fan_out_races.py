"""A subscription that changes between a fan-out's look at it and the fan-out's deliveries leaves none behind.

The fan-out is held up in between by another transaction, which has inserted the same delivery and then takes it back.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection

from core.ids import derive_id
from events.ingest import ingest
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import fan_out, in_threads, queue_of, statuses, subscribe
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks import subscriptions
from webhooks.dispatch.claim import claim
from webhooks.models import Subscription, SubscriptionQueue
from webhooks.queues import mark_due, mark_held
from webhooks.routing.fan_out import FAN_OUT_LOCK

SAME_DELIVERY = """
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_error, created_at
)
SELECT %(id)s, organization_id, id, %(subscription)s, 'pending', now(), 'schedule', 0, 0, '', now()
FROM events_event WHERE id = %(event)s
"""


def change_during_fan_out(organization: Organization, subscription: Subscription, change: Callable[[], object]) -> None:
    """Let a fan-out read the subscription, make the whole change, and let the fan-out insert its delivery."""
    event_id = ingest(organization.id, NewEvent("a.b", "{}", None)).event_id
    with another_transaction() as other:
        other.execute(
            SAME_DELIVERY,
            {"id": derive_id(event_id, subscription.pk), "subscription": subscription.pk, "event": event_id},
        )

        def work(number: int) -> None:
            if number == 0:
                fan_out()
                return
            wait_until_held_up(other)
            change()
            assert not queue_of(subscription).needs_resync, "the change is complete"
            other.rollback()

        in_threads(2, work)


@pytest.mark.django_db(transaction=True)
def test_a_round_can_be_seen_before_it_reads_which_subscriptions_there_are(organization: Organization) -> None:
    """A recovery waits for the rounds that it sees: one that is unseen could miss the subscription it is for."""
    subscribe(organization, "http://127.0.0.1:1/a")
    ingest(organization.id, NewEvent("a.b", "{}", None))
    with another_transaction() as other:
        other.execute("LOCK TABLE webhooks_subscription IN ACCESS EXCLUSIVE MODE")

        def work(number: int) -> int:
            if number == 0:
                fan_out()
                return 0
            wait_until_held_up(other)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND granted",
                    [FAN_OUT_LOCK],
                )
                seen = int(cursor.fetchone()[0])
            other.rollback()
            return seen

        assert sorted(in_threads(2, work)) == [0, 1]


def resync_marked() -> None:
    """Do what the sweep does for queues that are marked."""
    for queue in SubscriptionQueue.objects.filter(needs_resync=True):
        while not subscriptions.resync(queue.pk):
            pass


@pytest.mark.django_db(transaction=True)
def test_a_delivery_for_a_subscription_that_was_disabled_meanwhile_is_held(organization: Organization) -> None:
    subscription = subscribe(organization)
    change_during_fan_out(organization, subscription, lambda: subscriptions.disable(subscription))
    assert statuses() == ["pending"], "as the fan-out saw it"
    resync_marked()
    assert statuses() == ["held"]
    subscriptions.enable(subscription)
    assert len(claim(10).deliveries) == 1


@pytest.mark.django_db(transaction=True)
def test_a_delivery_for_a_subscription_that_was_deleted_meanwhile_is_cancelled(organization: Organization) -> None:
    subscription = subscribe(organization)
    change_during_fan_out(organization, subscription, lambda: subscriptions.delete(subscription))
    assert claim(10).deliveries == []
    resync_marked()
    assert statuses() == ["cancelled"]


@pytest.mark.django_db(transaction=True)
def test_a_delivery_for_a_subscription_that_was_enabled_meanwhile_is_sent(organization: Organization) -> None:
    subscription = subscribe(organization)
    subscriptions.disable(subscription)
    change_during_fan_out(organization, subscription, lambda: subscriptions.enable(subscription))
    assert statuses() == ["held"], "as the fan-out saw it"
    resync_marked()
    assert statuses() == ["pending"]
    assert len(claim(10).deliveries) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_deliveries_that_do_not_fit_their_queue_mark_it_and_others_leave_the_mark(
    organization: Organization, accepts: bool, marked: bool
) -> None:
    subscription = subscribe(organization)
    for mark, fits in ((mark_due, accepts), (mark_held, not accepts)):
        SubscriptionQueue.objects.update(accepts_deliveries=accepts, needs_resync=marked)
        mark([subscription.pk])
        assert queue_of(subscription).needs_resync is (marked or not fits)
