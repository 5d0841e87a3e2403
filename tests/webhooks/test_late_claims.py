"""A request isn't begun under a lease that may end before its result is recorded."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from django.db.models.functions import Now

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from orgs.models import Organization
from tests.webhooks.helpers import accept, queue_of, sending, statuses, subscribe
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks.dispatch.leases import expire
from webhooks.dispatch.sender import lease_covers_attempt
from webhooks.models import Delivery, DeliveryAttempt


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_took_too_long_sends_nothing_and_its_deliveries_come_back(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    """What a process has claimed that was stopped for a while may be another worker's by now."""
    margin = settings.LEASE_MARGIN
    subscription = subscribe(organization, receiver.url())
    accept(organization, 3)
    with sending(poll_seconds=3600) as sender, another_transaction() as other:
        assert sender.wait_until_drained(30)
        assert receiver.count == 3
        accept(organization, 3)
        settings.LEASE_MARGIN = 0.5
        other.execute("LOCK TABLE webhooks_delivery IN ACCESS EXCLUSIVE MODE")
        sender.wake()
        wait_until_held_up(other)
        # The lease counts from before the claim began to wait, so that by now it is used up.
        time.sleep(settings.LEASE_MARGIN)
        other.rollback()
        wait_until(lambda: statuses() == ["delivered"] * 3 + ["delivering"] * 3)
        # The claim after it ends the wait when nothing of the late one is in work any more.
        sender.wake()
        assert sender.wait_until_drained(30)
        assert receiver.count == 3
        assert statuses() == ["delivered"] * 3 + ["delivering"] * 3
        settings.LEASE_MARGIN = margin
        Delivery.objects.filter(status="delivering").update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
        assert expire() == 3
        sender.wake()
        wait_until(lambda: statuses() == ["delivered"] * 6)
    assert receiver.count == 6
    lost = DeliveryAttempt.objects.filter(error="worker_lost")
    assert lost.count() == 3, "the lost time is told"
    assert queue_of(subscription).in_flight == 0


def test_a_lease_covers_an_attempt_that_is_over_and_recorded_before_it_ends(settings: Any) -> None:
    settings.DELIVERY_TIMEOUT = 30.0
    settings.LEASE_MARGIN = 12.0
    ends = 1000.0
    assert lease_covers_attempt(ends, now=ends - 30.0 - 12.0)
    assert lease_covers_attempt(ends, now=ends - 30.0 - 2.0), "a sixth of the margin is for recording"
    assert not lease_covers_attempt(ends, now=ends - 30.0 - 1.99)
    assert not lease_covers_attempt(ends, now=ends - 1.0)
    assert not lease_covers_attempt(ends, now=ends + 1.0)
