"""Retry, replay, hold and resume: what an operator may do to deliveries, and what nobody may."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.db.models.functions import Now

from orgs.models import Organization
from tests.webhooks.helpers import accept, queue_of, result, statuses, subscribe
from webhooks import delivery_actions, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, SubscriptionQueue

pytestmark = pytest.mark.django_db

STATES = ["pending", "delivering", "delivered", "failed", "held", "cancelled"]


def _one(organization: Organization, state: str) -> Delivery:
    subscribe(organization)
    accept(organization)
    if state == "delivering":
        claim(1)
    else:
        settled = state in ("delivered", "failed", "cancelled")
        Delivery.objects.update(
            status=state, completed_at=Now() if settled else None, attempts_used=3 if settled else 0
        )
    return Delivery.objects.get()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("what", list(DeliveryAction))
def test_each_repair_changes_what_it_is_for_and_leaves_everything_else(
    organization: Organization, what: DeliveryAction, state: str
) -> None:
    delivery = _one(organization, state)
    if what is DeliveryAction.SKIP:
        Delivery.objects.update(ordering_key="key", ordered_at=Now())
    changed = delivery_actions.apply(what, [delivery.id])
    assert changed == (1 if state in what.states else 0)
    delivery.refresh_from_db()
    becomes = {DeliveryAction.HOLD: "held", DeliveryAction.SKIP: "cancelled"}.get(what, "pending")
    assert delivery.status == (becomes if changed else state)
    assert not (changed and what is DeliveryAction.SKIP and delivery.completed_at is None)
    if changed and becomes == "pending":
        assert delivery.completed_at is None
        assert len(claim(10).deliveries) == 1


@pytest.mark.parametrize("how", ["disable", "delete"])
@pytest.mark.parametrize("what", [DeliveryAction.RETRY, DeliveryAction.REPLAY, DeliveryAction.RESUME])
def test_nothing_is_made_due_for_a_subscription_that_takes_no_deliveries(
    organization: Organization, what: DeliveryAction, how: str
) -> None:
    delivery = _one(organization, "failed")
    subscription = delivery.subscription
    (subscriptions.disable if how == "disable" else subscriptions.delete)(subscription)
    Delivery.objects.update(status=what.states[-1])
    assert delivery_actions.apply(what, [delivery.id]) == 0
    assert claim(10).deliveries == []


def test_a_retry_is_one_more_attempt_and_a_replay_a_whole_schedule(organization: Organization, settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0, 5.0)
    for what, attempts in ((DeliveryAction.RETRY, 1), (DeliveryAction.REPLAY, 3)):
        subscribe(organization)
        (event,) = accept(organization)
        delivery = Delivery.objects.filter(event_id=event).order_by("-id")[0]
        Delivery.objects.exclude(id=delivery.id).update(status="cancelled")
        Delivery.objects.filter(id=delivery.id).update(status="failed", attempts_used=3)
        delivery_actions.apply(what, [delivery.id])
        made = 0
        causes = []
        while Delivery.objects.get(id=delivery.id).status == "pending":
            Delivery.objects.filter(id=delivery.id).update(next_attempt_at=Now())
            SubscriptionQueue.objects.update(next_due_at=Now(), paused_until=None)
            (claimed,) = claim(10).deliveries
            causes.append(claimed.cause)
            record_results([result(claimed, 500)])
            made += 1
        assert made == attempts
        assert causes[0] == ("manual" if what is DeliveryAction.RETRY else "replay")
        assert statuses(id=delivery.id) == ["failed"]


def test_a_retry_goes_past_an_open_circuit_and_a_replay_waits_for_it(organization: Organization) -> None:
    delivery = _one(organization, "failed")
    SubscriptionQueue.objects.update(
        paused_until=Now() + datetime.timedelta(hours=1), breaker_trips=2, concurrency_window=1
    )
    delivery_actions.apply(DeliveryAction.REPLAY, [delivery.id])
    assert claim(10).deliveries == []
    delivery_actions.apply(DeliveryAction.RETRY, [delivery.id])
    assert queue_of(delivery.subscription).paused_until is None
    assert len(claim(10).deliveries) == 1


def test_a_delivery_that_is_held_by_hand_waits_until_it_is_resumed(organization: Organization) -> None:
    delivery = _one(organization, "pending")
    assert delivery_actions.apply(DeliveryAction.HOLD, [delivery.id]) == 1
    assert claim(10).deliveries == []
    accept(organization)
    assert len(claim(10).deliveries) == 1
    assert delivery_actions.apply(DeliveryAction.RESUME, [delivery.id]) == 1
    assert [c.delivery_id for c in claim(10).deliveries] == [delivery.id]


def test_no_ids_and_unknown_ids_are_no_error(organization: Organization) -> None:
    for what in DeliveryAction:
        assert delivery_actions.apply(what, []) == 0
        assert delivery_actions.apply(what, [uuid.uuid4()]) == 0
