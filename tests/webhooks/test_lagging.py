"""Workers note whose deliveries lag: those with a backlog that waits for a processor, and not for its endpoint."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import replace
from typing import Any

import pytest
from django.db.models.functions import Now

from events.ingest import ingest
from events.lagging import lagging_among
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.dispatch.claim import BACKLOG_SECONDS, Claim, claim
from webhooks.dispatch.in_flight import InFlight
from webhooks.dispatch.lagging import COUNT_SECONDS, MOST_SECONDS, LaggingNotes
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


def _claim_late(*organizations: Organization, events: int = 5, ordering_key: str | None = None) -> Claim:
    """Claim deliveries that have been due for a while."""
    for organization in organizations:
        for _ in range(events):
            ingest(organization.id, NewEvent("order.created", "{}", None, ordering_key=ordering_key))
    fan_out_batch(1000)
    due_at = Now() - datetime.timedelta(seconds=2 * BACKLOG_SECONDS)
    Delivery.objects.filter(status="pending").update(next_attempt_at=due_at)
    SubscriptionQueue.objects.update(next_due_at=due_at)
    return claim(100)


def _noted(claimed: Claim, slow: set[uuid.UUID], *organizations: Organization, are_busy: bool = True) -> list[bool]:
    clock = Clock()
    notes = LaggingNotes(lambda: are_busy, clock)
    notes.note(claimed, slow)
    clock.now += COUNT_SECONDS
    notes.note(claimed, slow)
    found = lagging_among([organization.id for organization in organizations])
    return [organization.id in found for organization in organizations]


def test_whose_queue_has_a_backlog_while_the_processors_are_busy_is_noted(
    organization: Organization, other_organization: Organization
) -> None:
    _subscribe(organization, window=2)
    _subscribe(other_organization, window=20)
    claimed = _claim_late(organization, other_organization)
    assert _noted(claimed, set(), organization, other_organization) == [True, False]


def test_where_processors_have_time_a_backlog_is_not_their_fault(organization: Organization) -> None:
    _subscribe(organization, window=2)
    assert _noted(_claim_late(organization), set(), organization, are_busy=False) == [False]


def test_an_endpoint_that_takes_its_time_slows_nobody_down(organization: Organization) -> None:
    slow, quick = _subscribe(organization, window=2), _subscribe(organization, window=20)
    claimed = _claim_late(organization)
    assert claimed.backlog == {slow.pk}
    assert _noted(claimed, {slow.pk}, organization) == [False]
    assert _noted(claimed, {quick.pk}, organization) == [True]


@pytest.mark.parametrize("limit", [{"deliveries_per_second": 4}, {"max_in_flight": 2}, {"ordered": True}])
def test_a_limit_of_the_subscription_s_own_slows_no_request_down(
    organization: Organization, limit: dict[str, Any]
) -> None:
    """Whoever asks for four deliveries a second has a backlog because of that, and not because of the processors."""
    subscription = _subscribe(organization, window=2, **limit)
    claimed = _claim_late(organization, ordering_key="k" if "ordered" in limit else None)
    assert claimed.deliveries
    claimed = replace(claimed, backlog=frozenset({subscription.pk}))  # whatever the limit left due
    assert _noted(claimed, set(), organization) == [False]


def test_a_note_has_the_rate_at_which_deliveries_are_sent(
    organization: Organization, other_organization: Organization
) -> None:
    clock = Clock()
    notes = LaggingNotes(lambda: True, clock)
    asked = [organization.id, other_organization.id]
    _subscribe(organization, window=2)
    notes.note(_claim_late(organization), set())
    assert lagging_among(asked) == {organization.id: 2 / COUNT_SECONDS}  # at once
    _subscribe(other_organization, window=4)
    claimed = _claim_late(other_organization)
    clock.now += COUNT_SECONDS / 2
    notes.note(claimed, set())
    assert set(lagging_among(asked)) == {organization.id}, "it isn't counted for long enough"
    clock.now += COUNT_SECONDS * 1.5
    notes.note(claimed, set())
    assert lagging_among(asked)[other_organization.id] == 8 / (COUNT_SECONDS * 2)
    # What was counted long ago says nothing about the rate.
    clock.now += COUNT_SECONDS / 2
    notes.note(claimed, set())
    clock.now += MOST_SECONDS * 2
    notes.note(claimed, set())
    assert lagging_among(asked)[other_organization.id] == 4 / COUNT_SECONDS


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
    in_flight.remove(by_subscription[first.pk])
    assert in_flight.slow_subscriptions(0.5) == {second.pk}
