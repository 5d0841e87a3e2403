"""A delivery whose lease changes hands while somebody ends the old one stays the new holder's.

Whoever ends leases finds them, and then waits for their queues.  Meanwhile, another transaction, which has the queue
locked, gives the delivery to another worker.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable

import pytest
from django.db.models.functions import Now

from orgs.models import Organization
from tests.webhooks.helpers import accept, in_threads, queue_of, subscribe
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import expire, release
from webhooks.models import Delivery, DeliveryAttempt

LEASE_ANEW = "UPDATE webhooks_delivery SET lease_id = %s, lease_expires_at = clock_timestamp() + interval '1 hour'"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["expire", "release"])
def test_a_lease_that_was_given_to_another_worker_meanwhile_is_not_ended(organization: Organization, how: str) -> None:
    subscription = subscribe(organization)
    accept(organization)
    [claimed] = claim(1).deliveries
    end: Callable[[], int] = expire if how == "expire" else lambda: release([claimed.lease_id])
    if how == "expire":
        Delivery.objects.update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    theirs = uuid.uuid4()
    with another_transaction() as other:
        other.execute("SELECT 1 FROM webhooks_subscriptionqueue FOR UPDATE")

        def work(number: int) -> int | None:
            if number == 0:
                return end()
            wait_until_held_up(other)
            other.execute(LEASE_ANEW, (theirs,))
            other.commit()
            return None

        ended = [count for count in in_threads(2, work) if count is not None]
    assert ended == [0]
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.lease_id) == ("delivering", theirs)
    assert queue_of(subscription).in_flight == 1
    assert not DeliveryAttempt.objects.exists()
