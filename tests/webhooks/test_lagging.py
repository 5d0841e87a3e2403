"""Workers note whose deliveries lag: those that wait for a processor, and not for their endpoint."""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from django.db.models.functions import Now

from events.ingest import ingest
from events.lagging import lagging_among
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.dispatch.claim import BACKLOG_SECONDS, LAGGING_SECONDS, Claim, Occupancy, claim
from webhooks.dispatch.in_flight import InFlight
from webhooks.dispatch.lagging import AGAIN_SECONDS, LEAST_RATE, LaggingNotes
from webhooks.models import Delivery, Subscription, SubscriptionQueue

pytestmark = pytest.mark.django_db


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _subscribe(organization: Organization, window: int, **limits: Any) -> Subscription:
    subscription = subscriptions.create(organization.id, url="http://127.0.0.1:9/", event_types=["*"], **limits)[0]
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(concurrency_window=window)
    return subscription


def _claim_late(
    *organizations: Organization,
    events: int = 5,
    ordered: bool = False,
    seconds: float = 2 * LAGGING_SECONDS,
    limit: int = 100,
    occupancy: Occupancy | None = None,
) -> Claim:
    """Claim deliveries that have been due for a while."""
    for organization in organizations:
        for number in range(events):
            key = f"k{number}" if ordered else None
            ingest(organization.id, NewEvent("order.created", "{}", None, ordering_key=key))
    fan_out_batch(1000)
    due_at = Now() - datetime.timedelta(seconds=seconds)
    Delivery.objects.filter(status="pending").update(next_attempt_at=due_at)
    SubscriptionQueue.objects.update(next_due_at=due_at)
    return claim(limit, occupancy)


def _noted(
    lagging: Mapping[uuid.UUID, uuid.UUID], in_flight: InFlight | None = None, *, are_busy: bool = True
) -> dict[uuid.UUID, float]:
    LaggingNotes(in_flight or InFlight(10), lambda: are_busy).note(lagging)
    return lagging_among(set(lagging.values()))


@pytest.mark.parametrize("seconds", [2 * LAGGING_SECONDS, 2 * BACKLOG_SECONDS])
def test_a_queue_lags_long_before_it_is_left_to_the_backlog_sender(
    organization: Organization, other_organization: Organization, seconds: float
) -> None:
    lagging = _subscribe(organization, window=2)
    _subscribe(other_organization, window=20)
    claimed = _claim_late(organization, other_organization, seconds=seconds)
    assert claimed.lagging == {lagging.pk: organization.id}
    assert claimed.backlog == ({lagging.pk} if seconds > BACKLOG_SECONDS else frozenset())


def test_what_came_a_moment_ago_does_not_lag(organization: Organization) -> None:
    _subscribe(organization, window=2)
    claimed = _claim_late(organization, seconds=0)
    assert claimed.more
    assert claimed.lagging == {}


def test_a_claim_that_has_no_place_for_a_lagging_queue_tells_of_it_as_well(organization: Organization) -> None:
    subscription = _subscribe(organization, window=200)
    taken = Occupancy(Counter({organization.id: 100}), Counter({subscription.pk: 100}), Counter())
    claimed = _claim_late(organization, limit=10, occupancy=taken)
    assert claimed.deliveries == []
    assert claimed.lagging == {subscription.pk: organization.id}


@pytest.mark.parametrize("limit", [{"deliveries_per_second": 4}, {"max_in_flight": 2}, {"ordered": True}])
def test_a_limit_of_the_subscription_s_own_slows_no_request_down(
    organization: Organization, limit: dict[str, Any]
) -> None:
    """Whoever asks for four deliveries a second has a backlog because of that, and not because of the processors."""
    _subscribe(organization, window=2, **limit)
    claimed = _claim_late(organization, ordered="ordered" in limit)
    assert 0 < len(claimed.deliveries) < 5, "more is due"
    assert claimed.lagging == {}


def test_whose_deliveries_lag_is_noted_only_while_the_processors_are_busy(organization: Organization) -> None:
    lagging = {_subscribe(organization, window=2).pk: organization.id}
    assert _noted(lagging, are_busy=False) == {}
    assert _noted(lagging) == {organization.id: LEAST_RATE}


def test_an_endpoint_that_takes_its_time_slows_nobody_down(organization: Organization) -> None:
    slow, quick = _subscribe(organization, window=2), _subscribe(organization, window=20)
    clock = Clock()
    in_flight = InFlight(10, now=clock)
    deliveries = {delivery.subscription_id: delivery for delivery in _claim_late(organization, events=1).deliveries}
    in_flight.add(deliveries[slow.pk])
    clock.now += 3600
    in_flight.add(deliveries[quick.pk])
    assert _noted({slow.pk: organization.id}, in_flight) == {}
    assert _noted({slow.pk: organization.id, quick.pk: organization.id}, in_flight) == {organization.id: LEAST_RATE}


def test_a_note_has_the_rate_at_which_deliveries_are_recorded_and_is_renewed_now_and_then(
    organization: Organization,
) -> None:
    clock = Clock()
    in_flight = InFlight(10, now=clock)
    notes = LaggingNotes(in_flight, lambda: True, clock)
    lagging = {_subscribe(organization, window=2).pk: organization.id}
    (delivery,) = _claim_late(organization, events=1).deliveries

    def record(per_second: int, seconds: float, at_once: int = 1) -> None:
        for _ in range(round(per_second * seconds / at_once)):
            clock.now += at_once / per_second
            for _ in range(at_once):
                in_flight.add(delivery)
            in_flight.remove([delivery] * at_once)

    record(400, 3)
    notes.note(lagging)
    assert lagging_among([organization.id])[organization.id] == pytest.approx(400, rel=0.02)
    record(1000, AGAIN_SECONDS / 2)
    notes.note(lagging)
    assert lagging_among([organization.id])[organization.id] == pytest.approx(400, rel=0.02), "not yet again"
    record(1000, 3, at_once=10)
    notes.note(lagging)
    assert lagging_among([organization.id])[organization.id] == pytest.approx(1000, rel=0.02)
    clock.now += 60
    assert in_flight.rate(organization.id) == pytest.approx(0)
    assert in_flight.rate(uuid.uuid4()) == 0


def test_what_is_in_flight_for_long_tells_which_endpoints_are_slow(organization: Organization) -> None:
    first, second = _subscribe(organization, window=20), _subscribe(organization, window=20)
    deliveries = _claim_late(organization, events=1).deliveries
    clock = Clock()
    in_flight = InFlight(10, now=clock)
    by_subscription = {delivery.subscription_id: delivery for delivery in deliveries}
    in_flight.add(by_subscription[first.pk])
    clock.now += 1
    in_flight.add(by_subscription[second.pk])
    assert in_flight.slow_subscriptions(2) == set()
    assert in_flight.slow_subscriptions(0.5) == {first.pk}
    clock.now += 1
    assert in_flight.slow_subscriptions(0.5) == {first.pk, second.pk}
    in_flight.remove([by_subscription[first.pk]])
    assert in_flight.slow_subscriptions(0.5) == {second.pk}
